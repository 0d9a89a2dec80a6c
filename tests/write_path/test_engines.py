"""Several engines: the messages go to one of them, which is known before anything is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Mapped, Session, mapped_column

from outbox_saga.errors import ConfigurationError
from outbox_saga.tables import tables_in
from outbox_saga.unit_of_work import UnitOfWork
from tests.write_path.shop import Base, Order, Said, Shop, order, say


class Stock(Base):
    """A row of another database."""

    __tablename__ = "stock"

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[sa.Engine]:
    """The other database: it has an outbox too, which nothing may reach by mistake."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    Base.metadata.create_all(engine, tables=[Base.metadata.tables["stock"]])
    tables_in(None).outbox.create(engine)
    yield engine
    engine.dispose()


def stock(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(sa.text("select count(*) from stock")) or 0


def outbox(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return (
            connection.scalar(sa.select(sa.func.count()).select_from(tables_in(None).outbox)) or 0
        )


def binds(shop: Shop, elsewhere: sa.Engine) -> dict[Any, Any]:
    return {Order: shop.engine, Stock: elsewhere}


def test_the_given_engine_gets_the_messages(shop: Shop, elsewhere: sa.Engine) -> None:
    with Session(binds=binds(shop, elsewhere)) as session:
        session.add_all([Order(note="row"), Stock()])
        UnitOfWork(session, bind=shop.engine).publish(Said(word="said"))
        session.commit()
    assert (shop.words(), shop.notes(), stock(elsewhere)) == (["said"], ["row"], 1)
    assert outbox(elsewhere) == 0


def test_the_given_engine_gets_them_even_if_nothing_else_ran_there(
    shop: Shop, elsewhere: sa.Engine
) -> None:
    with Session(binds=binds(shop, elsewhere)) as session:
        session.add(Stock())
        UnitOfWork(session, bind=shop.engine).publish(Said(word="said"))
        session.commit()
    assert (shop.words(), stock(elsewhere), outbox(elsewhere)) == (["said"], 1, 0)


def test_a_rollback_drops_them(shop: Shop, elsewhere: sa.Engine) -> None:
    with Session(binds=binds(shop, elsewhere)) as session:
        session.add_all([Order(note="row"), Stock()])
        UnitOfWork(session, bind=shop.engine).publish(Said(word="said"))
        session.rollback()
        session.add(Order(note="next"))
        session.commit()
    assert (shop.words(), shop.notes(), stock(elsewhere)) == ([], ["next"], 0)


def test_the_sessions_own_engine_gets_them_when_none_is_given(
    shop: Shop, elsewhere: sa.Engine
) -> None:
    with Session(shop.engine, binds={Stock: elsewhere}) as session:
        session.add_all([Order(note="row"), Stock()])
        say(session, "said")
        session.commit()
    assert (shop.words(), stock(elsewhere), outbox(elsewhere)) == (["said"], 1, 0)


def test_a_session_that_does_not_know_where_the_outbox_is_says_so(
    shop: Shop, elsewhere: sa.Engine
) -> None:
    with Session(binds=binds(shop, elsewhere)) as session:
        order(session, "row")
        with pytest.raises(ConfigurationError, match="bind=engine"):
            say(session, "said")
        session.commit()
    assert (shop.words(), shop.notes()) == ([], ["row"])


def test_one_transaction_publishes_through_one_engine(shop: Shop, elsewhere: sa.Engine) -> None:
    with Session(binds=binds(shop, elsewhere)) as session:
        order(session, "row")
        UnitOfWork(session, bind=shop.engine).publish(Said(word="said"))
        with pytest.raises(ConfigurationError, match="same `bind`"):
            UnitOfWork(session, bind=elsewhere).publish(Said(word="elsewhere"))
        session.commit()
        session.begin()
        UnitOfWork(session, bind=elsewhere).publish(Said(word="next"))
        session.commit()
    assert (shop.words(), shop.notes(), outbox(elsewhere)) == (["said"], ["row"], 1)


def test_an_engine_chosen_in_a_rolled_back_savepoint_is_forgotten(
    shop: Shop, elsewhere: sa.Engine
) -> None:
    with Session(binds=binds(shop, elsewhere)) as session:
        session.add_all([Order(note="row"), Stock()])
        session.flush()
        nested = session.begin_nested()
        UnitOfWork(session, bind=elsewhere).publish(Said(word="undone"))
        nested.rollback()
        UnitOfWork(session, bind=shop.engine).publish(Said(word="said"))
        session.commit()
    assert (shop.words(), shop.notes(), outbox(elsewhere)) == (["said"], ["row"], 0)


@pytest.mark.databases("postgres18", "postgres15", "mariadb")
def test_two_engines_under_two_phase_commit_together(shop: Shop) -> None:
    other = shop.make_engine()

    class Routed(Session):
        def get_bind(self, mapper: Any = None, **kw: Any) -> sa.Engine:
            return kw.get("bind") or shop.engine

    with Routed(twophase=True) as session:
        order(session, "row")
        session.connection(bind_arguments={"bind": other}).execute(
            sa.insert(Order).values(note="other")
        )
        UnitOfWork(session, bind=other).publish(Said(word="said"))
        session.commit()
    assert (shop.words(), sorted(shop.notes())) == (["said"], ["other", "row"])


async def test_an_async_engine_can_be_given(
    shop: Shop, async_engine: AsyncEngine, tmp_path: Path
) -> None:
    other = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'async.db'}")
    async with AsyncSession(binds={Order: async_engine, Stock: other}) as session:
        session.add(Order(note="row"))
        UnitOfWork(session, bind=async_engine).publish(Said(word="said"))
        UnitOfWork(session, bind=async_engine.sync_engine).publish(Said(word="again"))
        await session.commit()
    await other.dispose()
    assert (shop.words(), shop.notes()) == (["said", "again"], ["row"])


def test_an_engines_options_make_no_second_outbox(shop: Shop) -> None:
    """An engine with options is another object with the same listeners: once is once."""
    with Session(shop.engine.execution_options(stream_results=False)) as session:
        order(session, "row")
        say(session, "said")
        session.commit()
    with shop.engine.execution_options(stream_results=False).begin() as connection:
        say(connection, "again")
    assert (shop.words(), shop.notes()) == (["said", "again"], ["row"])


def test_users_listeners_on_the_same_engine_do_not_disturb(shop: Shop) -> None:
    seen: list[str] = []
    names = ("commit", "rollback", "begin")
    listeners = [(name, lambda *_, name=name: seen.append(name)) for name in names]
    for name, listener in listeners:
        event.listen(shop.engine, name, listener)
    with Session(shop.engine) as session, session.begin():
        say(session, "said")
    assert shop.words() == ["said"]
    assert seen == ["begin", "commit"]
