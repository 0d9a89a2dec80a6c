"""Proof 2.7: every order of steps of writers, relays, operators and time, on a real PostgreSQL.

The relays are the product's own store, mark and lanes, driven pass by pass. Each play is tried
again with each rule taken out that it is about, and must then find its bug.

`OUTBOX_SAGA_PROOF_PART` names one of the plays; `without` in it, as in "replay and relay, without:
a page asks for what is back", one such rule of it. Two of them are played at a time, each by a
process of its own with a server of its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from outbox_saga.testing.interleaving import Play
from proofs.interleaved import plays, rules
from proofs.interleaved.stage import Stage, stage
from proofs.interleaved.trying import judged, result_of, tried
from proofs.registry import Outcome, parts, proof

Plant = Callable[[], contextlib.AbstractContextManager[Any]]
WITHOUT = ", without: "
AT_A_TIME = 2


@dataclass(frozen=True)
class Case:
    """A play, and the rules it is about: each name with what takes it out."""

    play: Callable[[Stage], Play]
    without: dict[str, Plant]


CASES = {
    "broker refuses n and would take n+1": Case(
        plays.refused_and_would_take_the_next,
        {"a refused key waits": rules.nothing_is_blocked, "lanes": rules.all_of_a_page_at_once},
    ),
    "two writers of one key, one of another, a relay making two passes with the mark": Case(
        plays.writers_and_a_relay,
        {"the key lock": rules.no_key_lock},
    ),
    "two relays handing over a partition": Case(
        plays.handing_over, {"a page asks for the lease": rules.page_without_lease}
    ),
    "two relays handing over a partition, with a removal under way": Case(
        plays.overtaken_before_its_commit,
        {"the row of a failure is locked": rules.row_of_a_failure_is_not_locked},
    ),
    "late commit and sweep": Case(
        plays.late_commit_and_sweep,
        {
            "the mark waits": rules.mark_passes_at_once,
            "it goes by xmin": rules.mark_goes_by_xmax,
        },
    ),
    "replay and relay": Case(
        plays.replay_and_relay,
        {"a page asks for what is back": rules.page_despite_what_is_back},
    ),
    "time and relay": Case(
        plays.time_and_relay, {"a page says what is due": rules.due_by_the_clock}
    ),
}
NAMES = [
    name
    for play, case in CASES.items()
    for name in (play, *(f"{play}{WITHOUT}{rule}" for rule in case.without))
]
BOUNDS = {
    "actors and passes": "as the play says; after its end one relay goes on until all is out",
    "cuts": "at every statement, commit and send that others can see or hold up",
    "preemptions": "any number",
    "schedules": "all but those that differ from one that was tried only in the order of steps "
    "that reach nothing in common (source sets and sleep sets, outbox_saga/testing/choices.py; "
    "what a step reaches: proofs/interleaved/reach.py)",
}


@proof("2.7")
def interleavings() -> Outcome:
    """All of them with the rules, and until a problem is found without each."""
    wanted = wanted_names()
    measured: dict[str, Any] = {"bounds": BOUNDS}
    context = multiprocessing.get_context("spawn")  # this process has its own streams, and threads
    with ProcessPoolExecutor(AT_A_TIME, mp_context=context, max_tasks_per_child=1) as pool:
        found = {name: pool.submit(played, name) for name in wanted}
    for name, future in found.items():
        play, _, rule = name.partition(WITHOUT)
        into = measured.setdefault(play, {})
        if rule:
            into.setdefault("without", {})[rule] = result_of(future)
        else:
            into.update(result_of(future))
    right = all(
        future.exception() is None and future.result()["right"] for future in found.values()
    )
    return Outcome(right and len(wanted) == len(NAMES), measured)


def wanted_names() -> list[str]:
    """Those that shall be played; with a play all that goes with it, unless one rule is named."""
    chosen = parts(NAMES)
    return chosen + [n for n in NAMES if n not in chosen and n.partition(WITHOUT)[0] in chosen]


def played(name: str) -> dict[str, Any]:
    """One play with its rules, all of it; or without one, until it has gone wrong."""
    play, _, rule = name.partition(WITHOUT)
    case = CASES[play]
    with stage() as on, case.without[rule]() if rule else contextlib.nullcontext():
        found = tried(
            name,
            lambda: case.play(on),
            on.engines,
            on.reaches,
            until_one_is_bad=bool(rule),
        )
    return judged(found, a_rule_is_out=bool(rule))
