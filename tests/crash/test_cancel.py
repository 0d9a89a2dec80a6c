"""A task is cancelled at a suspension, and the same process goes on.

All of them, on all databases, are `./dev prove 2.8` and `./dev soak` of this file. Here: all
of the units of work on SQLite, for what they tell their callers, and a few of the rest.
"""

from __future__ import annotations

import asyncio
import sqlite3
import zlib
from pathlib import Path
from typing import get_args

import pytest

from outbox_saga.database import Database
from tests.crash.cancelling import Canceller, Suspensions, When
from tests.crash.operation import is_sampled
from tests.crash.operations import MESSAGES
from tests.crash.world import World

STRIDE = {"sqlite": 113, "postgres18": 163, "mariadb": 163}
CASES = [(n, where) for n, o in MESSAGES.items() if o.cancels for where in o.databases]
UNITS = ("publish kinds async", "publish on async connections", "retry unit async")


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", UNITS)
def test_a_caller_who_is_cancelled_is_never_told_rolled_back_of_what_is_committed(
    name: str, world: World
) -> None:
    canceller = Canceller(world, MESSAGES[name])
    bad = [run for when in get_args(When) for run in canceller.every(when) if run.violations]
    assert not bad, "\n".join(str(run) for run in bad)
    assert canceller.told["unknown"] > 0
    assert canceller.told["rolled back"] > 0


@pytest.mark.parametrize(("name", "world"), CASES, indirect=["world"])
def test_wherever_a_task_is_cancelled_nothing_is_left_behind(
    name: str, world: World, soak: bool
) -> None:
    if not (soak or is_sampled(name, world.name)):
        pytest.skip("./dev soak, or ./dev prove 2.8")
    canceller = Canceller(world, MESSAGES[name])
    canceller.count()
    for when in get_args(When):
        stride = 1 if soak else STRIDE[world.name]
        first = 1 + zlib.crc32(f"{name} {world.name} {when}".encode()) % stride
        runs = canceller.every(when, step=stride, first=first)
        bad = [run for run in runs if run.violations]
        assert not bad, "\n".join(str(run) for run in bad)


async def test_a_cancelled_statement_that_has_rows_left_leaves_no_lock_behind(
    tmp_path: Path,
) -> None:
    """The row is written, its RETURNING is not read, and whoever waits for it is cancelled."""
    file = tmp_path / "rows.db"
    database = Database(f"sqlite:///{file}")
    with database.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (n INTEGER)")
    statement = "INSERT INTO t VALUES (1), (2) RETURNING n"

    async def write() -> None:
        await database.run(lambda connection: connection.exec_driver_sql(statement).all())

    loop, at = asyncio.get_running_loop(), 1
    locked: list[str] = []
    kept: list[BaseException | None] = []
    while True:
        suspensions = Suspensions(at, "answered")
        loop.set_task_factory(suspensions.make_task)
        suspensions.target = loop.create_task(write())
        loop.set_task_factory(None)
        ended = await asyncio.gather(suspensions.target, return_exceptions=True)
        if suspensions.count < at:
            break
        kept += ended  # as whoever logs an error does, and with it the cursor
        with sqlite3.connect(file, timeout=0, isolation_level=None) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                locked.append(suspensions.place)
            else:
                other.execute("ROLLBACK")
        at += 1
    assert not locked
    assert at > 5
    await database.close()


@pytest.mark.parametrize("world", ["mariadb"], indirect=True)
def test_a_cancelled_upgrade_is_cancelled_and_not_in_error(world: World) -> None:
    canceller = Canceller(world, MESSAGES["db upgrade async"])
    runs = [canceller.cancel(at, "at once") for at in range(13, 40, 4)]
    bad = [run for run in runs if run.violations]
    assert not bad, "\n".join(str(run) for run in bad)
