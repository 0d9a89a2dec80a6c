"""AUTOCOMMIT, however it was set: rows would commit before the messages, so they are refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from outbox_saga.errors import AutocommitRefused
from outbox_saga.queries.dialects import commits_by_itself
from tests.write_path.shop import INSERT, Order, Shop, order, say

AUTOCOMMIT: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"}


def by_the_driver(shop: Shop) -> dict[str, Any]:
    """The driver's own attribute, of which SQLAlchemy knows nothing."""
    own = {"isolation_level": None} if shop.name == "sqlite" else {"autocommit": True}
    return {"connect_args": own}


ENGINES: dict[str, Callable[[Shop], sa.Engine]] = {
    "create_engine": lambda shop: shop.make_plain_engine(**AUTOCOMMIT),
    "create_engine's execution options": lambda shop: shop.make_plain_engine(
        execution_options=AUTOCOMMIT
    ),
    "engine's execution options": lambda shop: shop.make_plain_engine().execution_options(
        **AUTOCOMMIT
    ),
    "driver": lambda shop: shop.make_plain_engine(**by_the_driver(shop)),
}
every_engine = pytest.mark.parametrize("way", ENGINES)

ASYNC_ENGINES: dict[str, Callable[[Shop], AsyncEngine]] = {
    "create_async_engine": lambda shop: shop.make_plain_async_engine(**AUTOCOMMIT),
    "create_async_engine's execution options": lambda shop: shop.make_plain_async_engine(
        execution_options=AUTOCOMMIT
    ),
    "engine's execution options": lambda shop: shop.make_plain_async_engine().execution_options(
        **AUTOCOMMIT
    ),
    "driver": lambda shop: shop.make_plain_async_engine(**by_the_driver(shop)),
}
every_async_engine = pytest.mark.parametrize("way", ASYNC_ENGINES)
after_sql = pytest.mark.parametrize("sql", [False, True], ids=["no sql before", "sql before"])


@every_engine
@after_sql
def test_a_session_refuses_and_goes_on(shop: Shop, way: str, *, sql: bool) -> None:
    with Session(ENGINES[way](shop)) as session, session.begin():
        order(session, "row")
        if sql:
            session.flush()
        with pytest.raises(AutocommitRefused, match="AUTOCOMMIT"):
            say(session, "said")
        order(session, "another")
    assert (shop.words(), shop.notes()) == ([], ["row", "another"])


@every_engine
def test_a_connection_refuses_and_goes_on(shop: Shop, way: str) -> None:
    with ENGINES[way](shop).begin() as connection:
        connection.execute(INSERT, {"note": "row"})
        with pytest.raises(AutocommitRefused):
            say(connection, "said")
    assert (shop.words(), shop.notes()) == ([], ["row"])


def test_a_connection_with_its_own_option_refuses(shop: Shop) -> None:
    with shop.make_plain_engine().connect() as connection:
        connection.execution_options(**AUTOCOMMIT)
        with connection.begin(), pytest.raises(AutocommitRefused):
            say(connection, "said")


def test_a_session_on_such_a_connection_refuses(shop: Shop) -> None:
    with shop.make_plain_engine().connect() as connection:
        connection.execution_options(**AUTOCOMMIT)
        with Session(connection) as session, session.begin(), pytest.raises(AutocommitRefused):
            say(session, "said")


def test_a_session_whose_connection_got_the_option_refuses(shop: Shop) -> None:
    with Session(shop.make_plain_engine()) as session, session.begin():
        session.connection(execution_options=AUTOCOMMIT)
        with pytest.raises(AutocommitRefused):
            say(session, "said")


def test_the_option_on_one_session_leaves_the_others_alone(shop: Shop) -> None:
    engine = shop.make_plain_engine()
    with (
        Session(engine.execution_options(**AUTOCOMMIT)) as session,
        session.begin(),
        pytest.raises(AutocommitRefused),
    ):
        say(session, "refused")
    with Session(engine) as session, session.begin():
        order(session, "row")
        say(session, "said")
    assert (shop.words(), shop.notes()) == (["said"], ["row"])


