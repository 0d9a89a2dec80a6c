"""One orchestrator in a process of its own: told what to do, it carries sagas on and reports.

Run as `python -m benchmarks.orchestrating '<JSON of an Order>'`; the same dialogue as with the
scripts of the peers. Claims are counted by what watches the queries here: a claim is lost when it
got nothing although something is due that nobody is known to have, or when another process had its
instance before a transition was stored.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import async_sessionmaker

from benchmarks.saga_steps import ACCOUNTS, IN_FLIGHT, Data, Kind, definition
from outbox_saga.database import Database
from outbox_saga.queries import leases, transition
from outbox_saga.queries.clock import Clock
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.orchestrator import Orchestrator
from outbox_saga.tables import Tables, tables_in
from outbox_saga.unit_of_work import unit_of_work


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked of it.

    Args:
        url: For sync engines.
        sagas: It works until so many have ended, whoever carried them on.
        kind: Of their steps.
        failing: Whether they are to be undone.
        start: It starts them, too, eight at a time; otherwise they are there.
    """

    url: str
    sagas: int
    kind: Kind
    failing: bool = False
    start: bool = False

    def told(self) -> str:
        """As an argument."""
        return json.dumps(asdict(self))


@dataclass(slots=True)
class Claims:
    """What became of them.

    Args:
        asked: Times that instances were claimed.
        taken: Instances.
        idle: Times that there was nothing to get.
        empty: Times that nothing was got although something was due.
        lost: Transitions of instances that somebody else had moved meanwhile.
    """

    asked: int = 0
    taken: int = 0
    idle: int = 0
    empty: int = 0
    lost: int = 0

    def watch(self) -> None:
        """From now on, in this process."""
        claim, record = leases.claim, transition.record

        def claiming(
            connection: sa.Connection,
            tables: Tables,
            clock: Clock,
            owner: UUID,
            lease: float,
            known: leases.Known,
            limit: int,
            *,
            suspects: bool = True,
        ) -> Any:
            told = (connection, tables, clock, owner)
            now, instances = claim(*told, lease, known, limit, suspects=suspects)
            self.asked += 1
            self.taken += len(instances)
            if not instances:
                due = leases.any_due(*told, known, suspects=suspects)
                self.empty += due
                self.idle += not due
            return now, instances

        def recording(*arguments: Any, **options: Any) -> bool:
            moved = record(*arguments, **options)
            self.lost += not moved
            return moved

        leases.claim = claiming
        transition.record = recording


async def connected(order: Order) -> Database:
    """The drivers are imported and both engines have asked the server what it is."""
    database = Database(order.url, pool_size=2 * IN_FLIGHT)
    await database.look(lambda c: c.exec_driver_sql("SELECT 1").scalar_one())
    with database.begin() as connection:
        connection.exec_driver_sql("SELECT 1").scalar_one()
    return database


async def work(order: Order, saga: Saga[Data], database: Database) -> None:
    """Until all have ended."""
    orchestrator = Orchestrator(database, [saga], concurrency=IN_FLIGHT)
    stop = asyncio.Event()
    running = asyncio.create_task(orchestrator.run(stop))
    if order.start:
        await _start(order, saga, database)
    await until_ended(database, order.sagas, "compensated" if order.failing else "completed")
    stop.set()
    await running
    orchestrator.close()
    await database.close()


async def _start(order: Order, saga: Saga[Data], database: Database) -> None:
    """Each in a transaction of its own, as a service would."""
    make = async_sessionmaker(database.async_engine)
    waiting = iter(range(order.sagas))

    async def client() -> None:
        for number in waiting:
            async with unit_of_work(make) as uow:
                saga.start(uow, Data(account=number % ACCOUNTS))

    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))


async def until_ended(database: Database, count: int, state: str) -> None:
    """Looks when about half of what was left should have ended, so that looking costs nothing to
    speak of.
    """
    saga = tables_in().saga
    question = sa.select(sa.func.count()).where(saga.c.state == state)
    begun = time.monotonic()
    while True:
        ended = await database.look(lambda c: c.execute(question).scalar_one())
        if ended >= count:
            return
        rate = max(1.0, ended / (time.monotonic() - begun))
        await asyncio.sleep(min(1.0, max(0.005, (count - ended) / rate / 2)))


def main() -> None:
    """One measurement."""
    order, claims = Order(**json.loads(sys.argv[1])), Claims()
    saga = definition(order.kind, failing=order.failing)
    claims.watch()
    with asyncio.Runner() as runner:
        database = runner.run(connected(order))
        gc.collect()
        print("ready", flush=True)
        sys.stdin.readline()
        cpu, began = time.process_time(), time.monotonic()
        runner.run(work(order, saga, database))
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    told = {"seconds": seconds, "cpu": cpu, "ended": order.sagas, "claims": asdict(claims)}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
