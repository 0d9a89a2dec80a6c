"""Sessions as frameworks hand them out: nothing to subclass, nothing to set."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox_saga.errors import NoTransaction
from outbox_saga.unit_of_work import UnitOfWork, unit_of_work
from tests.write_path.shop import INSERT, Order, Said, Shop, order, say


def test_scoped_session(shop: Shop) -> None:
    scoped = scoped_session(sessionmaker(shop.engine))
    scoped.add(Order(note="row"))
    say(scoped, "said")
    scoped.commit()
    scoped.add(Order(note="undone"))
    say(scoped, "undone")
    scoped.rollback()
    scoped.remove()
    assert (shop.words(), shop.notes()) == (["said"], ["row"])


async def test_async_scoped_session(shop: Shop, async_engine: AsyncEngine) -> None:
    scoped = async_scoped_session(async_sessionmaker(async_engine), asyncio.current_task)
    scoped.add(Order(note="row"))
    say(scoped, "said")
    await scoped.commit()
    await scoped.begin()
    say(scoped, "without sql")
    await scoped.commit()
    await scoped.remove()
    assert (shop.words(), shop.notes()) == (["said", "without sql"], ["row"])


def test_a_session_class_of_ones_own_with_info_and_hooks(shop: Shop) -> None:
    class Own(Session):
        pass

    maker = sessionmaker(shop.engine, class_=Own, info={"tenant": "t"}, expire_on_commit=False)
    with maker.begin() as session:
        order(session, "row")
        say(session, "said")
        assert session.info["tenant"] == "t"
    assert (shop.words(), shop.notes()) == (["said"], ["row"])


def test_a_session_that_does_not_begin_by_itself(shop: Shop) -> None:
    with Session(shop.engine, autobegin=False) as session:
        with pytest.raises(NoTransaction):
            say(session, "early")
        with session.begin():
            order(session, "row")
            say(session, "said")
    assert (shop.words(), shop.notes()) == (["said"], ["row"])


def test_flask_sqlalchemy(shop: Shop) -> None:
    flask: Any = importlib.import_module("flask")
    flask_sqlalchemy: Any = importlib.import_module("flask_sqlalchemy")
    app = flask.Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = shop.url
    app.config["SQLALCHEMY_BINDS"] = {"other": "sqlite://"}
    db = flask_sqlalchemy.SQLAlchemy()
    db.init_app(app)
    with app.app_context():
        db.session.execute(INSERT, {"note": "row"})
        UnitOfWork(db.session).publish(Said(word="said"))
        db.session.commit()
        db.session.execute(INSERT, {"note": "undone"})
        UnitOfWork(db.session).publish(Said(word="undone"))
        db.session.rollback()
        for engine in db.engines.values():
            engine.dispose()
    assert (shop.words(), shop.notes()) == (["said"], ["row"])


def test_sqlmodel(shop: Shop) -> None:
    sqlmodel: Any = importlib.import_module("sqlmodel")
    with sqlmodel.Session(shop.engine) as session:
        session.add(Order(note="row"))
        say(session, "said")
        nested = session.begin_nested()
        say(session, "undone")
        nested.rollback()
        session.commit()
    assert (shop.words(), shop.notes()) == (["said"], ["row"])


async def test_sqlmodels_async_session(shop: Shop, async_engine: AsyncEngine) -> None:
    asyncio_session: Any = importlib.import_module("sqlmodel.ext.asyncio.session")
    async with asyncio_session.AsyncSession(async_engine) as session:
        session.add(Order(note="row"))
        say(session, "said")
        await session.commit()
    assert (shop.words(), shop.notes()) == (["said"], ["row"])


# advanced-alchemy 1.12 uses what SQLAlchemy 2.1 deprecates
by_advanced_alchemy = pytest.mark.filterwarnings("ignore:The declarative_mixin decorator")


@by_advanced_alchemy
def test_advanced_alchemy(shop: Shop) -> None:
    extensions: Any = importlib.import_module("advanced_alchemy.config")
    repository: Any = importlib.import_module("advanced_alchemy.repository")

    class Orders(repository.SQLAlchemySyncRepository[Order]):  # type: ignore[misc]
        model_type = Order

    config = extensions.SQLAlchemySyncConfig(engine_instance=shop.engine)
    with config.get_session() as session:
        Orders(session=session).add(Order(note="row"))
        say(session, "said")
        session.commit()
    assert (shop.words(), shop.notes()) == (["said"], ["row"])


@by_advanced_alchemy
async def test_advanced_alchemys_async_session(shop: Shop, async_engine: AsyncEngine) -> None:
    extensions: Any = importlib.import_module("advanced_alchemy.config")
    config = extensions.SQLAlchemyAsyncConfig(engine_instance=async_engine)
    async with config.get_session() as session:
        session.add(Order(note="row"))
        say(session, "said")
        await session.commit()
    assert (shop.words(), shop.notes()) == (["said"], ["row"])


async def test_the_block_says_which_with_it_wants(shop: Shop, async_engine: AsyncEngine) -> None:
    either: Any = unit_of_work
    with pytest.raises(TypeError, match="async with unit_of_work"):
        either(async_sessionmaker(async_engine)).__enter__()
    with pytest.raises(TypeError, match="with unit_of_work"):
        await either(sessionmaker(shop.engine)).__aenter__()


async def test_a_plain_function_inside_run_sync_publishes_like_any_other(
    shop: Shop, async_engine: AsyncEngine
) -> None:
    def business(session: Session) -> None:
        order(session, "row")
        say(session, "said")
        with session.begin_nested() as nested:
            session.execute(sa.text("select 1"))
            say(session, "undone")
            nested.rollback()

    async with AsyncSession(async_engine) as session:
        await session.run_sync(business)
        await session.commit()
    assert (shop.words(), shop.notes()) == (["said"], ["row"])
