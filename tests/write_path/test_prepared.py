"""Once psycopg has prepared our INSERT it goes by libpq's own call, and nobody can tell."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, Literal
from uuid import UUID

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from outbox_saga import async_commit_outcome, commit_outcome
from outbox_saga.envelopes import seal, seal_body
from outbox_saga.errors import CommitUnknown
from outbox_saga.queries import driver, prepared
from outbox_saga.queries.outbox import write_messages
from outbox_saga.unit_of_work import UnitOfWork, unit_of_work
from tests.fixtures.databases import Database
from tests.write_path.between import When, between
from tests.write_path.shop import Order, Said, Shop

pytestmark = [
    pytest.mark.databases("postgres18", "postgres15"),
    pytest.mark.needs_a_session("has psycopg prepare statements, which are one session's"),
]

AT_ONCE = {"prepare_threshold": 0}  # psycopg prepares what it sees the first time
LOST: list[When] = ["before the server has it", "before the answer comes back"]
Way = Literal["short", "cursor"]


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[Way]:
    """How each INSERT of this test went."""
    went: list[Way] = []
    find = prepared.sender

    def sender(*arguments: Any) -> Any:
        found = find(*arguments)
        went.append("cursor" if found is None else "short")
        return found

    monkeypatch.setattr(driver, "sender", sender)
    return went


@pytest.fixture
def engine(shop: Shop) -> sa.Engine:
    """One connection, which prepares at once."""
    return shop.make_plain_engine(connect_args=AT_ONCE, pool_size=1, max_overflow=0)


def say(engine: sa.Engine, *words: str, key: str | None = "k") -> None:
    with Session(engine) as session, session.begin():
        session.add(Order(note=words[0]))
        for word in words:
            UnitOfWork(session).publish(Said(word=word), key=key)


def test_what_psycopg_has_prepared_goes_the_short_way(
    shop: Shop, engine: sa.Engine, ways: list[Way]
) -> None:
    for word in ("a", "b", "c"):
        say(engine, word)
    assert ways == ["cursor", "short", "short"]
    assert shop.words() == shop.notes() == ["a", "b", "c"]


def test_the_first_statement_of_a_transaction_goes_by_the_cursor_which_begins(
    shop: Shop, engine: sa.Engine, ways: list[Way]
) -> None:
    for word in ("a", "b"):
        with Session(engine) as session, session.begin():
            UnitOfWork(session).publish(Said(word=word), key="k")
    assert ways == ["cursor", "cursor"]
    assert shop.words() == ["a", "b"]


def test_with_psycopgs_own_threshold_it_takes_six(shop: Shop, ways: list[Way]) -> None:
    engine = shop.make_plain_engine()
    for number in range(8):
        say(engine, str(number))
    assert ways == ["cursor"] * 6 + ["short"] * 2
    assert shop.words() == [str(number) for number in range(8)]


async def test_so_it_does_on_async_connections(shop: Shop, ways: list[Way]) -> None:
    engine = shop.make_plain_async_engine(connect_args=AT_ONCE)
    for word in ("a", "b", "c"):
        async with unit_of_work(async_sessionmaker(engine)) as uow:
            uow.session.add(Order(note=word))
            uow.publish(Said(word=word), key="k")
    await engine.dispose()
    assert ways == ["cursor", "short", "short"]
    assert shop.words() == ["a", "b", "c"]


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize("keyed", [True, False])
def test_both_ways_write_the_same_bytes(
    shop: Shop, engine: sa.Engine, ways: list[Way], rows: int, keyed: bool
) -> None:
    """Letters outside ASCII, every byte, no key and a key, several locks."""
    envelopes = [
        seal_body(
            bytes(range(256)) * (number + 1),
            type_="Bytes",
            topic="talk",
            key=f"schlüssel-{number % 3}-日本" if keyed and number != 1 else None,
            content_type="application/octet-stream",
            headers={"note": "größer \\ \" 'als'"},
            source="wörk",
        )
        for number in range(rows)
    ]
    written = []
    for _ in range(3):
        with engine.begin() as connection:
            connection.execute(sa.text("select 1"))  # it has begun
            write_messages(connection, shop.tables, envelopes)
        written.append([row._replace(position=0) for row in shop.rows()])
        shop.execute("delete from outbox_saga_outbox")
    assert ways == ["cursor", "short", "short"]
    assert len(written[0]) == rows
    assert written[1] == written[2] == written[0]
    assert [row.body for row in written[2]] == [envelope.body for envelope in envelopes]


def test_a_text_that_no_column_takes_is_refused_and_not_cut_off(
    shop: Shop, engine: sa.Engine, ways: list[Way]
) -> None:
    """Nobody can publish one; it is the last door."""
    say(engine, "a")
    envelope = replace(seal(Said(word="b")), key="be\x00fore")
    with engine.connect() as connection:
        connection.execute(sa.text("select 1"))
        with pytest.raises(DBAPIError, match="0x00"):
            write_messages(connection, shop.tables, [envelope])
    assert ways == ["cursor", "short"]
    assert shop.words() == ["a"]


def test_its_answer_tells_the_transaction(shop: Shop, engine: sa.Engine, ways: list[Way]) -> None:
    envelope = seal(Said(word="a"), key="k")
    for _ in range(2):
        with engine.begin() as connection:
            connection.execute(sa.text("select 1"))
            answer = write_messages(connection, shop.tables, [envelope])
            assert answer is not None
            number = connection.scalar(sa.text("select pg_current_xact_id()::text"))
            assert answer()[0].split(" ")[0] == number
    assert ways == ["cursor", "short"]


@pytest.mark.parametrize("when", LOST)
def test_a_lost_answer_to_commit_can_be_asked_for(shop: Shop, when: When, ways: list[Way]) -> None:
    with between(shop.url) as line:
        through = sa.create_engine(line.url, connect_args=AT_ONCE)
        say(through, "before")
        ids: list[UUID] = []
        with Session(through) as session:
            session.add(Order(note="paid"))
            ids.append(UnitOfWork(session).publish(Said(word="a"), key="k"))
            line.lose = when
            with pytest.raises(CommitUnknown) as told:
                session.commit()
        through.dispose()
    committed = when != "before the server has it"
    assert ways == ["cursor", "short"]
    assert list(told.value.message_ids) == ids
    assert commit_outcome(shop.make_plain_engine(), told.value) is committed
    assert shop.words() == ["before", "a"][: 1 + committed]
    assert shop.notes() == ["before", "paid"][: 1 + committed]


@pytest.mark.parametrize("when", LOST)
async def test_so_it_can_on_async_connections(shop: Shop, when: When, ways: list[Way]) -> None:
    with between(shop.url) as line:
        through = create_async_engine(
            Database(shop.name, line.url).async_url, connect_args=AT_ONCE
        )
        make = async_sessionmaker(through)
        async with unit_of_work(make) as uow:
            uow.session.add(Order(note="before"))
            uow.publish(Said(word="before"), key="k")
        async with make() as session:
            session.add(Order(note="paid"))
            UnitOfWork(session).publish(Said(word="a"), key="k")
            line.lose = when
            with pytest.raises(CommitUnknown) as told:
                await session.commit()
        await through.dispose()
    engine = shop.make_plain_async_engine()
    committed = when != "before the server has it"
    assert ways == ["cursor", "short"]
    assert await async_commit_outcome(engine, told.value) is committed
    await engine.dispose()


def test_an_error_of_the_server_is_sqlalchemys_and_nothing_is_committed(
    shop: Shop, engine: sa.Engine, ways: list[Way]
) -> None:
    heard: list[str | None] = []
    event.listen(engine, "handle_error", lambda context: heard.append(context.statement))
    say(engine, "before")
    shop.execute(
        "alter table outbox_saga_outbox add constraint never check (topic <> 'talk') not valid"
    )
    try:
        with pytest.raises(IntegrityError) as refused:
            say(engine, "refused")
    finally:
        shop.execute("alter table outbox_saga_outbox drop constraint never")
    assert isinstance(refused.value.orig, psycopg.errors.CheckViolation)
    assert [each is not None and "INSERT INTO" in each for each in heard] == [True]
    assert shop.words() == shop.notes() == ["before"]
    say(engine, "after")
    # psycopg forgets what it has prepared when it rolls back
    assert ways == ["cursor", "short", "cursor"]
    assert shop.words() == shop.notes() == ["before", "after"]


@pytest.mark.parametrize("forgotten", ["discard all", "deallocate all"])
def test_what_the_session_has_forgotten_is_prepared_anew(
    shop: Shop, engine: sa.Engine, ways: list[Way], forgotten: str
) -> None:
    say(engine, "a")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(forgotten)
    say(engine, "b")
    say(engine, "c")
    assert ways == ["cursor", "cursor", "short"]
    assert shop.words() == ["a", "b", "c"]


def test_a_connection_that_ends_is_invalidated(
    shop: Shop, engine: sa.Engine, ways: list[Way]
) -> None:
    say(engine, "a")
    with engine.connect() as connection:
        number = connection.scalar(sa.text("select pg_backend_pid()"))
        shop.execute(f"select pg_terminate_backend({number})")
        message = seal(Said(word="never"), key="k")
        with pytest.raises(DBAPIError) as lost:
            write_messages(connection, shop.tables, [message])
        assert lost.value.connection_invalidated
        assert connection.invalidated
    say(engine, "b")
    assert shop.words() == ["a", "b"]
    assert ways[0] == "cursor"


def wrapped(engine: sa.Engine) -> None:
    original: Any = engine.dialect.do_execute
    vars(engine.dialect)["do_execute"] = functools.partial(original)


def with_another_cursor(engine: sa.Engine) -> None:
    class Traced(psycopg.Cursor[Any]):
        """As instrumentation makes it."""

    @event.listens_for(engine, "checkout")
    def checked_out(connection: Any, *_: Any) -> None:
        connection.cursor_factory = Traced


def in_another_encoding(engine: sa.Engine) -> None:
    @event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql("set local client_encoding = 'LATIN1'")


@pytest.mark.parametrize("change", [wrapped, with_another_cursor, in_another_encoding])
def test_where_somebody_else_has_to_see_it_it_goes_by_the_cursor(
    shop: Shop, engine: sa.Engine, ways: list[Way], change: Any
) -> None:
    change(engine)
    for word in ("ä", "ö", "ü"):
        say(engine, word, key="schlüssel")
    assert ways == ["cursor"] * 3
    assert shop.words() == ["ä", "ö", "ü"]


def test_psycopg_keeps_its_record_where_we_look_for_it(shop: Shop, engine: sa.Engine) -> None:
    """It has no public name: here it shows if some version renames it."""
    say(engine, "a")
    with engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        assert raw._pipeline is None
        (key,) = [key for key in raw._prepared._names if b"outbox_saga_outbox" in key[0]]
        assert key[1] == (0, 21, 0, 0, 0, 17, 21)
