"""A step that kills its process whenever it is carried out, with real processes.

Its saga ends, and those beside it complete.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from outbox_saga.saga.calls import SETTLING
from outbox_saga.saga.outcomes import FATAL_DEATHS
from outbox_saga.testing import invariants
from tests.crash.deadly import ARRIVALS, DIED, KINDS, NEIGHBOURS, TWICE, WARM, attempts
from tests.crash.explorer import ROOT
from tests.crash.world import World

PATIENCE = 100.0  # seconds for all processes of one test
CALLS = TWICE.max_attempts + SETTLING.max_attempts - 1
SOON = 6  # lives
LAST = "its process died or stood still at the last one"

ENDS = {  # what becomes of the deadly saga, how often the process dies, and why it says it ended
    "local": ("compensated", FATAL_DEATHS + 1, "gave up after 2 attempts: its process died"),
    "local undo": ("stuck", FATAL_DEATHS + 1, "gave up after 2 attempts: its process died"),
    "call": ("stuck", CALLS, f"outcome unknown after {CALLS} attempts: {LAST}"),
    "call undo": ("stuck", 2, f"outcome unknown after 2 attempts: {LAST}"),
    "question": ("stuck", FATAL_DEATHS + CALLS - 2, f"outcome unknown after {CALLS} attempts: "),
}


ALL = ("sqlite", "postgres18", "mariadb")
FEWER = {"question": ("postgres18",), "call": ("sqlite", "postgres18")}  # they take most deaths
CASES = [(what, name) for what in KINDS for name in FEWER.get(what, ALL)]


@pytest.mark.parametrize(("what", "world"), CASES, indirect=["world"])
def test_a_step_that_kills_every_process_ends_its_saga_and_no_other(
    what: str, world: World
) -> None:
    world.empty()
    attempts(world.folder).empty()
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "tests.crash.deadly"),
            *(world.name, world.url, str(world.folder), what),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    lives = [json.loads(line) for line in ran.stdout.splitlines()]
    end, deaths, reason = ENDS[what]

    assert [life["code"] for life in lives].count(DIED) == deaths
    assert len(attempts(world.folder).read()) == deaths
    started = NEIGHBOURS + min(ARRIVALS, len(lives) - 1)
    others = {f"order:{number}": "completed" for number in (WARM, *range(1, started + 1))}
    assert lives[-1]["ended"] == {"order:0": end, **others}
    # those beside it have not waited for it to end
    beside = {f"order:{number}" for number in range(1, NEIGHBOURS + 1)}
    waited = next(n for n, life in enumerate(lives) if beside <= set(life["ended"]))
    assert waited < SOON, [sorted(life["ended"]) for life in lives]

    facts = world.facts()
    assert f"deadly: {reason}" in [
        (h.detail or "")[: len(f"deadly: {reason}")]
        for h in facts.history
        if h.transition in ("FAILED", "COMPENSATED")
    ]
    wrong = invariants.histories(facts.sagas, facts.history)
    wrong += invariants.revisions(facts.changes)
    wrong += invariants.same_request(facts.requests)
    for saga in facts.sagas:
        if saga.state != "stuck":
            mine = [h for h in facts.history if h.saga_id == saga.id]
            logs = (facts.effects, facts.ledger)
            wrong += invariants.undone_once(saga, logs, mine, {"first", "deadly", "last"})
    assert not wrong, wrong