def test_it_may_be_set_between_publish_and_commit(shop: Shop) -> None:
    """The last look is at the commit: then it is an error rather than half a transaction."""
    with shop.make_plain_engine().connect() as connection:
        connection.begin()
        say(connection, "said")
        raw: Any = connection.connection.dbapi_connection
        if shop.name == "sqlite":
            raw.isolation_level = None
        elif shop.name == "mariadb":
            raw.autocommit(True)
        else:
            raw.rollback()
            raw.autocommit = True
        with pytest.raises(AutocommitRefused):
            connection.commit()
    assert shop.words() == []


@every_async_engine
async def test_an_async_session_refuses_after_sql_and_goes_on(shop: Shop, way: str) -> None:
    engine = ASYNC_ENGINES[way](shop)
    async with AsyncSession(engine) as session, session.begin():
        session.add(Order(note="row"))
        await session.flush()
        with pytest.raises(AutocommitRefused):
            say(session, "said")
        session.add(Order(note="another"))
    await engine.dispose()
    assert (shop.words(), shop.notes()) == ([], ["row", "another"])


async def _say_and_commit(session: AsyncSession) -> None:
    say(session, "said")
    await session.commit()


@every_async_engine
async def test_an_async_session_without_sql_refuses_at_the_commit_at_the_latest(
    shop: Shop, way: str
) -> None:
    engine = ASYNC_ENGINES[way](shop)
    async with AsyncSession(engine) as session:
        await session.begin()
        session.add(Order(note="row"))
        with pytest.raises(AutocommitRefused):
            await _say_and_commit(session)
        await session.rollback()
    await engine.dispose()
    assert (shop.words(), shop.notes()) == ([], [])


@every_async_engine
async def test_an_async_connection_refuses(shop: Shop, way: str) -> None:
    engine = ASYNC_ENGINES[way](shop)
    async with engine.begin() as connection:
        with pytest.raises(AutocommitRefused):
            say(connection, "said")
    await engine.dispose()


@pytest.mark.databases("sqlite")
def test_the_begin_immediate_recipe_is_no_autocommit(shop: Shop) -> None:
    with Session(shop.make_engine()) as session, session.begin():
        raw: Any = session.connection().connection.dbapi_connection
        assert raw.isolation_level is None
        order(session, "row")
        say(session, "said")
    assert (shop.words(), shop.notes()) == (["said"], ["row"])


@pytest.mark.databases("sqlite")
async def test_nor_is_it_on_an_async_engine(shop: Shop, async_engine: AsyncEngine) -> None:
    async with AsyncSession(async_engine) as session, session.begin():
        session.add(Order(note="row"))
        await session.flush()
        say(session, "said")
    async with AsyncSession(async_engine) as session, session.begin():
        say(session, "without sql")
    assert (shop.words(), shop.notes()) == (["said", "without sql"], ["row"])


@pytest.mark.databases("sqlite")
def test_sqlites_driver_as_it_comes_is_no_autocommit(shop: Shop) -> None:
    engine = shop.make_plain_engine()
    with Session(engine) as session, session.begin():
        say(session, "without sql")
    with Session(engine) as session, session.begin():
        order(session, "row")
        say(session, "said")
    with Session(engine) as session:
        order(session, "undone")
        say(session, "undone")
        session.rollback()
    assert (shop.words(), shop.notes()) == (["without sql", "said"], ["row"])


def fake(dialect: str, **attributes: Any) -> Any:
    """A connection of a driver, or Python, that is not here."""
    raw = SimpleNamespace(**attributes)
    return SimpleNamespace(
        dialect=SimpleNamespace(name=dialect),
        connection=SimpleNamespace(dbapi_connection=raw, driver_connection=raw),
    )


@pytest.mark.parametrize("autocommit", [False, True])
def test_sqlites_own_attribute_of_python_3_12_counts(*, autocommit: bool) -> None:
    connection = fake("sqlite", autocommit=autocommit, isolation_level="", in_transaction=False)
    assert commits_by_itself(connection) is autocommit


def test_its_value_for_the_old_way_does_not() -> None:
    connection = fake("sqlite", autocommit=-1, isolation_level="", in_transaction=False)
    assert commits_by_itself(connection) is False


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_mysql_driver_with_an_attribute_instead_of_a_method_counts(*, autocommit: bool) -> None:
    assert commits_by_itself(fake("mysql", autocommit=autocommit)) is autocommit
