"""What the database refuses at COMMIT, or a hook does, is gone from the database too: the next
who gets the connection commits his own rows and messages, and no others.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga.errors import MessagesLeftOut, NoTransaction
from outbox_saga.unit_of_work import unit_of_work
from outbox_saga.unit_retries import retry_unit
from tests.write_path.shop import INSERT, Order, Shop, order, say

Way = Callable[[sa.Engine, str], None]


def by_unit(engine: sa.Engine, note: str) -> None:
    with unit_of_work(sessionmaker(engine)) as uow:
        order(uow.session, note)
        say(uow.session, note)


def by_unit_without_a_limit(engine: sa.Engine, note: str) -> None:
    with unit_of_work(sessionmaker(engine), commit_timeout=None) as uow:
        order(uow.session, note)
        say(uow.session, note)


def by_session(engine: sa.Engine, note: str) -> None:
    with Session(engine) as session:
        order(session, note)
        say(session, note)
        session.commit()


def by_session_block(engine: sa.Engine, note: str) -> None:
    with Session(engine) as session, session.begin():
        order(session, note)
        say(session, note)


def by_engine_block(engine: sa.Engine, note: str) -> None:
    with engine.begin() as connection:
        connection.execute(INSERT, {"note": note})
        say(connection, note)


def by_connection(engine: sa.Engine, note: str) -> None:
    with engine.connect() as connection:
        connection.execute(INSERT, {"note": note})
        say(connection, note)
        connection.commit()


async def by_async_unit(engine: AsyncEngine, note: str) -> None:
    async with unit_of_work(async_sessionmaker(engine)) as uow:
        uow.session.add(Order(note=note))
        say(uow.session, note)


def in_block(connection: sa.Connection, note: str) -> None:
    with connection.begin():
        connection.execute(INSERT, {"note": note})
        say(connection, note)


async def in_async_block(connection: AsyncConnection, note: str) -> None:
    async with connection.begin():
        await connection.execute(INSERT, {"note": note})
        say(connection, note)


WAYS = [
    by_unit,
    by_unit_without_a_limit,
    by_session,
    by_session_block,
    by_engine_block,
    by_connection,
]
ways = pytest.mark.parametrize("way", WAYS)
hooks = pytest.mark.parametrize("what", ["raises", "publishes"])


class Hook:
    """On an engine's `commit`: fails once, each time it is armed."""

    def __init__(self, engine: sa.Engine, what: str) -> None:
        self.armed = False
        self.what = what
        event.listen(engine, "commit", self.committing)

    def committing(self, connection: sa.Connection) -> None:
        if self.armed:
            self.armed = False
            if self.what == "publishes":
                say(connection, "late")
            raise ValueError(self.what)


@pytest.fixture
def pool_of_one(shop: Shop) -> sa.Engine:
    """An engine whose next user gets the connection of the one before."""
    return shop.make_engine(pool_size=1, max_overflow=0)


# --- a hook --------------------------------------------------------------------------------------


@hooks
@ways
def test_what_a_commit_hook_refused_is_not_committed_by_the_next_user_of_the_pool(
    shop: Shop, pool_of_one: sa.Engine, way: Way, what: str
) -> None:
    hook = Hook(pool_of_one, what)
    hook.armed = True
    with pytest.raises((ValueError, MessagesLeftOut)):
        way(pool_of_one, "refused")
    by_session(pool_of_one, "next")
    assert (shop.words(), shop.notes()) == (["next"], ["next"])


@hooks
async def test_what_a_commit_hook_refused_is_not_committed_by_the_next_async_user_of_the_pool(
    shop: Shop, async_engine: AsyncEngine, what: str
) -> None:
    hook = Hook(async_engine.sync_engine, what)
    hook.armed = True
    with pytest.raises((ValueError, MessagesLeftOut)):
        await by_async_unit(async_engine, "refused")
    hook.armed = True
    async with AsyncSession(async_engine) as session:
        session.add(Order(note="refused"))
        say(session, "refused")
        with pytest.raises((ValueError, MessagesLeftOut)):
            await session.commit()
    await by_async_unit(async_engine, "next")
    assert (shop.words(), shop.notes()) == (["next"], ["next"])


