"""An explorer that has not caught a bug proves nothing: these are planted, and caught."""

from __future__ import annotations

import pytest

from tests.crash.explorer import Explorer, PointNotReached, singles
from tests.crash.operations import OPERATIONS
from tests.crash.planted import PLANTED
from tests.crash.world import World

CAUGHT_BY = {
    "mark before publish": ("relay to a broker", {"I3"}),
    "key re-made on retry": ("saga external-idempotent", {"I13", "I12"}),
    "effect and progress in two transactions": ("saga local-async", {"I10", "I12"}),
}


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_caught(bug: str, world: World) -> None:
    name, invariants = CAUGHT_BY[bug]
    explorer = Explorer(world, OPERATIONS[name], PLANTED[bug])
    runs = list(singles(explorer, explorer.moments()))
    found = {violation.invariant for run in runs for violation in run.violations}
    assert found >= invariants


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
def test_a_point_that_is_not_reached_fails_the_run(world: World) -> None:
    explorer = Explorer(world, OPERATIONS["handle"])
    with pytest.raises(PointNotReached):
        explorer.crash(explorer.count() + 1)
