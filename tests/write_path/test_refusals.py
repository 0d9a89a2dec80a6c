"""What is refused at the door: with its path, at once; the caller's transaction still works."""

from __future__ import annotations

import pytest
from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from outbox_saga.errors import MessageRefused
from outbox_saga.messages import Event
from tests.write_path.bad_inputs import Bad, corpus
from tests.write_path.shop import INSERT, Order, Shop, order, say

CORPUS = corpus()


def test_the_corpus_is_worth_its_name() -> None:
    assert len(CORPUS) >= 150


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("bad", CORPUS, ids=lambda bad: bad.name)
def test_it_is_refused_with_its_path_and_the_transaction_goes_on(shop: Shop, bad: Bad) -> None:
    with Session(shop.engine) as session, session.begin():
        say(session, "before")
        order(session, "before")
        with pytest.raises(MessageRefused) as refused:
            bad.publish(session)
        order(session, "after")
        say(session, "after")
    assert refused.value.path in (bad.path, bad.path + bad.turn), refused.value
    assert refused.value.reason
    assert len(str(refused.value)) < 1000, "a refusal repeats no payload"
    assert (shop.words(), shop.notes()) == (["before", "after"], ["before", "after"])


def test_two_fields_with_one_name_outside_are_refused_where_the_class_is_made() -> None:
    with pytest.raises(MessageRefused) as refused:

        class Twice(Event, topic="talk"):
            one: str = Field(serialization_alias="other")
            other: str

    assert refused.value.path == "other"


def test_on_each_database_a_session_survives_each_of_them(shop: Shop) -> None:
    """Each in its own transaction, and then all of them in one."""
    with Session(shop.engine) as session:
        for number, bad in enumerate(CORPUS):
            order(session, number)
            with pytest.raises(MessageRefused):
                bad.publish(session)
            if number % 10 == 0:
                session.commit()
        say(session, "said")
        session.commit()
    assert shop.notes() == [str(number) for number in range(len(CORPUS))]
    assert shop.words() == ["said"]


async def test_so_does_an_async_session(shop: Shop, async_engine: AsyncEngine) -> None:
    async with AsyncSession(async_engine) as session:
        for number, bad in enumerate(CORPUS):
            session.add(Order(note=str(number)))
            with pytest.raises(MessageRefused):
                bad.publish(session)
        say(session, "said")
        await session.commit()
    assert shop.notes() == [str(number) for number in range(len(CORPUS))]
    assert shop.words() == ["said"]


def test_so_does_a_connection(shop: Shop) -> None:
    with shop.engine.begin() as connection:
        for number, bad in enumerate(CORPUS):
            connection.execute(INSERT, {"note": str(number)})
            with pytest.raises(MessageRefused):
                bad.publish(connection)
        say(connection, "said")
    assert shop.notes() == [str(number) for number in range(len(CORPUS))]
    assert shop.words() == ["said"]
