"""A schema for each tenant, by `schema_translate_map`: one outbox is meant, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pydantic
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga import Saga, nothing_to_undo
from outbox_saga.errors import ConfigurationError
from outbox_saga.tables import tables_in
from outbox_saga.unit_of_work import UnitOfWork, unit_of_work
from outbox_saga_migrations import upgrade
from tests.write_path.shop import INSERT, Base, Said, Shop, order, say

MOVED = {None: "tenant"}


class Data(pydantic.BaseModel):
    pass


def start(uow: UnitOfWork[Any]) -> None:
    saga = Saga("tenants", data=Data)
    saga.step("one", lambda step: None, compensation=nothing_to_undo).start(uow, Data())


PUBLISHED: dict[str, Callable[[UnitOfWork[Any]], Any]] = {
    "a message": lambda uow: uow.publish(Said(word="said")),
    "a delayed message": lambda uow: uow.publish(Said(word="said"), delay=1),
    "a start": start,
}
published = pytest.mark.parametrize("publish", PUBLISHED.values(), ids=PUBLISHED.keys())


@published
def test_a_map_that_moves_our_tables_is_refused_at_the_commit(
    shop: Shop, publish: Callable[[UnitOfWork[Any]], Any]
) -> None:
    with shop.engine.execution_options(schema_translate_map=MOVED).connect() as connection:
        connection.execute(INSERT, {"note": "row"})
        publish(UnitOfWork(connection))
        with pytest.raises(ConfigurationError, match="schema="):
            connection.commit()
    with shop.engine.begin() as connection:
        say(connection, "next")
    assert (shop.words(), shop.notes()) == (["next"], [])


async def test_a_map_of_an_async_engine_is_refused_as_well(
    shop: Shop, async_engine: AsyncEngine
) -> None:
    moved = async_engine.execution_options(schema_translate_map=MOVED)
    async with async_sessionmaker(moved)() as session:
        await session.begin()
        say(session, "said")
        with pytest.raises(ConfigurationError, match="schema="):
            await session.commit()
    assert shop.words() == []


@pytest.mark.parametrize("moved", [{"per_tenant": "tenant"}, {None: None}, {}])
def test_a_map_that_leaves_our_tables_alone_is_none_of_our_business(
    shop: Shop, moved: dict[Any, Any]
) -> None:
    engine = shop.engine.execution_options(schema_translate_map=moved)
    with Session(engine) as session, session.begin():
        order(session, "row")
        say(session, "said")
    assert (shop.words(), shop.notes()) == (["said"], ["row"])


@pytest.fixture
def tenant(shop: Shop) -> Iterator[sa.Engine]:
    """An engine that is moved to a schema of its own, with our tables and the shop's in it."""
    shop.execute("create schema tenant")
    with shop.engine.begin() as connection:
        upgrade(connection, schema="tenant")
    engine = shop.engine.execution_options(schema_translate_map=MOVED)
    Base.metadata.create_all(engine)
    yield engine
    shop.execute("drop schema tenant cascade")


@pytest.mark.databases("postgres18", "postgres15")
@pytest.mark.parametrize("schema", ["tenant", "public"])
def test_the_outbox_whose_schema_is_said_gets_everything(
    shop: Shop, tenant: sa.Engine, schema: str
) -> None:
    with unit_of_work(sessionmaker(tenant), schema=schema, max_pending=100) as uow:
        order(uow.session, "row")
        uow.publish(Said(word="now"))
        uow.publish(Said(word="later"), delay=1)
    other = {"tenant": None, "public": "tenant"}[schema]
    with shop.engine.connect() as connection:
        counts = [
            connection.scalar(sa.select(sa.func.count()).select_from(table))
            for name in (schema, other)
            for table in (tables_in(name).outbox, tables_in(name).delayed)
        ]
    assert counts == [1, 1, 0, 0]
    assert shop.notes() == []