def test_a_session_goes_on_after_a_hook_refused_its_commit(
    shop: Shop, pool_of_one: sa.Engine
) -> None:
    hook = Hook(pool_of_one, "raises")
    with Session(pool_of_one) as session:
        order(session, "refused")
        say(session, "refused")
        hook.armed = True
        with pytest.raises(ValueError, match="raises"):
            session.commit()
        session.rollback()
        order(session, "next")
        say(session, "next")
        session.commit()
    assert (shop.words(), shop.notes()) == (["next"], ["next"])


def test_a_connection_does_not_go_on_in_the_transaction_that_a_hook_refused(
    shop: Shop, pool_of_one: sa.Engine
) -> None:
    hook = Hook(pool_of_one, "raises")
    with pool_of_one.connect() as connection:
        hook.armed = True
        with pytest.raises(ValueError, match="raises"):
            in_block(connection, "refused")
        with pytest.raises(NoTransaction, match="close this connection"):
            connection.begin()
    by_engine_block(pool_of_one, "next")
    assert (shop.words(), shop.notes()) == (["next"], ["next"])


async def test_an_async_connection_does_not_go_on_in_it_either(
    shop: Shop, async_engine: AsyncEngine
) -> None:
    hook = Hook(async_engine.sync_engine, "raises")
    async with async_engine.connect() as connection:
        hook.armed = True
        with pytest.raises(ValueError, match="raises"):
            await in_async_block(connection, "refused")
        with pytest.raises(NoTransaction, match="close this connection"):
            await connection.begin()
    async with async_engine.begin() as connection:
        await connection.execute(INSERT, {"note": "next"})
        say(connection, "next")
    assert (shop.words(), shop.notes()) == (["next"], ["next"])


def test_a_connection_with_a_hook_that_raises_nothing_goes_on(
    shop: Shop, pool_of_one: sa.Engine
) -> None:
    Hook(pool_of_one, "raises")
    with pool_of_one.connect() as connection:
        for note in ("first", "second"):
            in_block(connection, note)
    assert (shop.words(), shop.notes()) == (["first", "second"], ["first", "second"])


# --- SQLite leaves a transaction open whose COMMIT it refuses ------------------------------------


@pytest.fixture(params=["driver begins", "BEGIN IMMEDIATE"])
def strict(request: pytest.FixtureRequest, shop: Shop) -> Iterator[sa.Engine]:
    """An engine on a shop one of whose orders need a customer by the time of COMMIT."""
    options: dict[str, Any] = {"pool_size": 1, "max_overflow": 0}
    make = shop.make_plain_engine if request.param == "driver begins" else shop.make_engine
    engine = make(**options)

    @event.listens_for(engine, "connect")
    def connected(dbapi_connection: Any, record: Any) -> None:
        dbapi_connection.execute("pragma foreign_keys = on")

    shop.execute("create table customer (id integer primary key)")
    shop.execute(
        "create table bill (id integer primary key, customer integer "
        "references customer (id) deferrable initially deferred)"
    )
    yield engine
    engine.dispose()
    shop.execute("drop table bill")
    shop.execute("drop table customer")


def bill(on: Any) -> None:
    """Something that cannot be committed."""
    on.execute(sa.text("insert into bill (customer) values (7)"))


