"""Sagas: three local steps each, eight in flight, one orchestrator process.

Each step is one Core UPDATE and publishes one event. The floor does, by hand and with SQLAlchemy
Core, what a step must write, in one transaction per step: the business UPDATE, the saga row by
compare-and-set, one history row, one outbox row. It knows which saga comes next: no claiming, no
leases, no reading, no decisions, no checks.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import sqlalchemy as sa

from benchmarks import databases
from benchmarks.load import Watch
from benchmarks.measuring import Effort, Group, Sample, Variant, compare
from benchmarks.orchestrating import until_ended
from benchmarks.saga_steps import ACCOUNTS, DO, IN_FLIGHT, STEPS, Data, Ground, Kind, definition
from outbox_saga.database import Database
from outbox_saga.ids import new_id
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.orchestrator import Orchestrator
from outbox_saga.tables import Tables, tables_in

NAME = "sagas"
UNIT = "sagas/s"
SAGAS, QUICK_SAGAS = 600, 150


def measure(effort: Effort) -> Iterator[Group]:
    """Async and plain `def` steps, on PostgreSQL."""
    with databases.postgres() as place:
        ground = Ground(place.url, QUICK_SAGAS if effort.quick else SAGAS)
        ground.prepare()
        for kind in FLOORS:
            setting = (
                f"{place.name}, {len(STEPS)} local steps, {IN_FLIGHT} in flight, {kind} steps"
            )
            yield compare(NAME, setting, UNIT, against_the_floor(ground, kind), effort)


def against_the_floor(ground: Ground, kind: Kind) -> list[Variant]:
    """What must be written, by hand, and the orchestrator, which carries on what is there."""
    saga, floor = definition(kind), f"Core by hand, {kind}"
    return [
        Variant(floor, _measurement(ground, saga, FLOORS[kind])),
        Variant(
            f"Orchestrator, {kind} steps", _measurement(ground, saga, _orchestrated(saga)), floor
        ),
    ]


Work = Callable[[str, list[UUID]], Awaitable[None]]


def _measurement(ground: Ground, saga: Saga[Data], work: Work) -> Callable[[], Sample]:
    def run() -> Sample:
        ids = ground.begin_again(saga)

        async def timed() -> tuple[float, float]:
            cpu, began = time.process_time(), time.monotonic()
            await work(ground.url, ids)
            return time.monotonic() - began, time.process_time() - cpu

        with Watch() as watch:
            seconds, cpu = asyncio.run(timed())
        ground.check()
        return Sample(ground.count, seconds, cpu, watch.ours, watch.foreign)

    return run


# --- candidate -----------------------------------------------------------------------------------


def _orchestrated(saga: Saga[Data]) -> Work:
    async def work(url: str, ids: list[UUID]) -> None:
        database = Database(url, pool_size=IN_FLIGHT + 2)
        orchestrator = Orchestrator(database, [saga], concurrency=IN_FLIGHT)
        stop = asyncio.Event()
        running = asyncio.create_task(orchestrator.run(stop))
        await until_ended(database, len(ids), "completed")
        stop.set()
        await running
        orchestrator.close()
        await database.close()

    return work


# --- floor ---------------------------------------------------------------------------------------


class _Statements:
    """What a step must write, made once."""

    def __init__(self, tables: Tables) -> None:
        saga = tables.saga
        now = sa.func.clock_timestamp()
        self.compare_and_set = (
            sa.update(saga)
            .where(saga.c.id == sa.bindparam("saga"), saga.c.revision == sa.bindparam("seen"))
            .values(
                state=sa.bindparam("next_state"),
                revision=saga.c.revision + 1,
                progress=sa.bindparam("next_progress"),
                updated_at=now,
            )
        )
        self.add_history = sa.insert(tables.saga_history).values(at=now)
        self.publish = sa.insert(tables.outbox).values(created_at=now).inline()

    def step(self, connection: sa.Connection, saga: UUID, number: int, account: int) -> None:
        """One step's four statements; the caller's transaction ends it."""
        connection.execute(DO, {"account": account})
        changed = connection.execute(
            self.compare_and_set,
            {
                "saga": saga,
                "seen": number,
                "next_state": "completed" if number + 1 == len(STEPS) else "running",
                "next_progress": '{"steps":{}}',
            },
        )
        assert changed.rowcount == 1
        connection.execute(
            self.add_history,
            {
                "saga_id": saga,
                "number": (number + 1) * 1000,
                "revision": number + 1,
                "transition": "STEP_COMPLETED",
                "step": STEPS[number],
                "attempt": 1,
            },
        )
        connection.execute(
            self.publish,
            {
                "id": new_id(),
                "partition": number,
                "topic": "steps",
                "key": str(saga),
                "headers": '{"type":"Stepped"}',
                "body": b'{"account":1,"step":"reserve"}',
            },
        )


async def _async_floor(url: str, ids: list[UUID]) -> None:
    engine = Database(url, pool_size=IN_FLIGHT).async_engine
    statements = _Statements(tables_in())
    waiting = iter(enumerate(ids))

    async def client() -> None:
        for account, saga in waiting:
            for number in range(len(STEPS)):
                async with engine.begin() as connection:
                    await connection.run_sync(statements.step, saga, number, account % ACCOUNTS)

    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    await engine.dispose()


async def _sync_floor(url: str, ids: list[UUID]) -> None:
    engine = Database(url, pool_size=IN_FLIGHT).engine
    statements = _Statements(tables_in())
    take = itertools.count().__next__  # atomic: no two threads get one number

    def client() -> None:
        while (taken := take()) < len(ids):
            for number in range(len(STEPS)):
                with engine.begin() as connection:
                    statements.step(connection, ids[taken], number, taken % ACCOUNTS)

    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(threads, client) for _ in range(IN_FLIGHT)))
    engine.dispose()


FLOORS: dict[Kind, Work] = {"async": _async_floor, "def": _sync_floor}
