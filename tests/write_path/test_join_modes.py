"""A session inside somebody else's transaction: its messages share the fate of THAT one."""

from __future__ import annotations

from typing import Literal

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from outbox_saga.errors import MessagesLeftOut
from tests.write_path.shop import INSERT, Order, Shop, order, say

Mode = Literal["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"]
every_mode = pytest.mark.parametrize(
    "mode", ["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"]
)
in_savepoint = pytest.mark.parametrize("nested", [False, True], ids=["root", "savepoint"])


@every_mode
@in_savepoint
def test_session_commits_and_outer_commits(shop: Shop, mode: Mode, *, nested: bool) -> None:
    with shop.engine.connect() as connection:
        connection.begin()
        connection.execute(INSERT, {"note": "outer"})
        if nested:
            connection.begin_nested()
        with Session(connection, join_transaction_mode=mode) as session:
            order(session, "inner")
            say(session, "inner")
            session.commit()
        if connection.in_transaction():  # else the session had full control
            if not nested or mode != "control_fully":
                assert shop.words() == []
            say(connection, "outer")
            connection.commit()
            assert shop.words() == ["inner", "outer"]
    assert "inner" in shop.words()
    assert shop.notes() == ["outer", "inner"]


@every_mode
@in_savepoint
def test_session_commits_and_outer_rolls_back(shop: Shop, mode: Mode, *, nested: bool) -> None:
    with shop.engine.connect() as connection:
        outer = connection.begin()
        if nested:
            connection.begin_nested()
        with Session(connection, join_transaction_mode=mode) as session:
            order(session, "inner")
            say(session, "inner")
            session.commit()
        if outer.is_active:
            outer.rollback()
    gone = mode != "control_fully" or nested
    assert (shop.words(), shop.notes()) == (([], []) if gone else (["inner"], ["inner"]))


@every_mode
def test_session_commits_and_the_savepoint_around_it_rolls_back(shop: Shop, mode: Mode) -> None:
    with shop.engine.begin() as connection:
        say(connection, "before")
        savepoint = connection.begin_nested()
        deeper = connection.begin_nested()
        with Session(connection, join_transaction_mode=mode) as session:
            order(session, "inner")
            say(session, "inner")
            session.commit()
        if deeper.is_active:
            deeper.commit()
        savepoint.rollback()
        say(connection, "after")
    assert (shop.words(), shop.notes()) == (["before", "after"], [])


@every_mode
@in_savepoint
def test_session_rolls_back_and_outer_commits(shop: Shop, mode: Mode, *, nested: bool) -> None:
    with shop.engine.connect() as connection:
        outer = connection.begin()
        connection.execute(INSERT, {"note": "outer"})
        say(connection, "outer")
        if nested:
            connection.begin_nested()
        with Session(connection, join_transaction_mode=mode) as session:
            order(session, "inner")
            say(session, "inner")
            session.rollback()
        if outer.is_active:
            outer.commit()
    kept = nested or mode == "create_savepoint"
    assert (shop.words(), shop.notes()) == ((["outer"], ["outer"]) if kept else ([], []))


@every_mode
@in_savepoint
def test_session_closes_without_commit_and_outer_commits(
    shop: Shop, mode: Mode, *, nested: bool
) -> None:
    """Closing undoes what was done, or leaves it to the outer transaction: refused then."""
    with shop.engine.connect() as connection:
        outer = connection.begin()
        connection.execute(INSERT, {"note": "outer"})
        say(connection, "outer")
        if nested:
            connection.begin_nested()
        with Session(connection, join_transaction_mode=mode) as session:
            order(session, "inner")
            session.flush()
            say(session, "inner")
        flushed_row_stays = mode == "rollback_only" or (
            mode == "conditional_savepoint" and not nested
        )
        if flushed_row_stays:
            with pytest.raises(MessagesLeftOut, match="closed without"):
                outer.commit()
            outer.rollback()
        elif outer.is_active:
            outer.commit()
    if flushed_row_stays or (mode == "control_fully" and not nested):
        assert (shop.words(), shop.notes()) == ([], [])
    else:
        assert (shop.words(), shop.notes()) == (["outer"], ["outer"])


def test_what_a_closed_session_left_behind_may_be_undone_by_a_savepoint(shop: Shop) -> None:
    with shop.engine.begin() as connection:
        say(connection, "outer")
        savepoint = connection.begin_nested()
        with Session(connection, join_transaction_mode="rollback_only") as session:
            order(session, "inner")
            session.flush()
            say(session, "inner")
        savepoint.rollback()
    assert (shop.words(), shop.notes()) == (["outer"], [])


def test_the_outer_commit_takes_along_a_session_that_is_still_open(shop: Shop) -> None:
    with shop.engine.connect() as connection:
        connection.begin()
        session = Session(connection)
        order(session, "row")
        session.flush()
        say(session, "said")
        connection.commit()
        session.close()
    assert (shop.words(), shop.notes()) == (["said"], ["row"])


def test_two_sessions_and_their_connection_write_in_the_order_of_publishing(shop: Shop) -> None:
    with shop.engine.begin() as connection:
        first, second = Session(connection), Session(connection)
        say(connection, 0)
        first.begin()
        second.begin()
        say(first, 1)
        say(second, 2)
        say(first, 3)
        second.commit()
        say(connection, 4)
        first.commit()
        first.close()
        second.close()
    assert shop.words() == ["0", "1", "2", "3", "4"]


@every_mode
@pytest.mark.parametrize("sql", [False, True], ids=["no sql", "sql"])
async def test_async_session_commits_and_outer_commits(
    shop: Shop, async_engine: AsyncEngine, mode: Mode, *, sql: bool
) -> None:
    async with async_engine.connect() as connection:
        await connection.begin()
        async with AsyncSession(connection, join_transaction_mode=mode) as session:
            await session.begin()
            if sql:
                session.add(Order(note="inner"))
                await session.flush()
            say(session, "inner")
            await session.commit()
        if connection.in_transaction():
            await connection.commit()
    assert (shop.words(), shop.notes()) == (["inner"], ["inner"] if sql else [])


@every_mode
async def test_async_session_commits_and_outer_rolls_back(
    shop: Shop, async_engine: AsyncEngine, mode: Mode
) -> None:
    async with async_engine.connect() as connection:
        await connection.begin()
        await connection.begin_nested()
        async with AsyncSession(connection, join_transaction_mode=mode) as session:
            await session.begin()
            say(session, "inner")
            await session.commit()
        await connection.rollback()
    assert shop.words() == []
