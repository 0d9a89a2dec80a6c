"""A limit on what waits: a commit beyond it is refused, and nothing of it is committed."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session

from outbox_saga.errors import ConfigurationError, OutboxFull, PublishRefused
from outbox_saga.queries import backlog
from outbox_saga.unit_of_work import UnitOfWork, unit_of_work
from tests.write_path.shop import Order, Said, Shop


@pytest.fixture(autouse=True)
def counted_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "LOOK", 0.0)


def test_at_the_limit_the_whole_transaction_is_refused_and_below_it_goes_on(shop: Shop) -> None:
    for number in range(3):
        with Session(shop.engine) as session, session.begin():
            UnitOfWork(session, max_pending=3).publish(Said(word=f"{number}"))
    session = Session(shop.engine)
    session.add(Order(note="paid"))
    UnitOfWork(session, max_pending=3).publish(Said(word="too much"))
    with pytest.raises(OutboxFull, match="3 messages wait"):
        session.commit()
    session.close()
    assert (shop.words(), shop.notes()) == (["0", "1", "2"], [])
    assert issubclass(OutboxFull, PublishRefused)
    with Session(shop.engine) as session, session.begin():
        UnitOfWork(session).publish(Said(word="without a limit"))
    shop.empty()
    with Session(shop.engine) as session, session.begin():
        UnitOfWork(session, max_pending=3).publish(Said(word="again"))
    assert shop.words() == ["again"]


def test_of_several_limits_in_one_transaction_the_lowest_holds(shop: Shop) -> None:
    with Session(shop.engine) as session, session.begin():
        UnitOfWork(session).publish_many([Said(word="a"), Said(word="b")])
    session = Session(shop.engine)
    session.begin()
    UnitOfWork(session, max_pending=100).publish(Said(word="c"))
    UnitOfWork(session, max_pending=2).publish(Said(word="d"))
    with pytest.raises(OutboxFull):
        session.commit()
    session.close()
    assert shop.words() == ["a", "b"]


async def test_an_async_unit_is_refused_as_well(shop: Shop) -> None:
    engine = shop.make_async_engine()
    make = async_sessionmaker(engine)
    async with unit_of_work(make, max_pending=1) as uow:
        uow.publish(Said(word="a"))
    with pytest.raises(OutboxFull):
        async with unit_of_work(make, max_pending=1) as uow:
            uow.publish(Said(word="b"))
    await engine.dispose()
    assert shop.words() == ["a"]


def test_a_transaction_that_publishes_nothing_is_not_asked(shop: Shop) -> None:
    with Session(shop.engine) as session, session.begin():
        UnitOfWork(session).publish(Said(word="a"))
    with unit_of_work(_maker(shop), max_pending=1) as uow:
        uow.session.add(Order(note="paid"))
    assert shop.notes() == ["paid"]


def test_one_count_serves_all_transactions_of_a_while(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "LOOK", 3600.0)
    asked: list[int] = []
    count = backlog.pending_up_to

    def counting(*args: Any) -> int:
        asked.append(1)
        return count(*args)

    monkeypatch.setattr(backlog, "pending_up_to", counting)
    for _ in range(5):
        with Session(shop.engine) as session, session.begin():
            UnitOfWork(session, max_pending=10).publish(Said(word="a"))
    assert len(asked) == 1
    assert len(shop.words()) == 5


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_that_lets_nothing_through_is_refused(shop: Shop, limit: int) -> None:
    with Session(shop.engine) as session, pytest.raises(ConfigurationError, match="max_pending"):
        UnitOfWork(session, max_pending=limit)


def _maker(shop: Shop) -> Any:
    from sqlalchemy.orm import sessionmaker

    return sessionmaker(shop.engine)