def bills(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(sa.text("select count(*) from bill")) or 0


def refused_unit(engine: sa.Engine) -> None:
    with unit_of_work(sessionmaker(engine)) as uow:
        bill(uow.session)
        say(uow.session, "refused")


def refused_session(engine: sa.Engine) -> None:
    with Session(engine) as session:
        bill(session)
        say(session, "refused")
        session.commit()


def refused_connection(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        bill(connection)
        say(connection, "refused")
        connection.commit()


def refused_block(connection: sa.Connection) -> None:
    with connection.begin():
        bill(connection)
        say(connection, "refused")


async def refused_async_unit(engine: AsyncEngine) -> None:
    async with unit_of_work(async_sessionmaker(engine)) as uow:
        await uow.session.run_sync(bill)
        say(uow.session, "refused")


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("way", [refused_unit, refused_session, refused_connection])
def test_what_a_deferred_constraint_refused_is_not_committed_once_it_is_fulfilled(
    shop: Shop, strict: sa.Engine, way: Callable[[sa.Engine], None]
) -> None:
    with pytest.raises(IntegrityError):
        way(strict)
    with unit_of_work(sessionmaker(strict)) as uow:
        uow.session.execute(sa.text("insert into customer (id) values (7)"))
        say(uow.session, "next")
    assert (shop.words(), bills(strict)) == (["next"], 0)


@pytest.mark.databases("sqlite")
def test_a_connection_goes_on_after_a_commit_that_the_database_refused(
    shop: Shop, strict: sa.Engine
) -> None:
    with strict.connect() as connection:
        with pytest.raises(IntegrityError):
            refused_block(connection)
        with connection.begin():
            connection.execute(sa.text("insert into customer (id) values (7)"))
            say(connection, "next")
    assert (shop.words(), bills(strict)) == (["next"], 0)


@pytest.mark.databases("sqlite")
def test_a_refused_commit_holds_the_file_for_nobody(shop: Shop, strict: sa.Engine) -> None:
    with Session(strict) as session:
        bill(session)
        say(session, "refused")
        with pytest.raises(IntegrityError):
            session.commit()
        shop.execute("insert into shop_order (note) values ('somebody else')")
    assert (shop.words(), shop.notes()) == ([], ["somebody else"])


@pytest.mark.databases("sqlite")
async def test_what_a_deferred_constraint_refused_in_an_async_unit_is_gone(shop: Shop) -> None:
    shop.execute("create table customer (id integer primary key)")
    shop.execute(
        "create table bill (customer integer "
        "references customer (id) deferrable initially deferred)"
    )
    engine = shop.make_plain_async_engine(pool_size=1, max_overflow=0)

    @event.listens_for(engine.sync_engine, "connect")
    def connected(dbapi_connection: Any, record: Any) -> None:
        dbapi_connection.execute("pragma foreign_keys = on")

    with pytest.raises(IntegrityError):
        await refused_async_unit(engine)
    async with unit_of_work(async_sessionmaker(engine)) as uow:
        await uow.session.execute(sa.text("insert into customer (id) values (7)"))
        say(uow.session, "next")
    assert (shop.words(), bills(shop.engine)) == (["next"], 0)
    await engine.dispose()
    shop.execute("drop table bill")
    shop.execute("drop table customer")


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    "pool", [sa.QueuePool, sa.NullPool, sa.StaticPool, sa.pool.SingletonThreadPool]
)
def test_a_unit_whose_commit_found_the_file_busy_is_committed_once(
    shop: Shop, pool: type[sa.Pool]
) -> None:
    engine = shop.make_plain_engine(poolclass=pool, connect_args={"timeout": 0.01})
    with closing(sqlite3.connect(engine.url.database or "", isolation_level=None)) as reader:
        reads = iter([True])

        def unit(uow: Any) -> None:
            if next(reads, False):
                reader.execute("begin")
                reader.execute("select note from shop_order").fetchall()
            order(uow.session, "once")
            say(uow.session, "once")

        retry_unit(sessionmaker(engine), unit, sleep=lambda _: reader.execute("rollback"))
    assert (shop.words(), shop.notes()) == (["once"], ["once"])


@pytest.mark.databases("sqlite")
def test_a_listener_for_errors_that_raises_first_changes_nothing_of_it(
    shop: Shop, strict: sa.Engine
) -> None:
    @event.listens_for(strict, "handle_error")
    def translated(context: Any) -> None:
        raise KeyError("another error")

    with suppress(KeyError, OperationalError):
        refused_session(strict)
    with unit_of_work(sessionmaker(strict)) as uow:
        uow.session.execute(sa.text("insert into customer (id) values (7)"))
        say(uow.session, "next")
    assert (shop.words(), bills(strict)) == (["next"], 0)
