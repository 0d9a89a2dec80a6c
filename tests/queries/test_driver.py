"""A statement by the driver's own cursor is seen, and fails, as SQLAlchemy's own do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

from outbox_saga.database import Database
from outbox_saga.queries.driver import ask, execute
from tests.fixtures.databases import Database as Given


@pytest.fixture
def ours(database: Given) -> Iterator[Database]:
    ours = Database(database.url)
    with ours.begin() as connection:
        connection.exec_driver_sql("create table word (word varchar(20) primary key)")
    yield ours
    ours.engine.dispose()


def insert(connection: sa.Connection, word: str) -> None:
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    execute(connection, f"insert into word values ({mark})", (word,))


def ignore(*_: object) -> None:
    """A listener that is there."""


def words(ours: Database) -> list[str]:
    with ours.begin() as connection:
        return list(connection.scalars(sa.text("select word from word order by word")))


def test_it_is_part_of_the_transaction(ours: Database) -> None:
    with ours.engine.connect() as connection:
        insert(connection, "undone")
        connection.rollback()
        insert(connection, "done")
        connection.commit()
    assert words(ours) == ["done"]


@pytest.mark.parametrize("watched", [False, True])
def test_what_it_answers_can_be_read_later(ours: Database, watched: bool) -> None:
    with ours.engine.connect() as connection:
        if watched:
            event.listen(connection, "after_cursor_execute", ignore)
        answer = ask(connection, "select 'a', 'b'", ())
        assert tuple(answer()) == ("a", "b")


async def test_so_it_can_on_an_async_connection(ours: Database) -> None:
    async with ours.async_engine.connect() as connection:
        answer = await connection.run_sync(lambda c: ask(c, "select 'a', 'b'", ()))
        assert tuple(answer()) == ("a", "b")
    await ours.close()


@pytest.mark.parametrize("name", ["before_cursor_execute", "after_cursor_execute"])
@pytest.mark.parametrize("target", ["engine", "connection"])
def test_listeners_see_it_with_a_context(ours: Database, name: str, target: str) -> None:
    """As OpenTelemetry's need it."""
    seen: list[tuple[str, Any]] = []

    def listen(
        conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: Any
    ) -> None:
        seen.append((statement.split(maxsplit=1)[0], context.executemany))

    with ours.engine.connect() as connection:
        event.listen(ours.engine if target == "engine" else connection, name, listen)
        insert(connection, "x")
    assert ("insert", False) in seen


def test_whoever_wraps_do_execute_sees_it(ours: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = ours.engine.dialect.do_execute

    def do_execute(cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement.split(maxsplit=1)[0])
        original(cursor, statement, *rest)

    monkeypatch.setattr(ours.engine.dialect, "do_execute", do_execute)
    with ours.engine.connect() as connection:
        insert(connection, "x")
    assert seen[-1] == "insert"


def test_echo_shows_it(ours: Database, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, "sqlalchemy.engine.Engine"),
        ours.engine.connect() as connection,
    ):
        insert(connection, "x")
    assert any(record.message.startswith("insert into word") for record in caplog.records)


@pytest.mark.parametrize("watched", [False, True])
def test_an_error_is_sqlalchemys_and_handle_error_hears_of_it(
    ours: Database, watched: bool
) -> None:
    heard: list[str | None] = []
    event.listen(ours.engine, "handle_error", lambda context: heard.append(context.statement))
    with ours.engine.connect() as connection:
        if watched:
            event.listen(connection, "after_cursor_execute", ignore)
        insert(connection, "once")
        with pytest.raises(IntegrityError) as refused:
            insert(connection, "once")
        connection.rollback()
        insert(connection, "again")
        connection.commit()
    assert [each is not None and each.split()[0] for each in heard] == ["insert"]
    assert refused.value.statement is not None
    assert "parameters hidden" in str(refused.value)
    assert words(ours) == ["again"]


def test_a_missing_table_is_told_by_its_code(ours: Database) -> None:
    with ours.engine.connect() as connection, pytest.raises(DBAPIError) as missing:
        execute(connection, "insert into nowhere values (1)", ())
    assert ours.engine.dialect.name == "sqlite" or isinstance(missing.value, ProgrammingError)


@pytest.mark.databases("postgres18", "mariadb")
def test_a_lost_connection_is_invalidated(ours: Database) -> None:
    ask_number, end = (
        ("select pg_backend_pid()", "select pg_terminate_backend({})")
        if ours.engine.dialect.name == "postgresql"
        else ("select connection_id()", "kill {}")
    )
    with ours.engine.connect() as connection:
        number = connection.exec_driver_sql(ask_number).scalar_one()
        with ours.begin() as other:
            other.exec_driver_sql(end.format(number))
        with pytest.raises(DBAPIError) as lost:
            insert(connection, "x")
        assert lost.value.connection_invalidated
        assert connection.invalidated


@pytest.mark.databases("mariadb")
async def test_an_async_connection_is_pinged_as_its_own_driver_wants_it(
    database: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where SQLAlchemy takes PyMySQL's way of calling it for everybody's."""
    theirs = type(sa.create_engine(database.url).dialect)
    monkeypatch.setattr(theirs, "_send_false_to_ping", False)
    ours = Database(database.url)
    for _ in range(2):
        async with ours.async_engine.connect() as connection:
            assert (await connection.scalar(sa.text("SELECT 1"))) == 1
    dialect: Any = ours.async_engine.dialect
    await ours.close()
    assert dialect._send_false_to_ping is True
