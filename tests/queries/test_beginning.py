"""A setting that leaves with BEGIN holds for its transaction, and for no other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import ProgrammingError

from outbox_saga.database import Database
from outbox_saga.queries import driver, prepared
from outbox_saga.queries.driver import begin_with
from tests.fixtures.databases import Database as Given

pytestmark = pytest.mark.databases("postgres18", "postgres15")

LIMIT = "SET LOCAL idle_in_transaction_session_timeout = 4321"
ASK = "SELECT current_setting('idle_in_transaction_session_timeout')"


@pytest.fixture
def ours(database: Given) -> Iterator[Database]:
    ours = Database(database.url, pool_size=1)
    yield ours
    ours.dispose()


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each setting of this test left with BEGIN."""
    went: list[bool] = []
    find = prepared.beginner

    def beginner(connection: sa.Connection) -> Any:
        found = find(connection)
        went.append(found is not None)
        return found

    monkeypatch.setattr(driver, "beginner", beginner)
    return went


def setting(connection: sa.Connection) -> str:
    return str(connection.exec_driver_sql(ASK).scalar_one())


def test_it_holds_until_the_transaction_ends(ours: Database, together: list[bool]) -> None:
    with ours.engine.connect() as connection:
        before = setting(connection)
        connection.rollback()
        for end in (connection.commit, connection.rollback):
            connection.begin()
            begin_with(connection, LIMIT)
            assert setting(connection) == "4321ms"
            end()
            assert setting(connection) == before
            connection.rollback()
    assert together == [True, True]


async def test_so_it_does_on_an_async_connection(ours: Database, together: list[bool]) -> None:
    async with ours.async_engine.begin() as connection:
        await connection.run_sync(begin_with, LIMIT)
        assert await connection.run_sync(setting) == "4321ms"
    async with ours.async_engine.begin() as connection:
        assert await connection.run_sync(setting) != "4321ms"
    await ours.close()
    assert together == [True]


def test_what_is_written_behind_it_is_undone_with_it(ours: Database) -> None:
    with ours.engine.connect() as connection:
        connection.begin()
        begin_with(connection, LIMIT)
        connection.exec_driver_sql("CREATE TABLE word (word text)")
        connection.rollback()
        assert not sa.inspect(connection).has_table("word")


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_the_transaction_is_of_the_level_it_would_have_been(ours: Database, level: Any) -> None:
    with ours.engine.connect().execution_options(isolation_level=level) as connection:
        connection.begin()
        begin_with(connection, LIMIT)
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar_one() == (
            level.lower()
        )


def test_in_a_transaction_that_has_begun_it_goes_by_itself(
    ours: Database, together: list[bool]
) -> None:
    with ours.engine.begin() as connection:
        connection.exec_driver_sql("SELECT 1")
        begin_with(connection, LIMIT)
        assert setting(connection) == "4321ms"
    assert together == [False]


def test_whoever_wraps_do_execute_sees_it(
    ours: Database, together: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    dialect, seen = ours.engine.dialect, []
    execute = dialect.do_execute

    def wrapped(cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        seen.append(statement)
        execute(cursor, statement, parameters, context)

    monkeypatch.setattr(dialect, "do_execute", wrapped)
    with ours.engine.begin() as connection:
        begin_with(connection, LIMIT)
    assert seen[-1] == LIMIT
    assert together == [False]


def test_an_error_is_sqlalchemys_and_the_connection_is_of_use_again(ours: Database) -> None:
    with ours.engine.connect() as connection:
        connection.begin()
        with pytest.raises(ProgrammingError):
            begin_with(connection, "SET LOCAL no_such_setting = 1")
        connection.rollback()
        assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1


def test_psycopg_begins_as_we_look_it_up(ours: Database) -> None:
    with ours.engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        assert raw._get_tx_start_command() == b"BEGIN ISOLATION LEVEL READ COMMITTED"
