"""Real processes that a step kills, and what starts them anew.

`python -m tests.crash.deadly DATABASE URL FOLDER WHAT`.

The supervisor forks one process after another; each finds the database's clock a WHILE later than
the one before it, starts one more saga while there are ARRIVALS, and carries on what is due. The
saga of order 0 ends it by `os._exit`, always at the same place. A line for each life: how it ended
and the sagas that had ended by then.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga import Failure, Retry, Saga, StepContext, unit_of_work
from outbox_saga.database import Database
from outbox_saga.queries import sagas
from outbox_saga.saga.orchestrator import Orchestrator
from outbox_saga.testing.crash_points import CrashPoints
from tests.crash.append_log import AppendLog
from tests.crash.provider import Provider
from tests.crash.shop import PIECES, PRICE, OrderData, did
from tests.crash.tables import OURS, move, order
from tests.crash.world import World

LEASE = 30.0
WHILE = 62.0  # seconds: leases have run out, and every backoff has ended
LIVES = 60  # then something is wrong
NEIGHBOURS = 8  # sagas that are there from the beginning, beside the deadly one
ARRIVALS = 6
ROUND_TRIPS = 50  # of a neighbour's last step: if the deadly one is in hand, it comes first
TWICE = Retry(max_attempts=2)
DIED, IDLE = 66, 67  # exit codes
WARM = -1  # a life of the supervisor's own: what it has compiled, the others need not compile

KINDS = ("local", "local undo", "call", "call undo", "question")


class Deadly:
    """A saga of three steps, of which one kills the process if its order is number 0."""

    def __init__(self, world: World, what: str) -> None:
        self._what = what
        self._provider = Provider(world.ledger, CrashPoints(), world.questions)
        self._attempts = attempts(world.folder)

    def saga(self) -> Saga[OrderData]:
        """It."""
        outside: dict[str, Any] = {}
        if not self._what.startswith("local"):
            asks = self._what == "question"
            outside = {"external": True, "idempotent": not asks}
            outside["query"] = self.was_sent if asks else None
        action, undo = (self.charge, self.refund) if outside else (self.reserve, self.release)
        return (
            Saga("deadly", data=OrderData)
            .step("first", self.reserve, compensation=self.release)
            .step(
                "deadly",
                action,
                compensation=undo,
                retry=TWICE,
                compensation_retry=TWICE,
                timeout=5,
                **outside,
            )
            .step("last", self.last, compensation=self.release)
        )

    def _may_die(self, step: StepContext[OrderData], what: str) -> None:
        if step.step == "deadly" and step.data.order == 0 and what == self._what:
            self._attempts.append(attempt=step.attempt)
            os._exit(DIED)

    async def reserve(self, step: StepContext[OrderData]) -> None:
        for statement in (*move("stock", "reserved", PIECES), did(step)):
            await step.session.execute(statement)
        self._may_die(step, "local")

    async def release(self, step: StepContext[OrderData]) -> None:
        for statement in (*move("reserved", "stock", PIECES), did(step)):
            await step.session.execute(statement)
        self._may_die(step, "local undo")

    async def charge(self, step: StepContext[OrderData]) -> None:
        self._provider.act(step, PRICE, once=self._what != "question")
        self._may_die(step, "call")
        if self._what == "question" and step.data.order == 0:
            raise ConnectionError("the answer was lost")

    async def refund(self, step: StepContext[OrderData]) -> None:
        self._provider.act(step, -PRICE)
        self._may_die(step, "call undo")

    async def was_sent(self, step: StepContext[OrderData]) -> dict[str, str] | None:
        self._may_die(step, "question")
        return {"answer": "sent"} if self._provider.knows(step) else None

    async def last(self, step: StepContext[OrderData]) -> Failure[str] | None:
        if step.data.order == 0:
            return Failure("not today")
        for _ in range(ROUND_TRIPS):
            await step.session.execute(sa.select(1))
        await self.reserve(step)
        return None


def attempts(folder: Path) -> AppendLog:
    """Each attempt that killed a process."""
    return AppendLog(folder / "deadly.jsonl")


def start(database: Database, saga: Saga[OrderData], number: int) -> None:
    """One more saga, and its order."""
    make = sessionmaker(database.engine, class_=Session)
    with unit_of_work(make, source="crash") as uow:
        id_ = saga.start(uow, OrderData(order=number), business_key=f"order:{number}")
        uow.session.execute(sa.insert(order).values(saga_id=str(id_)))


def live(world: World, what: str, life: int) -> int:
    """One process, from its start to its end; the exit code."""
    database = world.database(life * WHILE)
    saga = Deadly(world, what).saga()
    if life == WARM:
        start(database, saga, WARM)
    elif life == 0:
        for number in range(NEIGHBOURS + 1):
            start(database, saga, number)
    elif life <= ARRIVALS:
        start(database, saga, NEIGHBOURS + life)

    async def carried_on() -> int:
        orchestrator = Orchestrator(database, [saga], lease=LEASE)
        while await orchestrator.run_once():
            pass
        left = await database.look(sagas.unfinished, OURS)
        orchestrator.close()
        await database.close()
        return IDLE if left else 0

    return asyncio.run(carried_on())


def ended(world: World) -> dict[str, str]:
    """The state of each saga that has ended, by its business key."""
    table = OURS.saga
    # no connection is open when a process is forked
    with sa.create_engine(world.url, poolclass=sa.NullPool).connect() as connection:
        rows = connection.execute(
            sa.select(table.c.business_key, table.c.state).where(table.c.ended_at.is_not(None))
        )
        return {row.business_key: row.state for row in rows}


def main() -> None:
    """Reads the command line, and starts processes until every saga has ended."""
    name, url, folder, what = sys.argv[1:]
    world = World(name, url, Path(folder))
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    live(world, what, WARM)
    for life in range(LIVES):
        pid = os.fork()  # nothing is connected yet, and no thread runs
        if pid == 0:
            code = 1
            try:
                code = live(world, what, life)
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        sys.stdout.write(json.dumps({"code": code, "ended": ended(world)}) + "\n")
        if code == 0:
            return
        if code not in (DIED, IDLE):
            sys.exit(f"life {life} ended by itself, with {code}")
    sys.exit(f"not at an end after {LIVES} lives")


if __name__ == "__main__":
    main()
