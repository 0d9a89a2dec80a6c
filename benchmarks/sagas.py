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
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel

from benchmarks import databases
from benchmarks.load import Watch
from benchmarks.measuring import Effort, Group, Sample, Variant, compare
from outbox_saga.database import Database
from outbox_saga.ids import new_id
from outbox_saga.messages import Event
from outbox_saga.saga.context import StepContext, SyncStepContext
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.orchestrator import Orchestrator
from outbox_saga.saga.steps import nothing_to_undo
from outbox_saga.tables import Tables, tables_in
from outbox_saga.unit_of_work import UnitOfWork

NAME = "sagas"
UNIT = "sagas/s"
IN_FLIGHT = 8
STEPS = ("reserve", "charge", "ship")
SAGAS, QUICK_SAGAS = 600, 150
ACCOUNTS = 10_000

_ACCOUNT = sa.Table(
    "bench_saga_account",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("balance", sa.BigInteger, nullable=False),
)
_CHANGE = (
    sa.update(_ACCOUNT)
    .where(_ACCOUNT.c.id == sa.bindparam("account"))
    .values(balance=_ACCOUNT.c.balance + 1)
)


class Data(BaseModel):
    """The data of a saga."""

    account: int


class Stepped(Event, topic="steps"):
    """What each step publishes."""

    account: int
    step: str


async def _async_step(step: StepContext[Data]) -> None:
    await step.session.execute(_CHANGE, {"account": step.data.account})
    step.publish(Stepped(account=step.data.account, step=step.step), key=str(step.saga_id))


def _sync_step(step: SyncStepContext[Data]) -> None:
    step.session.execute(_CHANGE, {"account": step.data.account})
    step.publish(Stepped(account=step.data.account, step=step.step), key=str(step.saga_id))


def _definition(action: Callable[[Any], Any]) -> Saga[Data]:
    saga = Saga("bench", data=Data)
    for name in STEPS:
        saga.step(name, action, compensation=nothing_to_undo)
    return saga


@dataclass(frozen=True, slots=True)
class _Started:
    """Sagas that are started and not yet carried on."""

    url: str
    count: int

    def begin_again(self, definition: Saga[Data]) -> list[UUID]:
        """That many new ones, and nothing else."""
        database, tables = Database(self.url, pool_size=1), tables_in()
        with database.begin() as connection:
            for table in (tables.outbox, tables.saga, tables.saga_history):
                connection.exec_driver_sql(f"TRUNCATE TABLE {table.name}")
        ids = []
        for numbers in _chunks(range(self.count), 100):
            with database.begin() as connection:
                uow = UnitOfWork(connection)
                ids += [definition.start(uow, Data(account=n % ACCOUNTS)) for n in numbers]
        with database.engine.connect() as connection:
            automatic = connection.execution_options(isolation_level="AUTOCOMMIT")
            automatic.exec_driver_sql(f"VACUUM ANALYZE {tables.saga.name}")
            automatic.exec_driver_sql("CHECKPOINT")
        database.engine.dispose()
        return ids

    def check(self) -> None:
        """Every effect, message and history row is there, whoever made them."""
        database, tables = Database(self.url, pool_size=1), tables_in()
        steps = self.count * len(STEPS)
        with database.begin() as connection:
            done = tables.saga_history.c.transition == "STEP_COMPLETED"
            found = {
                "messages": _count(connection, tables.outbox),
                "completed steps": _count(connection, tables.saga_history, done),
            }
            ended = _count(connection, tables.saga, tables.saga.c.state == "completed")
        database.engine.dispose()
        if ended != self.count or set(found.values()) != {steps}:
            raise RuntimeError(f"{ended} of {self.count} sagas completed, of {steps}: {found}")


def _count(connection: sa.Connection, table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
    return connection.execute(
        sa.select(sa.func.count()).select_from(table).where(*where)
    ).scalar_one()


def _chunks(numbers: range, size: int) -> Iterator[range]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def measure(effort: Effort) -> Iterator[Group]:
    """Async and plain `def` steps, on PostgreSQL."""
    with databases.postgres() as place:
        database = Database(place.url)
        with database.begin() as connection:
            _ACCOUNT.create(connection)
            connection.execute(
                sa.insert(_ACCOUNT), [{"id": n, "balance": 0} for n in range(ACCOUNTS)]
            )
        database.engine.dispose()
        started = _Started(place.url, QUICK_SAGAS if effort.quick else SAGAS)
        for kind, action, floor in (
            ("async", _async_step, _async_floor),
            ("def", _sync_step, _sync_floor),
        ):
            definition = _definition(action)
            floor_name = f"Core by hand, {kind}"
            setting = (
                f"{place.name}, {len(STEPS)} local steps, {IN_FLIGHT} in flight, {kind} steps"
            )
            variants = [
                Variant(floor_name, _measurement(started, definition, floor)),
                Variant(
                    f"Orchestrator, {kind} steps",
                    _measurement(started, definition, _orchestrated(definition)),
                    floor_name,
                ),
            ]
            yield compare(NAME, setting, UNIT, variants, effort)


Work = Callable[[str, list[UUID]], Awaitable[None]]


def _measurement(started: _Started, definition: Saga[Data], work: Work) -> Callable[[], Sample]:
    def run() -> Sample:
        ids = started.begin_again(definition)

        async def timed() -> tuple[float, float]:
            cpu, began = time.process_time(), time.monotonic()
            await work(started.url, ids)
            return time.monotonic() - began, time.process_time() - cpu

        with Watch() as watch:
            seconds, cpu = asyncio.run(timed())
        started.check()
        return Sample(started.count, seconds, cpu, watch.ours, watch.foreign)

    return run


# --- candidate -----------------------------------------------------------------------------------


def _orchestrated(definition: Saga[Data]) -> Work:
    async def work(url: str, ids: list[UUID]) -> None:
        database = Database(url, pool_size=IN_FLIGHT + 2)
        orchestrator = Orchestrator(database, [definition], concurrency=IN_FLIGHT)
        stop = asyncio.Event()
        running = asyncio.create_task(orchestrator.run(stop))
        await _until_ended(database, len(ids))
        stop.set()
        await running
        orchestrator.close()
        await database.close()

    return work


async def _until_ended(database: Database, count: int) -> None:
    """Looks seldom while much is left, so that looking costs nothing to speak of."""
    saga = tables_in().saga
    question = sa.select(sa.func.count()).where(saga.c.state == "completed")
    while True:
        left = count - await database.look(lambda c: c.execute(question).scalar_one())
        if left <= 0:
            return
        await asyncio.sleep(min(0.2, max(0.005, left * 0.0005)))


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
        connection.execute(_CHANGE, {"account": account})
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
