"""How transactions end: commit, rollback, close, failure, oblivion; what is left for the next."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga.errors import MessageRefused, NoTransaction
from outbox_saga.queries.outbox import lock_number
from outbox_saga.unit_of_work import UnitOfWork, unit_of_work
from tests.write_path.shop import INSERT, Order, Said, Shop, order, say


class BusinessError(Exception):
    """A reason of the caller's own."""


# --- the block ----------------------------------------------------------------------------------


def test_the_block_commits_both(shop: Shop) -> None:
    with unit_of_work(sessionmaker(shop.engine)) as uow:
        order(uow.session, "row")
        uow.publish(Said(word="said"), key="order:1")
    assert (shop.words(), shop.notes()) == (["said"], ["row"])


def test_a_block_that_raises_commits_neither(shop: Shop) -> None:
    def run() -> None:
        with unit_of_work(sessionmaker(shop.engine)) as uow:
            order(uow.session, "row")
            uow.session.flush()
            uow.publish(Said(word="said"))
            raise BusinessError

    with pytest.raises(BusinessError):
        run()
    assert (shop.words(), shop.notes()) == ([], [])


async def test_the_async_block_commits_both(shop: Shop, async_engine: AsyncEngine) -> None:
    async with unit_of_work(async_sessionmaker(async_engine)) as uow:
        uow.session.add(Order(note="row"))
        uow.publish(Said(word="said"))
    async with unit_of_work(async_sessionmaker(async_engine)) as uow:
        uow.publish(Said(word="without sql"))
    assert (shop.words(), shop.notes()) == (["said", "without sql"], ["row"])


async def test_an_async_block_that_raises_commits_neither(
    shop: Shop, async_engine: AsyncEngine
) -> None:
    async def run() -> None:
        async with unit_of_work(async_sessionmaker(async_engine)) as uow:
            uow.session.add(Order(note="row"))
            uow.publish(Said(word="said"))
            raise BusinessError

    with pytest.raises(BusinessError):
        await run()
    assert (shop.words(), shop.notes()) == ([], [])


# --- order and number ---------------------------------------------------------------------------


def test_rows_stand_in_the_order_of_publishing(shop: Shop) -> None:
    with Session(shop.engine) as session, session.begin():
        for number in range(2500):
            say(session, number, key=None if number % 3 else f"k{number % 7}")
    assert shop.words() == [str(number) for number in range(2500)]


async def test_so_they_do_from_an_async_session(shop: Shop, async_engine: AsyncEngine) -> None:
    async with AsyncSession(async_engine) as session, session.begin():
        for number in range(1500):
            say(session, number, key=f"k{number % 7}")
    assert shop.words() == [str(number) for number in range(1500)]


def test_ten_thousand_messages_with_ten_thousand_keys_leave_in_one_transaction(shop: Shop) -> None:
    with Session(shop.engine) as session, session.begin():
        for number in range(10_000):
            say(session, number, key=f"order:{number}")
    rows = shop.rows()
    assert [row.key for row in rows] == [f"order:{number}" for number in range(10_000)]
    assert len({lock_number(row.key) for row in rows if row.key is not None}) == 1024


def test_many_large_bodies_leave_in_one_transaction(shop: Shop) -> None:
    """More than one packet of MariaDB can hold."""
    body = b'"' + b"x" * (256 * 1024 - 2) + b'"'
    with Session(shop.engine) as session, session.begin():
        uow = UnitOfWork(session)
        for number in range(80):
            uow.publish_body(body, topic="talk", type="Said", key=f"k{number}")
    rows = shop.rows()
    assert [row.key for row in rows] == [f"k{number}" for number in range(80)]
    assert all(row.body == body for row in rows)


def test_publish_many_keeps_all_or_none(shop: Shop) -> None:
    class Free(Said):
        anything: Any = None

    with Session(shop.engine) as session, session.begin():
        uow = UnitOfWork(session)
        with pytest.raises(MessageRefused):
            uow.publish_many([Free(word="first"), Free(word="bad", anything=float("nan"))])
        uow.publish_many([Free(word="second"), Free(word="third")], key="k")
    assert shop.words() == ["second", "third"]


# --- no transaction -----------------------------------------------------------------------------


def test_publishing_before_the_transaction_begins_is_refused(shop: Shop) -> None:
    with Session(shop.engine) as session:
        with pytest.raises(NoTransaction, match="has not begun"):
            say(session, "early")
        order(session, "row")
        session.commit()
    assert (shop.words(), shop.notes()) == ([], ["row"])


def test_publishing_after_the_commit_is_refused(shop: Shop) -> None:
    with Session(shop.engine) as session:
        order(session, "row")
        session.commit()
        with pytest.raises(NoTransaction, match="before the commit"):
            say(session, "late")
        order(session, "next")
        session.commit()
    assert (shop.words(), shop.notes()) == ([], ["row", "next"])


