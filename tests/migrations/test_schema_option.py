"""The optional schema: everything of ours goes there, and nothing into the default one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from outbox_saga.errors import ConfigurationError
from outbox_saga.tables import tables_in
from outbox_saga_migrations import check, current, downgrade, head, upgrade
from tests.fixtures.databases import Database
from tests.migrations.catalog import facts, table_names


@pytest.mark.databases("postgres18", "postgres15")
def test_on_postgresql_a_schema_that_does_not_exist_is_made(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection, schema="messaging")

    with engine.begin() as connection:
        assert check(connection, schema="messaging") == []
        assert table_names(connection) == set()
        assert current(connection) is None
        assert current(connection, schema="messaging") == head()


@pytest.mark.databases("postgres18", "postgres15")
def test_an_existing_schema_needs_no_right_to_make_schemas(
    engine: sa.Engine, engine_for: Callable[[str], sa.Engine]
) -> None:
    role = f"tenant_{engine.url.database}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"create role {role} login password 'secret'")
        connection.exec_driver_sql(f"create schema messaging authorization {role}")
    tenant = engine_for(
        engine.url.set(username=role, password="secret").render_as_string(hide_password=False)
    )

    with tenant.begin() as connection:
        upgrade(connection, schema="messaging")

    with engine.begin() as connection:
        assert check(connection, schema="messaging") == []
        connection.exec_driver_sql(f"drop owned by {role}")
        connection.exec_driver_sql(f"drop role {role}")


@pytest.mark.databases("postgres18", "postgres15")
def test_the_tables_of_a_schema_are_exactly_those_defined(
    engine: sa.Engine, defined: sa.Engine
) -> None:
    with engine.begin() as connection:
        upgrade(connection, schema="messaging")
    with defined.begin() as connection:
        connection.exec_driver_sql("create schema messaging")
        tables_in("messaging").metadata.create_all(connection)

    with engine.begin() as upgraded, defined.begin() as created:
        assert facts(upgraded, "messaging") == facts(created, "messaging")


@pytest.mark.databases("postgres18", "postgres15")
def test_two_schemas_of_one_database_are_upgraded_and_emptied_apart(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection, schema="orders")
        upgrade(connection, schema="billing")
        upgrade(connection)

    with engine.begin() as connection:
        downgrade(connection, schema="orders")

    with engine.begin() as connection:
        assert table_names(connection, "orders") == set()
        assert check(connection, schema="billing") == []
        assert check(connection) == []


@pytest.mark.databases("mariadb")
def test_on_mariadb_a_schema_is_another_database_which_must_exist(
    engine: sa.Engine, fresh_database: Callable[[str], Database]
) -> None:
    other = sa.make_url(fresh_database("mariadb").url).database
    assert other is not None

    with engine.begin() as connection:
        upgrade(connection, schema=other)

    with engine.begin() as connection:
        assert check(connection, schema=other) == []
        assert table_names(connection) == set()
        with pytest.raises(ConfigurationError, match="CREATE DATABASE comes first"):
            upgrade(connection, schema="nowhere")


@pytest.mark.databases("sqlite")
def test_on_sqlite_a_schema_is_an_attached_database(engine: sa.Engine, tmp_path: Path) -> None:
    attach = f"attach database '{tmp_path / 'other.db'}' as messaging"
    with engine.connect() as connection:
        connection.exec_driver_sql(attach)
        connection.commit()
        upgrade(connection, schema="messaging")
        connection.commit()

        assert check(connection, schema="messaging") == []
        assert table_names(connection) == set()
        with pytest.raises(ConfigurationError, match="ATTACH DATABASE comes first"):
            upgrade(connection, schema="nowhere")


def test_a_schema_that_is_no_plain_name_is_refused(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        for call in (upgrade, downgrade, check, current):
            with pytest.raises(ValueError, match="not a schema name"):
                call(connection, schema='x"; drop table orders; --')
