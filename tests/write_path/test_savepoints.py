"""Nested transactions in all shapes: a message shares the fate of each one it was published in."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from tests.write_path.programs import (
    expected,
    run_async_connection,
    run_async_session,
    run_connection,
    run_session,
)
from tests.write_path.shop import Order, Shop, say

# name: (program, words that leave, notes that are committed)
SHAPES = {
    "one message": ("pC", "0", ""),
    "a message and a row": ("spC", "0", "0"),
    "rolled back": ("spR", "", ""),
    "closed": ("spX", "", ""),
    "inner released": ("sp(sp)pC", "012", "01"),
    "inner rolled back": ("sp(sp!pC", "02", "0"),
    "inner rolled back after outer rolled back too": ("sp(sp!R", "", ""),
    "middle rolled back after inner released": ("sp(p(sp)p!pC", "04", "0"),
    "middle released after inner rolled back": ("sp(p(sp!p)pC", "0134", "0"),
    "three released": ("sp(p(p(sp))p)pC", "012345", "01"),
    "three deep, middle rolled back": ("p(p(p(sp))p!spC", "05", "1"),
    "nested released without sql, before any": ("(p)C", "0", ""),
    "nested rolled back before any sql": ("(p!pC", "1", ""),
    "nested rolled back before any sql, nothing else": ("(p!C", "", ""),
    "two nested, none with sql, outer of them rolled back": ("p(p(p)!C", "0", ""),
    "outer message before, savepoint before any sql": ("p(sp!C", "0", ""),
    "inner released, outer rolled back": ("sp(sp)R", "", ""),
    "nested comes first, released, outer rolled back": ("(sp)R", "", ""),
    "nested comes first, released, outer closed": ("(sp)X", "", ""),
    "message first, nested released, outer rolled back": ("p(sp)R", "", ""),
    "two nested first, both released, outer rolled back": ("((sp)sp)R", "", ""),
    "siblings": ("(sp)(sp!(sp)C", "02", "02"),
    "commit with an open nested": ("sp(spC", "01", "01"),
    "commit with two open nested": ("sp(p(spC", "012", "01"),
    "rollback with an open nested": ("sp(spR", "", ""),
    "close with an open nested": ("sp(spX", "", ""),
    "two transactions of one session": ("spCspC", "01", "01"),
    "rollback, then commit": ("spRspC", "1", "1"),
    "close, then commit": ("spXspC", "1", "1"),
    "nested closed, then commit in the next transaction": ("p(spXpC", "2", ""),
    "messages only, three transactions": ("pCpRpC", "02", ""),
}
# only sessions: a Connection has no other connection, and warns when savepoints end out of order
SESSION_SHAPES = {
    "middle rolled back while inner is open": ("sp(sp(sp^pC", "03", "0"),
    "middle released while inner is open": ("sp(sp(sp}pC", "0123", "012"),
    "on the connection inside nested, rolled back": ("sp(sc!pC", "02", "0"),
    "on the connection inside nested, released": ("sp(sc)cC", "012", "01"),
    "on the connection, middle rolled back": ("c(c(c)c!cC", "04", ""),
}


def check(shop: Shop, shape: tuple[str, str, str]) -> None:
    program, words, notes = shape
    assert (shop.words(), shop.notes()) == (list(words), list(notes)), program
    assert expected(program) == (list(words), list(notes)), (
        "the model of test_random_programs errs"
    )


@pytest.mark.parametrize("shape", [*SHAPES, *SESSION_SHAPES])
def test_session(shop: Shop, shape: str) -> None:
    wanted = (SHAPES | SESSION_SHAPES)[shape]
    run_session(shop, wanted[0])
    check(shop, wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_connection(shop: Shop, shape: str) -> None:
    run_connection(shop, SHAPES[shape][0])
    check(shop, SHAPES[shape])


@pytest.mark.parametrize("shape", [*SHAPES, *SESSION_SHAPES])
async def test_async_session(shop: Shop, async_engine: AsyncEngine, shape: str) -> None:
    wanted = (SHAPES | SESSION_SHAPES)[shape]
    await run_async_session(async_engine, wanted[0])
    check(shop, wanted)


@pytest.mark.parametrize("shape", SHAPES)
async def test_async_connection(shop: Shop, async_engine: AsyncEngine, shape: str) -> None:
    await run_async_connection(async_engine, SHAPES[shape][0])
    check(shop, SHAPES[shape])


def test_a_savepoint_of_the_connection_drops_what_the_session_published_inside(shop: Shop) -> None:
    with Session(shop.engine) as session:
        session.add(Order(note="kept"))
        session.flush()
        say(session, "before")
        savepoint = session.connection().begin_nested()
        session.add(Order(note="undone"))
        session.flush()
        say(session, "inside")
        savepoint.rollback()
        session.expunge_all()
        say(session, "after")
        session.commit()
    assert (shop.words(), shop.notes()) == (["before", "after"], ["kept"])


async def test_a_savepoint_of_the_async_connection_does_so_too(
    shop: Shop, async_engine: AsyncEngine
) -> None:
    async with AsyncSession(async_engine) as session:
        session.add(Order(note="kept"))
        await session.flush()
        say(session, "before")
        savepoint = await (await session.connection()).begin_nested()
        session.add(Order(note="undone"))
        await session.flush()
        say(session, "inside")
        await savepoint.rollback()
        session.expunge_all()
        say(session, "after")
        await session.commit()
    assert (shop.words(), shop.notes()) == (["before", "after"], ["kept"])


def test_a_savepoint_around_two_sessions_drops_what_both_published(shop: Shop) -> None:
    with shop.engine.begin() as connection:
        say(connection, "connection before")
        savepoint = connection.begin_nested()
        for name in ("first", "second"):
            with Session(connection) as session:
                session.add(Order(note=name))
                say(session, name)
                session.commit()
        savepoint.rollback()
        with Session(connection) as session:
            session.add(Order(note="third"))
            say(session, "third")
            session.commit()
        say(connection, "connection after")
    assert shop.words() == ["connection before", "third", "connection after"]
    assert shop.notes() == ["third"]


def test_a_savepoint_around_two_sessions_keeps_what_both_published(shop: Shop) -> None:
    with shop.engine.begin() as connection:
        with connection.begin_nested():
            for name in ("first", "second"):
                with Session(connection) as session:
                    session.add(Order(note=name))
                    say(session, name)
                    session.commit()
        say(connection, "connection")
    assert (shop.words(), shop.notes()) == (["first", "second", "connection"], ["first", "second"])


def test_a_nested_block_left_by_an_exception_takes_its_messages_along(shop: Shop) -> None:
    def fail(session: Session) -> None:
        with session.begin_nested():
            session.add(Order(note="undone"))
            say(session, "inner")
            raise LookupError

    with Session(shop.engine) as session, session.begin():
        say(session, "outer")
        with pytest.raises(LookupError):
            fail(session)
        session.add(Order(note="instead"))
    assert (shop.words(), shop.notes()) == (["outer"], ["instead"])


def test_a_failing_flush_inside_a_nested_block_takes_only_its_messages_along(shop: Shop) -> None:
    def fail(session: Session) -> None:
        with session.begin_nested():
            say(session, "inner")
            session.execute(sa.insert(Order).values(id=1, note="again"))

    with Session(shop.engine) as session, session.begin():
        session.add(Order(id=1, note="kept"))
        say(session, "outer")
        session.flush()
        with pytest.raises(IntegrityError):
            fail(session)
        say(session, "after")
    assert (shop.words(), shop.notes()) == (["outer", "after"], ["kept"])


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("shape", [*SHAPES, *SESSION_SHAPES])
def test_session_on_sqlites_driver_as_it_comes(shop: Shop, shape: str) -> None:
    """The driver begins before the first write, not before a savepoint: its release committed."""
    wanted = (SHAPES | SESSION_SHAPES)[shape]
    shop.engine = shop.make_plain_engine()
    run_session(shop, wanted[0])
    check(shop, wanted)


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("shape", SHAPES)
def test_connection_on_sqlites_driver_as_it_comes(shop: Shop, shape: str) -> None:
    shop.engine = shop.make_plain_engine()
    run_connection(shop, SHAPES[shape][0])
    check(shop, SHAPES[shape])


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("shape", [*SHAPES, *SESSION_SHAPES])
async def test_async_session_on_sqlites_driver_as_it_comes(shop: Shop, shape: str) -> None:
    wanted = (SHAPES | SESSION_SHAPES)[shape]
    engine = shop.make_plain_async_engine()
    await run_async_session(engine, wanted[0])
    await engine.dispose()
    check(shop, wanted)