async def test_so_it_is_on_an_async_session(shop: Shop, async_engine: AsyncEngine) -> None:
    async with AsyncSession(async_engine) as session:
        with pytest.raises(NoTransaction):
            say(session, "early")
        session.add(Order(note="row"))
        await session.commit()
        with pytest.raises(NoTransaction):
            say(session, "late")
    assert (shop.words(), shop.notes()) == ([], ["row"])


async def test_so_it_is_on_connections(shop: Shop, async_engine: AsyncEngine) -> None:
    with shop.engine.connect() as connection:
        with pytest.raises(NoTransaction):
            say(connection, "early")
        connection.execute(INSERT, {"note": "row"})
        connection.commit()
        with pytest.raises(NoTransaction):
            say(connection, "late")
    not_started = async_engine.connect()
    with pytest.raises(NoTransaction, match="not started"):
        say(not_started, "early")
    async with not_started as started:
        with pytest.raises(NoTransaction):
            say(started, "early")
    assert (shop.words(), shop.notes()) == ([], ["row"])


def test_a_uow_whose_block_has_ended_is_refused(shop: Shop) -> None:
    with unit_of_work(sessionmaker(shop.engine)) as uow:
        uow.publish(Said(word="said"))
    with pytest.raises(NoTransaction):
        uow.publish(Said(word="late"))
    assert shop.words() == ["said"]


def test_publishing_in_a_failed_transaction_is_refused(shop: Shop) -> None:
    with Session(shop.engine) as session:
        session.add_all([Order(id=1, note="one"), Order(id=1, note="same")])
        with pytest.raises(SQLAlchemyError):
            session.flush()
        with pytest.raises(NoTransaction, match="rollback"):
            say(session, "said")
        session.rollback()
        order(session, "row")
        say(session, "after")
        session.commit()
    assert (shop.words(), shop.notes()) == (["after"], ["row"])


def test_publishing_when_the_outer_transaction_ended_under_the_session_is_refused(
    shop: Shop,
) -> None:
    with shop.engine.connect() as connection:
        connection.begin()
        session = Session(connection)
        order(session, "row")
        session.flush()
        connection.commit()
        with pytest.raises(NoTransaction, match="ended while"):
            say(session, "late")
        session.close()
    assert (shop.words(), shop.notes()) == ([], ["row"])


def test_a_thing_that_is_no_session_is_named() -> None:
    with pytest.raises(TypeError, match="Engine is not a session"):
        say(sa.create_engine("sqlite://"), "said")


# --- the insert fails ---------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["rollback", "close"])
def test_when_the_outbox_cannot_be_written_the_business_rows_are_not_there(
    shop: Shop, end: str
) -> None:
    """Nor later: the only connection goes back to the pool with nothing open."""
    engine = shop.make_engine(pool_size=1, max_overflow=0)
    with shop.outbox_gone():
        session = Session(engine)
        order(session, "lost")
        say(session, "lost")
        with pytest.raises(SQLAlchemyError):
            session.commit()
        getattr(session, end)()
        session.close()
    with Session(engine) as session:
        order(session, "next")
        session.commit()
    assert (shop.words(), shop.notes()) == ([], ["next"])


@pytest.mark.parametrize("end", ["rollback", "close", "rollback and go on"])
def test_nor_are_they_on_a_connection(shop: Shop, end: str) -> None:
    engine = shop.make_engine(pool_size=1, max_overflow=0)
    connection = engine.connect()
    with shop.outbox_gone():
        connection.execute(INSERT, {"note": "lost"})
        say(connection, "lost")
        with pytest.raises(SQLAlchemyError):
            connection.commit()
        connection.close() if end == "close" else connection.rollback()
    if end == "rollback and go on":
        connection.execute(INSERT, {"note": "same connection"})
        connection.commit()
    connection.close()
    with engine.begin() as connection:
        connection.execute(INSERT, {"note": "next"})
    expected = ["same connection", "next"] if end == "rollback and go on" else ["next"]
    assert (shop.words(), shop.notes()) == ([], expected)


async def test_nor_are_they_on_an_async_session(shop: Shop) -> None:
    engine = shop.make_async_engine(pool_size=1, max_overflow=0)
    with shop.outbox_gone():
        session = AsyncSession(engine)
        session.add(Order(note="lost"))
        await session.flush()
        say(session, "lost")
        with pytest.raises(SQLAlchemyError):
            await session.commit()
        await session.close()
    async with AsyncSession(engine) as session, session.begin():
        session.add(Order(note="next"))
    await engine.dispose()
    assert (shop.words(), shop.notes()) == ([], ["next"])


