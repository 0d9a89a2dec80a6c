"""The write side: every way in which a transaction publishes, or does not."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga.commits import interrupted_commit
from outbox_saga.errors import CommitUnknown, OutboxFull
from outbox_saga.queries import backlog
from outbox_saga.unit_of_work import UnitOfWork, unit_of_work
from outbox_saga.unit_retries import retry_unit
from tests.crash.operation import Operation, nothing
from tests.crash.process import Process
from tests.crash.shop import OrderData, Said, intended, noted
from tests.crash.tables import order

Publish = Callable[[UnitOfWork[Any]], list[sa.Insert]]


@contextmanager
def reported(process: Process, ids: list[UUID]) -> Iterator[None]:
    """What the caller of this transaction is told of it, whatever ends it; the dead say nothing.

    A cancellation says "unknown" if, and only if, `interrupted_commit` finds that it left it so.
    """
    try:
        yield
    except BaseException as error:
        if not process.points.dead:
            unknown = interrupted_commit(error)
            told = "rolled back" if unknown is None else "unknown"
            process.report(ids, told, unknown)
        raise
    process.report(ids, "committed", None)


class Abandoned(Exception):
    """A unit of work that ends with an error of its own."""


# --- one transaction after another ---------------------------------------------------------------


def _statements(uow: UnitOfWork[Any], process: Process, number: int) -> list[sa.Insert]:
    """A transaction: three messages, the start of a saga, and a business row for each."""
    id_ = process.shop.sagas["local-async"].start(
        uow, OrderData(order=number), business_key=f"order:{number}"
    )
    statements = [sa.insert(order).values(saga_id=str(id_))]
    for word, key in (("first", "one"), ("second", "two"), ("third", "one"), ("fourth", None)):
        statement, _ = noted(uow.publish, Said(word=f"{word} {number}"), key)
        statements.append(statement)
    return statements


async def publish_sync(process: Process) -> None:
    """Two transactions on a Session."""
    make = sessionmaker(process.database.engine, class_=Session)
    for number in (1, 2):
        with unit_of_work(make, source="crash") as uow:
            for statement in _statements(uow, process, number):
                uow.session.execute(statement)


async def publish_async(process: Process) -> None:
    """Two transactions on an AsyncSession."""
    make = async_sessionmaker(process.database.async_engine, class_=AsyncSession)
    for number in (1, 2):
        async with unit_of_work(make, source="crash") as uow:
            for statement in _statements(uow, process, number):
                await uow.session.execute(statement)


# --- everything else a unit of work publishes ----------------------------------------------------


def many(uow: UnitOfWork[Any], number: int, ids: list[UUID]) -> list[sa.Insert]:
    """Many at once, bodies that are ready, and delayed ones, of one key and of none."""
    several = [Said(word=f"many {number} {n}") for n in range(3)]
    ids += uow.publish_many(several, key="many")
    statements = [
        intended(str(id_), "many", message.to_body())
        for id_, message in zip(ids, several, strict=True)
    ]
    body = b'{"word":"ready %d"}' % number
    ready = uow.publish_body(body, topic="crash", type="Said", key="many")
    statements.append(intended(str(ready), "many", body))
    ids.append(ready)
    for word, key in (("late", "many"), ("much", None)):
        message = Said(word=f"{word} {number}")
        statement, id_ = noted(uow.publish, message, key, ordered=False, delay=60.0)
        statements.append(statement)
        ids.append(id_)
    return statements


async def kinds_sync(process: Process) -> None:
    """A unit that commits but for a savepoint, one that is abandoned, and one by the service."""
    make = sessionmaker(process.database.engine, class_=Session)
    ids: list[UUID] = []
    with reported(process, ids), unit_of_work(make, source="crash") as uow:
        for statement in many(uow, 1, ids):
            uow.session.execute(statement)
        inner = uow.session.begin_nested()
        uow.session.execute(noted(uow.publish, Said(word="never 1"), "many")[0])
        inner.rollback()
    ids = []
    try:
        with reported(process, ids), unit_of_work(make, source="crash") as uow:
            for statement in many(uow, 2, ids):
                uow.session.execute(statement)
            raise Abandoned  # noqa: TRY301 - it is what the unit is about
    except Abandoned:
        pass
    ids = []
    with reported(process, ids), process.service.unit_of_work() as uow:
        for statement in many(uow, 3, ids):
            uow.session.execute(statement)


async def kinds_async(process: Process) -> None:
    """As `kinds_sync`, on AsyncSessions."""
    make = async_sessionmaker(process.database.async_engine, class_=AsyncSession)
    ids: list[UUID] = []
    with reported(process, ids):
        async with unit_of_work(make, source="crash") as uow:
            for statement in many(uow, 1, ids):
                await uow.session.execute(statement)
            inner = await uow.session.begin_nested()
            await uow.session.execute(noted(uow.publish, Said(word="never 1"), "many")[0])
            await inner.rollback()
    ids = []
    try:
        with reported(process, ids):
            async with unit_of_work(make, source="crash") as uow:
                for statement in many(uow, 2, ids):
                    await uow.session.execute(statement)
                raise Abandoned  # noqa: TRY301
    except Abandoned:
        pass
    ids = []
    with reported(process, ids):
        async with process.service.unit_of_work() as uow:
            for statement in many(uow, 3, ids):
                await uow.session.execute(statement)


async def on_connections(process: Process) -> None:
    """The caller's own transactions, on a Connection and on a Session that it commits itself."""
    ids: list[UUID] = []
    with reported(process, ids), process.database.engine.begin() as connection:
        for statement in many(UnitOfWork(connection, source="crash"), 1, ids):
            connection.execute(statement)
    ids = []
    with reported(process, ids), Session(process.database.engine) as session:
        session.begin()
        for statement in many(process.service.work_in(session), 2, ids):
            session.execute(statement)
        session.commit()


