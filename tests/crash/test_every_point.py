"""The process dies at a point, the next one recovers.

And nothing that must always be true is broken.

All points, on all databases, and thousands of pairs are `./dev prove 1.5` and `2.8`; all points
are also `./dev soak` of this file. Here: every ninth point of the operations that everything else
is made of on SQLite and PostgreSQL, every `STRIDE`-th of the others of proof 1.5 and on MariaDB,
and a few of the rest, on SQLite and one server each, so that a change which breaks a kind of step
is seen in the same minutes.
"""

from __future__ import annotations

import zlib

import pytest

from tests.crash.explorer import Explorer, every, singles
from tests.crash.operation import is_sampled
from tests.crash.operations import FIRST, JOURNEYS, MESSAGES, OPERATIONS
from tests.crash.world import World

STRIDE, CLOSE = 41, 9
REST = {"sqlite": 89, "postgres18": 139, "mariadb": 139}  # of what only proof 2.8 goes through
SOMEWHERE = 41  # a point in the midst of every saga's way
CLOSELY = {  # on SQLite and PostgreSQL
    "publish async",
    "relay to a broker",
    "handle",
    "fail and store",
    "pessimistic",
    "saga local-async",
    "saga external-idempotent-undone",
}


CASES = [(name, where) for name, o in (FIRST | MESSAGES).items() for where in o.databases]


@pytest.mark.parametrize(("name", "world"), CASES, indirect=["world"])
def test_whatever_the_point_at_which_the_process_dies_the_next_one_puts_everything_right(
    name: str, world: World, soak: bool
) -> None:
    if not (soak or name in FIRST or is_sampled(name, world.name)):
        pytest.skip("./dev soak, or ./dev prove 2.8")
    explorer = Explorer(world, OPERATIONS[name])
    undisturbed = explorer.come_to()
    stride = CLOSE if name in CLOSELY and world.name != "mariadb" else STRIDE
    if name not in FIRST:
        stride = REST[world.name]
    # other operations, other databases, other points
    first = 1 + zlib.crc32(f"{name} {world.name}".encode()) % stride
    points = undisturbed.moments if soak else every(stride, undisturbed.count, first=first)
    bad = [run for run in singles(explorer, points) if run.violations]
    assert not bad, "\n".join(str(run) for run in bad)


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", JOURNEYS)
def test_a_saga_goes_on_wherever_its_process_died(name: str, world: World, soak: bool) -> None:
    explorer = Explorer(world, JOURNEYS[name])
    # all of them, and their pairs, on all databases: `./dev prove 3.2`
    points = explorer.moments() if soak else [SOMEWHERE]
    bad = [run for run in singles(explorer, points) if run.violations]
    assert not bad, "\n".join(str(run) for run in bad)


@pytest.mark.parametrize("world", ["sqlite", "postgres18", "mariadb"], indirect=True)
@pytest.mark.parametrize("name", ["relay to a broker", "saga five-steps-undone"])
def test_a_recovery_that_dies_too_is_recovered_from(name: str, world: World) -> None:
    explorer = Explorer(world, OPERATIONS[name])
    count = explorer.count()
    for at in (count // 4, count // 2, count - 2):
        recovery = explorer.crash(at).recovery
        for again in every(max(1, recovery // 3), recovery - 1, first=recovery // 5 + 1):
            run = explorer.crash_twice(at, again)
            assert not run.violations, str(run)


@pytest.mark.parametrize("world", ["sqlite", "postgres18", "mariadb"], indirect=True)
@pytest.mark.parametrize(
    "name", ["publish async", "relay to a broker", "saga local-def", "saga external-query"]
)
def test_a_real_sigkill_leaves_no_more_behind_than_the_simulated_death(
    name: str, world: World
) -> None:
    explorer = Explorer(world, OPERATIONS[name])
    at = explorer.count() * 2 // 3
    killed = explorer.kill(at)
    assert not killed.violations, str(killed)
