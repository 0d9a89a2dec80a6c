"""An orchestrator that stands still past its lease, and goes on when another one has taken over.

At every statement boundary: `./dev prove 1.6`. Here: where it holds the instance's row by its
claim, where it holds the
step's rows, and before the commit of the step.
"""

from __future__ import annotations

import pytest

from tests.crash.shop import STILL_TIMEOUT
from tests.crash.standstill import bar, points_of, stand_still
from tests.crash.world import World


@pytest.mark.parametrize("world", ["postgres18"], indirect=True)
@pytest.mark.parametrize(
    ("saga", "where"),
    [
        ("still-async", "after UPDATE outbox_saga_saga SET deaths"),
        ("still-async", "after INSERT INTO crash_effect"),
        ("still-external", "after WITH moved"),  # the call's intent, not committed
    ],
)
def test_an_orchestrator_that_stands_still_is_taken_over_from_and_changes_nothing_afterwards(
    saga: str, where: str, world: World
) -> None:
    points = points_of(world, saga)
    at = next(i for i, name in enumerate(points, 1) if name.startswith(where))
    stood = stand_still(world, saga, at)
    assert not stood.wrong, stood
    assert stood.takeover is not None, stood
    assert stood.takeover < bar(STILL_TIMEOUT), stood
    assert stood.locks > 0, "it was to hold locks"