async def on_own_async_sessions(process: Process) -> None:
    """The caller's own transactions, on an AsyncSession and on an AsyncConnection."""
    engine = process.database.async_engine
    ids: list[UUID] = []
    async with AsyncSession(engine) as session:
        with reported(process, ids):
            async with session.begin():
                for statement in many(UnitOfWork(session, source="crash"), 1, ids):
                    await session.execute(statement)
    ids = []
    async with engine.connect() as connection:
        with reported(process, ids):
            async with connection.begin():
                for statement in many(UnitOfWork(connection, source="crash"), 2, ids):
                    await connection.execute(statement)


async def refused_when_full(process: Process) -> None:
    """Two transactions, of which the second finds as many messages as may wait."""
    backlog._counts.clear()  # what earlier runs counted is a second old at most
    make = sessionmaker(process.database.engine, class_=Session)
    for number in (1, 2):
        ids: list[UUID] = []
        try:
            with (
                reported(process, ids),
                unit_of_work(make, source="crash", max_pending=3) as uow,
            ):
                for statement in many(uow, number, ids):
                    uow.session.execute(statement)
        except OutboxFull:
            assert number == 2
        else:
            assert number == 1
        backlog._counts.clear()


# --- again, when the database was in trouble -----------------------------------------------------


def passing_trouble(engine: sa.Engine) -> OperationalError:
    """An error by which this database gives a transaction up, as its driver raises it."""
    kind = engine.dialect.name
    if kind == "postgresql":
        import psycopg.errors

        original: Exception = psycopg.errors.SerializationFailure("planned")
    elif kind == "sqlite":
        original = sqlite3.OperationalError("database is locked")
        original.sqlite_errorcode = sqlite3.SQLITE_BUSY
    else:
        import pymysql.err

        original = pymysql.err.OperationalError(1213, "planned")
    return OperationalError(None, None, original)


async def retried_sync(process: Process) -> None:
    """A unit whose first attempt the database gives up when all its work is done."""
    make = sessionmaker(process.database.engine, class_=Session)
    attempts: list[list[UUID]] = []

    def work(uow: UnitOfWork[Session]) -> int:
        attempts.append([])
        for statement in many(uow, len(attempts), attempts[-1]):
            uow.session.execute(statement)
        if len(attempts) < 2:
            raise passing_trouble(process.database.engine)
        return len(attempts)

    assert retry_unit(make, work, sleep=lambda _: None, source="crash") == 2
    process.report(attempts[0], "rolled back", None)
    process.report(attempts[1], "committed", None)


async def retried_async(process: Process) -> None:
    """As `retried_sync`, on an AsyncSession."""
    make = async_sessionmaker(process.database.async_engine, class_=AsyncSession)
    attempts: list[list[UUID]] = []

    async def work(uow: UnitOfWork[AsyncSession]) -> int:
        attempts.append([])
        for statement in many(uow, len(attempts), attempts[-1]):
            await uow.session.execute(statement)
        if len(attempts) < 2:
            raise passing_trouble(process.database.engine)
        return len(attempts)

    try:
        assert await retry_unit(make, work, sleep=_no_time, source="crash") == 2
    except BaseException as error:
        if not process.points.dead:
            unknown: CommitUnknown | None = interrupted_commit(error)
            told = "rolled back" if unknown is None else "unknown"
            for ids in attempts[:-1]:
                process.report(ids, "rolled back", None)
            for ids in attempts[-1:]:
                process.report(ids, told, unknown)
        raise
    process.report(attempts[0], "rolled back", None)
    process.report(attempts[1], "committed", None)


async def _no_time(_: float) -> None:
    pass


FIRST = (
    Operation("publish sync", nothing, publish_sync, sagas=("local-async",)),
    Operation("publish async", nothing, publish_async, sagas=("local-async",), cancels=True),
)
PUBLISHING = (
    *FIRST,
    Operation("publish kinds sync", nothing, kinds_sync),
    Operation("publish kinds async", nothing, kinds_async, cancels=True),
    Operation("publish on connections", nothing, on_connections),
    Operation("publish on async connections", nothing, on_own_async_sessions, cancels=True),
    Operation("publish when full", nothing, refused_when_full),
    Operation("retry unit sync", nothing, retried_sync),
    Operation("retry unit async", nothing, retried_async, cancels=True),
)
