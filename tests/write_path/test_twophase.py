"""Two-phase transactions: what was published is part of what is prepared."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from outbox_saga.errors import MessagesLeftOut
from tests.write_path.shop import INSERT, Order, Shop, order, say

pytestmark = pytest.mark.databases("postgres18", "postgres15", "mariadb")


def test_a_two_phase_session_commits_its_messages(shop: Shop) -> None:
    with Session(shop.engine, twophase=True) as session:
        order(session, "row")
        say(session, "said")
        with session.begin_nested():
            say(session, "nested")
        nested = session.begin_nested()
        say(session, "undone")
        nested.rollback()
        session.commit()
    assert (shop.words(), shop.notes()) == (["said", "nested"], ["row"])


def test_a_two_phase_session_rolls_back(shop: Shop) -> None:
    with Session(shop.engine, twophase=True) as session:
        order(session, "row")
        say(session, "said")
        session.rollback()
    assert (shop.words(), shop.notes()) == ([], [])


def test_a_prepared_session_commits_what_was_published_before(shop: Shop) -> None:
    with Session(shop.engine, twophase=True) as session:
        order(session, "row")
        say(session, "said")
        session.prepare()
        assert shop.words() == []
        with pytest.raises(MessagesLeftOut):
            say(session, "late")
        session.commit()
    assert (shop.words(), shop.notes()) == (["said"], ["row"])


def test_a_prepared_session_rolls_back(shop: Shop) -> None:
    with Session(shop.engine, twophase=True) as session:
        order(session, "row")
        say(session, "said")
        session.prepare()
        session.rollback()
    assert (shop.words(), shop.notes()) == ([], [])


def test_a_two_phase_session_without_any_sql_commits_its_messages(shop: Shop) -> None:
    with Session(shop.engine, twophase=True) as session:
        session.begin()
        say(session, "said")
        session.commit()
    assert shop.words() == ["said"]


@pytest.mark.parametrize("prepare", [False, True], ids=["without prepare", "with prepare"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_two_phase_connection(shop: Shop, end: str, *, prepare: bool) -> None:
    with shop.engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(INSERT, {"note": "row"})
        say(connection, "said")
        if prepare:
            transaction.prepare()
        getattr(transaction, end)()
    assert (shop.words(), shop.notes()) == ((["said"], ["row"]) if end == "commit" else ([], []))


def test_publishing_after_prepare_is_refused_and_what_is_prepared_still_commits(
    shop: Shop,
) -> None:
    with shop.engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(INSERT, {"note": "row"})
        say(connection, "said")
        transaction.prepare()
        with pytest.raises(MessagesLeftOut):
            say(connection, "late")
        transaction.commit()
        with connection.begin():
            say(connection, "next")
    assert (shop.words(), shop.notes()) == (["said", "next"], ["row"])


@pytest.mark.parametrize("prepare", [False, True], ids=["without prepare", "with prepare"])
def test_when_the_outbox_cannot_be_written_nothing_is_committed(
    shop: Shop, *, prepare: bool
) -> None:
    with shop.outbox_gone(), shop.engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(INSERT, {"note": "row"})
        say(connection, "said")
        with pytest.raises(ProgrammingError):
            transaction.prepare() if prepare else transaction.commit()
        transaction.rollback()
        with connection.begin():
            connection.execute(INSERT, {"note": "next"})
    assert (shop.words(), shop.notes()) == ([], ["next"])


async def test_a_two_phase_async_session_commits_its_messages(
    shop: Shop, async_engine: AsyncEngine
) -> None:
    async with AsyncSession(async_engine, twophase=True) as session:
        await session.begin()
        say(session, "without sql")
        await session.commit()
        session.add(Order(note="row"))
        say(session, "said")
        await session.commit()
        session.add(Order(note="undone"))
        say(session, "undone")
        await session.rollback()
    assert (shop.words(), shop.notes()) == (["without sql", "said"], ["row"])


async def test_publishing_on_a_prepared_async_session_is_refused(
    shop: Shop, async_engine: AsyncEngine
) -> None:
    async with AsyncSession(async_engine, twophase=True) as session:
        session.add(Order(note="row"))
        say(session, "said")
        await session.run_sync(lambda sync: sync.prepare())
        with pytest.raises(MessagesLeftOut):
            say(session, "late")
        await session.commit()
    assert (shop.words(), shop.notes()) == (["said"], ["row"])
