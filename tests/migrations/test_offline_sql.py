"""sql(): what it writes, run by the plain driver, makes the same tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import psycopg
import pymysql
import pytest
import sqlalchemy as sa
from pymysql.constants import CLIENT

from outbox_saga.errors import ConfigurationError
from outbox_saga_migrations import UpgradeRefused, check, current, head, sql, upgrade
from tests.fixtures.databases import Database
from tests.migrations.catalog import facts, table_names


def run_plainly(url: sa.URL, script: str) -> None:
    """As a person would: through the driver, no SQLAlchemy."""
    if url.get_backend_name() == "sqlite":
        with sqlite3.connect(str(url.database)) as lite:
            lite.executescript(script)
        lite.close()
    elif url.get_backend_name() == "postgresql":
        known = url.set(drivername="postgresql").difference_update_query(["pooler"])
        conninfo = known.render_as_string(hide_password=False)
        with psycopg.connect(conninfo, autocommit=True) as postgres:
            postgres.execute(script.encode())
    else:
        several = CLIENT.MULTI_STATEMENTS
        mariadb = pymysql.connect(
            host=url.host or "",
            port=url.port or 0,
            user=url.username,
            database=url.database,
            client_flag=several,
            autocommit=True,
        )
        with mariadb, mariadb.cursor() as cursor:
            cursor.execute(script)
            while cursor.nextset():
                pass


def test_run_by_the_plain_driver_it_makes_the_same_tables(
    engine: sa.Engine, defined: sa.Engine
) -> None:
    dialect = "mariadb" if engine.dialect.name == "mysql" else engine.dialect.name
    run_plainly(engine.url, sql(dialect))

    with defined.begin() as connection:
        upgrade(connection)
    with engine.begin() as connection, defined.begin() as other:
        assert facts(connection) == facts(other)
        assert check(connection) == []
        assert current(connection) == head()
        upgrade(connection)
        assert check(connection) == []


@pytest.mark.databases("mariadb")
def test_the_sql_for_mysql_also_runs_on_mariadb(engine: sa.Engine) -> None:
    run_plainly(engine.url, sql("mysql"))

    with engine.begin() as connection:
        assert check(connection) == []


@pytest.mark.databases("postgres18", "postgres15")
def test_with_a_schema_on_postgresql_it_makes_the_schema_too(engine: sa.Engine) -> None:
    run_plainly(engine.url, sql("postgresql", schema="messaging"))

    with engine.begin() as connection:
        assert check(connection, schema="messaging") == []
        assert table_names(connection) == set()


@pytest.mark.databases("mariadb")
def test_with_a_schema_on_mariadb_it_fills_the_other_database(
    engine: sa.Engine, fresh_database: Callable[[str], Database]
) -> None:
    other = str(sa.make_url(fresh_database("mariadb").url).database)

    run_plainly(engine.url, sql("mariadb", schema=other))

    with engine.begin() as connection:
        assert check(connection, schema=other) == []
        assert table_names(connection) == set()


@pytest.mark.databases("sqlite", "postgres18")
def test_run_twice_the_second_run_fails_and_changes_nothing(engine: sa.Engine) -> None:
    script = sql(engine.dialect.name)
    run_plainly(engine.url, script)
    with engine.begin() as connection:
        before = facts(connection)

    with pytest.raises((sqlite3.OperationalError, psycopg.errors.DuplicateTable)):
        run_plainly(engine.url, script)

    with engine.begin() as connection:
        assert facts(connection) == before


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb", "mysql", "sqlite"])
def test_from_the_head_on_there_is_nothing_to_do(dialect: str) -> None:
    written = sql(dialect, start=head())

    assert "outbox_saga" not in written.replace("outbox_saga_version", "")


def test_a_database_we_have_no_tables_for_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no tables for 'oracle'; choose one of postgres"):
        sql("oracle")


def test_an_unknown_revision_is_refused() -> None:
    with pytest.raises(UpgradeRefused, match="nope"):
        sql("sqlite", revision="nope")
    with pytest.raises(UpgradeRefused, match="nope"):
        sql("sqlite", start="nope")
