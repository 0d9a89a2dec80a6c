"""Errors that a handler catches although its transaction is lost, or raises although nobody can
carry them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError

from outbox_saga.envelopes import Envelope, seal
from outbox_saga.errors import CommitRefused, HandlerFailed
from outbox_saga.handler_context import HandlerContext, SyncHandlerContext
from outbox_saga.inbox import handle_once
from outbox_saga.queries.inbox import Arrival
from outbox_saga.worker_threads import WorkerThreads
from tests.relay.house import PATIENCE, House, Said, till

Deliver = Callable[..., Any]


@pytest.fixture
async def deliver(house: House) -> AsyncIterator[Deliver]:
    """`await deliver(envelope, handler)`, through one database and one pool of threads."""
    with WorkerThreads(4, "test") as threads:

        async def through(envelope: Envelope, handler: Any) -> Arrival:
            return await asyncio.wait_for(
                handle_once(
                    house.database, threads, "listener", envelope, Said, handler, source="t"
                ),
                PATIENCE,
            )

        yield through


def hello() -> Envelope:
    return seal(Said(word="hello"))


def note(session: Any, word: str = "hello") -> None:
    session.execute(sa.insert(till).values(note=word))


def clash(session: Any) -> None:
    session.execute(sa.insert(till).values(id=1000, note="twice"))


def handlers_of(body: Callable[[Any], None]) -> list[Any]:
    """The same handler as a plain function and as a coroutine function."""

    def in_thread(handle: SyncHandlerContext[Said]) -> None:
        body(handle.session)

    async def in_loop(handle: HandlerContext[Said]) -> None:
        await handle.session.run_sync(body)

    return [in_thread, in_loop]


@pytest.mark.databases("postgres18", "postgres15")
@pytest.mark.parametrize("kind", [0, 1], ids=["def", "async def"])
async def test_a_handler_that_catches_an_error_without_a_savepoint_has_not_handled_anything(
    house: House, deliver: Deliver, kind: int
) -> None:
    with house.eyes.begin() as connection:
        connection.execute(sa.insert(till).values(id=1000, note="once"))

    def body(session: Any) -> None:
        note(session)
        with suppress(DBAPIError):
            clash(session)

    envelope = hello()
    with pytest.raises(CommitRefused, match="begin_nested"):
        await deliver(envelope, handlers_of(body)[kind])
    assert (house.notes(), house.inbox()) == (["once"], [])


@pytest.mark.parametrize("kind", [0, 1], ids=["def", "async def"])
async def test_a_handler_that_catches_an_error_of_a_savepoint_has_handled_its_message(
    house: House, deliver: Deliver, kind: int
) -> None:
    with house.eyes.begin() as connection:
        connection.execute(sa.insert(till).values(id=1000, note="once"))

    def body(session: Any) -> None:
        note(session)
        with suppress(DBAPIError), session.begin_nested():
            clash(session)

    assert await deliver(hello(), handlers_of(body)[kind]) == "new"
    assert sorted(house.notes()) == ["hello", "once"]


@pytest.mark.databases("mariadb")
@pytest.mark.parametrize("kind", [0, 1], ids=["def", "async def"])
@pytest.mark.parametrize("code", [1213, 1205])
async def test_a_handler_that_catches_a_deadlock_or_a_lock_wait_has_not_handled_anything(
    house: House, deliver: Deliver, kind: int, code: int
) -> None:
    def body(session: Any) -> None:
        note(session)
        with suppress(DBAPIError):
            session.execute(
                sa.text(f"SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'no'")
            )
        note(session, "again")

    with pytest.raises(CommitRefused, match="whole unit"):
        await deliver(hello(), handlers_of(body)[kind])
    assert (house.notes(), house.inbox()) == ([], [])


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    "error",
    [
        StopIteration,
        SystemExit,
        KeyboardInterrupt,
        GeneratorExit,
        asyncio.CancelledError,
        concurrent.futures.CancelledError,
    ],
)
async def test_whatever_a_plain_function_raises_is_a_failure_of_the_handler(
    house: House, deliver: Deliver, error: type[BaseException]
) -> None:
    def handler(handle: SyncHandlerContext[Said]) -> None:
        note(handle.session)
        raise error

    with pytest.raises(HandlerFailed, match=error.__name__):
        await deliver(hello(), handler)
    assert (house.notes(), house.inbox()) == ([], [])


@pytest.mark.databases("mariadb")
@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE TABLE till",
        "/* x */ create table other (n int)",
        "# x\nALTER TABLE till ADD n int",
        "DROP TABLE IF EXISTS other",
        "LOCK TABLES till WRITE",
        "SET autocommit = 1",
        "SET @@session.autocommit=1",
    ],
)
async def test_a_handler_cannot_commit_its_transaction_by_a_statement_of_mariadb(
    house: House, deliver: Deliver, statement: str
) -> None:
    def handler(handle: SyncHandlerContext[Said]) -> None:
        note(handle.session)
        handle.session.execute(sa.text(statement))

    with pytest.raises(CommitRefused):
        await deliver(hello(), handler)
    assert (house.notes(), house.inbox()) == ([], [])


@pytest.mark.databases("mariadb")
async def test_a_handler_may_use_a_temporary_table(house: House, deliver: Deliver) -> None:
    def handler(handle: SyncHandlerContext[Said]) -> None:
        note(handle.session)
        handle.session.execute(sa.text("CREATE TEMPORARY TABLE scratch (n int)"))
        handle.session.execute(sa.text("DROP TEMPORARY TABLE scratch"))

    assert await deliver(hello(), handler) == "new"
    assert house.notes() == ["hello"]


@pytest.mark.parametrize("kind", [0, 1], ids=["def", "async def"])
async def test_an_error_of_the_database_does_not_show_values(
    house: House, deliver: Deliver, kind: int
) -> None:
    def body(session: Any) -> None:
        session.execute(sa.text("insert into missing (note) values (:note)"), {"note": "a secret"})

    with pytest.raises(DBAPIError) as raised:
        await deliver(hello(), handlers_of(body)[kind])
    assert "a secret" not in str(raised.value)


@pytest.mark.databases("sqlite")
async def test_a_handler_cancelled_in_a_statement_of_sqlite_leaves_no_lock(
    house: House, deliver: Deliver
) -> None:
    started = threading.Event()

    def begun() -> int:
        started.set()
        return 1

    async def handler(handle: HandlerContext[Said]) -> None:
        await handle.session.run_sync(note)
        connection = await handle.session.connection()
        raw: Any = await connection.get_raw_connection()
        await raw.driver_connection.create_function("begun", 0, begun)
        await handle.session.execute(
            sa.text(
                "with recursive c(x) as (select begun() union all select x + 1 from c "
                "where x < 10000000000) select max(x) from c"
            )
        )

    delivering = asyncio.create_task(deliver(hello(), handler))
    assert await asyncio.to_thread(started.wait, PATIENCE)
    delivering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(delivering, PATIENCE)
    eyes = sqlite3.connect(house.database.url.database or "", timeout=0, isolation_level=None)
    try:
        eyes.execute("BEGIN IMMEDIATE")
        eyes.execute("ROLLBACK")
    finally:
        eyes.close()
    assert (house.notes(), house.inbox()) == ([], [])


@pytest.mark.databases("sqlite", "postgres18")
async def test_the_log_has_no_text_of_what_a_plain_function_raises_when_nobody_waits_any_more(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    begun, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def late(handle: SyncHandlerContext[Said]) -> None:
        loop.call_soon_threadsafe(begun.set)
        go.wait(PATIENCE)
        raise ValueError(f"bad card {handle.message.word}")

    with WorkerThreads(1, "test") as threads:
        delivery = asyncio.create_task(
            handle_once(house.database, threads, "listener", hello(), Said, late, source="t")
        )
        await asyncio.wait_for(begun.wait(), PATIENCE)
        delivery.cancel()  # as a consumer does whose grace is over
        await asyncio.wait({delivery}, timeout=PATIENCE)
        assert delivery.cancelled()
        go.set()
    del delivery
    for _ in range(3):
        await asyncio.sleep(0)  # the thread has ended; its loop hears of it in two turns
    gc.collect()  # asyncio tells of errors that nobody took when they are collected
    told = [r.getMessage() for r in caplog.records if "nobody waited" in r.getMessage()]
    assert told == ["code that nobody waited for any more ended with ValueError"]
    assert "bad card" not in caplog.text


@pytest.mark.parametrize("kind", [0, 1], ids=["def", "async def"])
async def test_a_handler_whose_commit_a_hook_refuses_leaves_nothing_behind(
    house: House, deliver: Deliver, kind: int
) -> None:
    armed = [True]

    def committing(_: Any) -> None:
        if armed:
            armed.clear()
            raise ConnectionError("metrics")

    for engine in (house.database.engine, house.database.async_engine.sync_engine):
        event.listen(engine, "commit", committing)
    handler, envelope = handlers_of(note)[kind], hello()
    with pytest.raises(ConnectionError):
        await deliver(envelope, handler)
    assert await deliver(envelope, handler) == "new"
    assert (house.notes(), len(house.inbox())) == (["hello"], 1)


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("kind", [0, 1], ids=["def", "async def"])
async def test_a_handler_whose_commit_sqlite_refuses_does_not_hold_the_file(
    house: House, deliver: Deliver, kind: int
) -> None:
    with house.eyes.begin() as connection:
        connection.exec_driver_sql("create table customer (id integer primary key)")
        connection.exec_driver_sql(
            "create table bill (customer integer "
            "references customer (id) deferrable initially deferred)"
        )

    def body(session: Any) -> None:
        note(session)
        session.execute(sa.text("insert into bill (customer) values (7)"))

    try:
        with pytest.raises(IntegrityError):
            await deliver(hello(), handlers_of(body)[kind])
        with house.eyes.begin() as connection:
            connection.exec_driver_sql("insert into customer (id) values (7)")
        assert (house.notes(), house.inbox()) == ([], [])
    finally:
        with house.eyes.begin() as connection:
            connection.exec_driver_sql("drop table bill")
            connection.exec_driver_sql("drop table customer")
