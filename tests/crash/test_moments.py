"""Which points of a process are one moment: nothing else is left behind at the one than before."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from outbox_saga.testing.crash_points import CrashPoints
from tests.crash.explorer import Explorer
from tests.crash.operations import OPERATIONS
from tests.crash.world import World


def test_the_moment_after_one_effect_is_the_moment_before_the_next() -> None:
    points = CrashPoints()
    with points.effect("a"):
        pass
    with points.effect("b"):
        pass
    assert points.names == ["before a", "after a", "before b", "after b"]
    assert points.moments == [1, 2, 4]


def test_what_happens_outside_between_two_effects_makes_two_moments_of_it() -> None:
    log: list[str] = []
    points = CrashPoints(outside=lambda: len(log))
    with points.effect("COMMIT"):
        pass
    log.append("the caller was told")
    with points.effect("the next"):
        pass
    assert points.moments == [1, 2, 3, 4]


def test_effects_under_way_at_once_and_points_by_themselves_are_moments_each() -> None:
    points = CrashPoints()
    with points.effect("publish"), points.effect("SELECT"):
        pass
    points.point("alone")
    with points.effect("the next"):
        pass
    assert points.moments == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    "name", ["publish async", "relay to a broker", "handle", "saga external-idempotent-undone"]
)
@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
def test_a_death_before_a_statement_leaves_what_a_death_after_the_one_before_leaves(
    name: str, world: World
) -> None:
    explorer = Explorer(world, OPERATIONS[name])
    undisturbed = explorer.come_to()
    same = sorted(set(range(1, undisturbed.count + 1)) - set(undisturbed.moments))
    assert len(same) > undisturbed.count // 4
    for at in same[:: max(1, len(same) // 6)]:
        assert _left_by(explorer, at) == _left_by(explorer, at - 1), undisturbed.names[at - 1]


def _left_by(explorer: Explorer, at: int) -> tuple[dict[str, int], tuple[int, ...]]:
    """Rows of each table, and what the logs have."""
    explorer.dies(at)
    with explorer.world.observer.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
        counts = {
            name: connection.scalar(sa.select(sa.func.count()).select_from(sa.table(name))) or 0
            for name in tables
        }
    return counts, explorer.world.logged()
