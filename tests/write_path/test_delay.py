"""A delayed message shares the fate of its transaction, and leaves when its time has come."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from outbox_saga.errors import MessageRefused, NoTransaction
from outbox_saga.unit_of_work import UnitOfWork
from tests.write_path.shop import Said, Shop


def delayed(shop: Shop) -> list[Any]:
    table = shop.tables.delayed
    with shop.engine.connect() as connection:
        return list(connection.execute(sa.select(table).order_by(table.c.due_at, table.c.id)))


def test_it_waits_beside_the_outbox_and_keeps_all_it_has(shop: Shop) -> None:
    with Session(shop.engine) as session, session.begin():
        uow = UnitOfWork(session, source="shop", correlation_id="c")
        later = uow.publish(Said(word="later"), key="k", headers={"a": "b"}, delay=60)
        uow.publish(Said(word="now"), key="k")
    assert shop.words() == ["now"]
    (row,) = delayed(shop)
    assert (row.id, row.topic, row.key) == (later, "talk", "k")
    assert row.body == b'{"word":"later"}'
    assert '"b"' in row.headers
    assert dt.timedelta(seconds=59) < row.due_at - row.created_at < dt.timedelta(seconds=61)


def test_it_is_gone_with_its_transaction_and_with_its_savepoint(shop: Shop) -> None:
    with Session(shop.engine) as session:
        session.begin()
        UnitOfWork(session).publish(Said(word="rolled back"), delay=1)
        session.rollback()
    with Session(shop.engine) as session, session.begin():
        nested = session.begin_nested()
        UnitOfWork(session).publish(Said(word="in a savepoint"), delay=1)
        nested.rollback()
        UnitOfWork(session).publish(Said(word="kept"), delay=dt.timedelta(days=3))
    assert [row.body for row in delayed(shop)] == [b'{"word":"kept"}']


async def test_an_async_session_delays_as_well(shop: Shop) -> None:
    engine = shop.make_async_engine()
    async with AsyncSession(engine) as session, session.begin():
        UnitOfWork(session).publish_many([Said(word="a"), Said(word="b")], delay=5)
    await engine.dispose()
    assert len(delayed(shop)) == 2


def test_more_than_one_statement_holds_are_all_kept_in_order(shop: Shop) -> None:
    with Session(shop.engine) as session, session.begin():
        uow = UnitOfWork(session)
        for number in range(1_200):
            uow.publish(Said(word=f"{number}"), key="k", delay=10)
    assert len(delayed(shop)) == 1_200


def test_no_delay_is_none(shop: Shop) -> None:
    with Session(shop.engine) as session, session.begin():
        uow = UnitOfWork(session)
        uow.publish(Said(word="a"), delay=0)
        uow.publish(Said(word="b"), delay=dt.timedelta(0))
        uow.publish(Said(word="c"), delay=None)
    assert (shop.words(), delayed(shop)) == (["a", "b", "c"], [])


@pytest.mark.parametrize(
    "delay", [-1, math.nan, math.inf, "5", True, dt.timedelta(seconds=-1), 1e12, [5]]
)
@pytest.mark.databases("sqlite")
def test_what_is_no_delay_is_refused_and_the_transaction_goes_on(shop: Shop, delay: Any) -> None:
    with Session(shop.engine) as session, session.begin():
        uow = UnitOfWork(session)
        with pytest.raises(MessageRefused, match="delay"):
            uow.publish(Said(word="a"), delay=delay)
        with pytest.raises(MessageRefused, match="delay"):
            uow.publish_many([Said(word="a")], delay=delay)
        with pytest.raises(MessageRefused, match="delay"):
            uow.publish_body(b"{}", topic="talk", type="Said", delay=delay)
        uow.publish(Said(word="b"))
    assert (shop.words(), delayed(shop)) == (["b"], [])


def test_delaying_outside_a_transaction_is_refused(shop: Shop) -> None:
    with Session(shop.engine) as session, pytest.raises(NoTransaction):
        UnitOfWork(session).publish(Said(word="a"), delay=1)