@pytest.mark.parametrize("again", ["commit", "rollback, commit"])
def test_committing_again_after_such_a_failure_does_not_commit_half(
    shop: Shop, again: str
) -> None:
    with shop.outbox_gone():
        session = Session(shop.engine)
        order(session, "lost")
        say(session, "lost")
        with pytest.raises(SQLAlchemyError):
            session.commit()
        if again == "commit":
            with pytest.raises(SQLAlchemyError):
                session.commit()
        else:
            session.rollback()
            session.commit()
        session.close()
    assert (shop.words(), shop.notes()) == ([], [])


# --- the next transaction -----------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback", "close", "expunge_all", "reset"])
def test_a_session_can_be_used_again(shop: Shop, end: str) -> None:
    session = Session(shop.engine)
    order(session, "first")
    session.flush()
    say(session, "first")
    getattr(session, end)()
    order(session, "second")
    say(session, "second")
    session.commit()
    session.close()
    kept = ["first", "second"] if end in ("commit", "expunge_all") else ["second"]
    assert (shop.words(), shop.notes()) == (kept, kept)


def test_an_invalidated_session_takes_its_messages_along(shop: Shop) -> None:
    session = Session(shop.engine)
    order(session, "lost")
    session.flush()
    say(session, "lost")
    session.invalidate()
    order(session, "next")
    session.commit()
    session.close()
    assert (shop.words(), shop.notes()) == ([], ["next"])


def test_an_invalidated_connection_takes_its_messages_along(shop: Shop) -> None:
    with shop.engine.connect() as connection:
        connection.execute(INSERT, {"note": "lost"})
        say(connection, "lost")
        connection.invalidate()
        connection.rollback()
        connection.execute(INSERT, {"note": "next"})
        connection.commit()
    assert (shop.words(), shop.notes()) == ([], ["next"])


def test_a_forgotten_session_gives_its_connection_back_and_its_messages_up(shop: Shop) -> None:
    """The pool has one connection: if ours kept it alive, the next session would wait in vain."""
    engine = shop.make_engine(pool_size=1, max_overflow=0, pool_timeout=5)
    session = Session(engine)
    order(session, "lost")
    session.flush()
    say(session, "lost", key="k")
    with session.begin_nested():
        say(session, "lost too")
    forgotten = weakref.ref(session)
    del session
    gc.collect()
    assert forgotten() is None
    with Session(engine) as session:
        order(session, "next")
        say(session, "next", key="k")
        session.commit()
    assert (shop.words(), shop.notes()) == (["next"], ["next"])


def test_a_forgotten_connection_is_collected_with_its_messages(shop: Shop) -> None:
    engine = shop.make_engine(pool_size=1, max_overflow=0, pool_timeout=5)
    connection = engine.connect()
    connection.execute(INSERT, {"note": "lost"})
    connection.begin_nested()
    say(connection, "lost")
    forgotten = weakref.ref(connection)
    del connection
    gc.collect()
    assert forgotten() is None
    with engine.begin() as connection:
        say(connection, "next")
    assert (shop.words(), shop.notes()) == (["next"], [])


# --- threads ------------------------------------------------------------------------------------


def test_many_threads_write_what_they_committed_and_nothing_else(shop: Shop) -> None:
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for number in range(12):
                with Session(shop.engine) as session:
                    order(session, f"{thread}.{number}")
                    say(session, f"{thread}.{number}", key=f"k{number % 3}")
                    session.rollback() if number % 3 == 0 else session.commit()
        except BaseException as failure:  # noqa: BLE001  # shown by the assertion below
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    kept = sorted(
        f"{thread}.{number}" for thread in range(6) for number in range(12) if number % 3
    )
    assert (sorted(shop.words()), sorted(shop.notes())) == (kept, kept)
    for worker in range(6):
        mine = [word for word in shop.words() if word.startswith(f"{worker}.")]
        assert mine == [f"{worker}.{number}" for number in range(12) if number % 3]


@pytest.mark.databases("postgres18")
def test_a_first_publish_does_not_break_a_commit_of_another_thread(shop: Shop) -> None:
    """Listeners may not be added while another thread is inside one of them."""
    inside, go_on = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def slow(connection: sa.Connection) -> None:
        if threading.current_thread() is other:
            inside.set()
            assert go_on.wait(30)

    def commit() -> None:
        try:
            with shop.engine.begin() as connection:
                connection.execute(INSERT, {"note": "other"})
        except BaseException as failure:  # noqa: BLE001  # shown by the assertion below
            failures.append(failure)

    event.listen(shop.engine, "commit", slow)
    other = threading.Thread(target=commit)
    other.start()
    assert inside.wait(30)
    with Session(shop.engine) as session, session.begin():
        say(session, "said")
    go_on.set()
    other.join(30)
    assert failures == []
    assert (shop.words(), shop.notes()) == (["said"], ["other"])
