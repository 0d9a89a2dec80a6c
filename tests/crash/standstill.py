"""An orchestrator stands still (SIGSTOP) at a statement boundary; another one takes over.

Then the first goes on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from outbox_saga.testing.crash_points import CrashPoints
from tests.crash import tables
from tests.crash.operation import Operation
from tests.crash.operations import saga
from tests.crash.oracle import violations
from tests.crash.orchestrating import LEASE
from tests.crash.process import Process
from tests.crash.tables import OURS
from tests.crash.world import World

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0  # seconds after which an experiment has failed, whatever its bar
LOOK_AGAIN = 0.01


@dataclass(frozen=True)
class Standstill:
    """What came of one.

    Args:
        at: The point.
        locks: Row locks and advisory locks that the stopped process held.
        takeover: Seconds from the stop until another process had ended the saga; None: never.
        wrong: What must not be.
        asked_again: Requests that the provider got afterwards and knew by their key.
    """

    saga: str
    at: int
    locks: int
    takeover: float | None
    wrong: list[str]
    asked_again: int = 0


def points_of(world: World, name: str) -> list[str]:
    """The points that an orchestrator comes to, from its first look to the end of the saga."""
    operation = saga(name)
    _prepare(world, operation)

    async def counted() -> list[str]:
        process = Process(world, CrashPoints(), sagas=operation.sagas)
        async with process.database.async_engine.connect():
            pass
        process.points.names.clear()
        await process.carry_on()
        await process.end()
        return process.points.names

    return asyncio.run(counted())


def stand_still(world: World, name: str, at: int) -> Standstill:
    """The experiment at this point."""
    operation = saga(name)
    _prepare(world, operation)
    with (
        _orchestrator(world, name, at) as first,
        _orchestrator(world, name, 0) as second,
    ):
        _go(first)
        _until_stopped(first)
        stopped_at = time.monotonic()
        locks = _locks(world)
        _go(second)
        _until(lambda: world.unfinished() == 0, stopped_at + PATIENCE / 2)
        takeover = None if world.unfinished() else time.monotonic() - stopped_at
        before, requests = _everything(world), len(world.ledger.read())
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=PATIENCE)
        after = _everything(world)
        _, told = second.communicate(timeout=PATIENCE)
    wrong = [str(v) for v in violations(operation, world.facts()) if v.invariant != "I3"]
    if first.returncode or second.returncode:
        wrong.append(f"exit codes {first.returncode}, {second.returncode}: {told[-500:]}")
    if takeover is None:
        wrong.append(f"no takeover; the other process said: {told[-2000:]}")
    wrong += [
        f"{table}: {before[table]} became {after[table]}"
        for table in before
        if before[table] != after[table]
    ]
    asked_again = len(world.ledger.read()) - requests
    return Standstill(name, at, locks, takeover, wrong, asked_again)


def bar(step_timeout: float) -> float:
    """Seconds within which another process has taken over."""
    return LEASE + step_timeout + 2.0


def _prepare(world: World, operation: Operation) -> None:
    async def prepared() -> None:
        process = Process(world, CrashPoints(), sagas=operation.sagas)
        await operation.prepare(process)
        await process.end()

    world.empty()
    asyncio.run(prepared())


@contextmanager
def _orchestrator(world: World, name: str, at: int) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.crash.orchestrating",
            world.name,
            world.url,
            str(world.folder),
            name,
            str(at),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        if child.stdout.readline().strip() != "ready":
            raise AssertionError(f"no orchestrator: {child.communicate()[1][-2000:]}")
        yield child
    finally:
        child.kill()
        child.communicate()


def _go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def _until_stopped(child: subprocess.Popen[str]) -> None:
    """Returns when the kernel says so."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if found is not None:
            if found.si_code != os.CLD_STOPPED:
                raise AssertionError(
                    f"the process ended before its point: {child.communicate()[1]}"
                )
            return
        time.sleep(LOOK_AGAIN)
    raise TimeoutError("the process did not come to its point")


def _until(condition: Any, deadline: float | None = None) -> None:
    """Returns when the other process has brought it about, or the deadline has passed."""
    deadline = deadline or time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(LOOK_AGAIN)


def _locks(world: World) -> int:
    statement = sa.text(
        "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
        "WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() "
        "AND a.state LIKE 'idle in transaction%' "
        "AND (l.mode IN ('RowExclusiveLock', 'RowShareLock') OR l.locktype = 'advisory')"
    )
    with world.observer.connect() as connection:
        return int(connection.execute(statement).scalar_one())


def _everything(world: World) -> dict[str, list[str]]:
    """Every row of every table that an orchestrator could change, and what the provider did.

    A process that stands still between the last line of ours and the first byte of its request
    sends it when it goes on: nothing on our side can take that back. The provider knows the key,
    and does nothing; that it was asked again is no change.
    """
    kept = {OURS.partition_lease, OURS.key_lock}
    all_tables = (*OURS.metadata.tables.values(), *tables.metadata.tables.values())
    with world.observer.connect() as connection:
        found = {
            table.name: sorted(repr(row) for row in connection.execute(sa.select(table)))
            for table in all_tables
            if table not in kept
        }
    found["ledger"] = [repr(line) for line in world.ledger.read() if line["effective"]]
    return found
