"""Proof 3.2: sagas of every kind of transition, killed, cancelled and interleaved.

At each point that they come to (singles), at another one of the recovery (pairs), at each
suspension of their tasks (cancel); with bugs planted, each of which has to be caught; and, on
PostgreSQL, all pairs of those who may move one saga, in every order of their steps, and with rules
taken out, which has to be found (`proofs/interleaved/saga_plays.py`).

Parts: `OUTBOX_SAGA_PROOF_PART="mariadb commanding"`, `"sqlite cancel"`, `"planted"`,
`"interleaved: reply and cancel"`, and so on; some operations of those:
`OUTBOX_SAGA_PROOF_OPERATIONS="journey command:journey timer"`. The bar is met only by all
operations of all parts.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from proofs.crashing import Crashes
from proofs.interleaved.saga_plays import PAIRS, pair
from proofs.interleaved.saga_rules import WITHOUT
from proofs.interleaved.saga_stage import saga_stage
from proofs.interleaved.trying import judged, result_of, tried
from proofs.registry import Outcome, parts, proof
from tests.crash.journey_operations import SAGA_GROUPS
from tests.crash.planted_sagas import SAGA_BUGS

SAGAS = Crashes("proofs.p3_2_saga_crashes", SAGA_GROUPS, SAGA_BUGS, pairs=21)
INTERLEAVED, OUT = "interleaved: ", ", without: "
PLAYS = [
    INTERLEAVED + name
    for play in PAIRS
    for name in (play, *(f"{play}{OUT}{rule}" for rule in WITHOUT.get(play, ())))
]
PARTS = [*SAGAS.parts, *PLAYS]
AT_A_TIME = 2
BOUNDS = {
    "actors": "two of those who may move one saga at the same moment, all 15 pairs; after their "
    "end one orchestrator goes on alone until the saga has ended",
    "cuts": "at every statement, commit and call that others can see or hold up",
    "preemptions": "any number",
    "schedules": "all but those that differ from one that was tried only in the order of steps "
    "that reach nothing in common (outbox_saga/testing/choices.py, proofs/interleaved/reach.py)",
}


@proof("3.2")
def saga_crashes() -> Outcome:
    """Deaths and cancellations, and then the plays."""
    wanted = parts(PARTS)
    measured: dict[str, Any] = {}
    if crashes := [name for name in wanted if name in SAGAS.parts]:
        measured["crashes"] = SAGAS.measured(crashes)
    if plays := [name for name in wanted if name in PLAYS]:
        measured["interleaved"] = {"bounds": BOUNDS, **_interleaved(plays)}
    right = all(found["right"] for found in measured.values())
    return Outcome(right and wanted == PARTS, measured)


def _interleaved(wanted: Sequence[str]) -> dict[str, Any]:
    """All plays with their rules, and until a problem is found without each."""
    context = multiprocessing.get_context("spawn")  # this process has its own streams, and threads
    with ProcessPoolExecutor(AT_A_TIME, mp_context=context, max_tasks_per_child=1) as pool:
        found = {name: pool.submit(played, name) for name in wanted}
    results = {name.removeprefix(INTERLEAVED): result_of(f) for name, f in found.items()}
    sound = [result for name, result in results.items() if OUT not in name]
    return {
        "right": all(result["right"] for result in results.values()),
        "schedules": sum(result.get("schedules", 0) for result in sound),
        "bad": sum(result.get("bad", 0) for result in sound),
        "plays": results,
    }


def played(name: str) -> dict[str, Any]:
    """One play with its rules, all of it; or without one, until it has gone wrong."""
    play, _, rule = name.removeprefix(INTERLEAVED).partition(OUT)
    with saga_stage() as on, WITHOUT[play][rule]() if rule else contextlib.nullcontext():
        begin = pair(play)
        found = tried(name, lambda: begin(on), on.engines, on.reaches, until_one_is_bad=bool(rule))
    return judged(found, a_rule_is_out=bool(rule))


if __name__ == "__main__":
    SAGAS.main()
