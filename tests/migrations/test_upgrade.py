"""upgrade(): the tables it makes, and what it leaves of the caller's connection."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_saga.errors import AutocommitRefused
from outbox_saga.tables import tables_in
from outbox_saga_migrations import UpgradeRefused, check, current, head, upgrade
from tests.fixtures.databases import Database
from tests.migrations.catalog import facts, table_names

TABLES = tables_in()
TRANSACTIONAL = ("sqlite", "postgres18", "postgres15")


def test_an_empty_database_gets_exactly_the_tables_that_are_defined(
    engine: sa.Engine, defined: sa.Engine
) -> None:
    with engine.begin() as connection:
        upgrade(connection)
    with defined.begin() as connection:
        TABLES.metadata.create_all(connection)

    with engine.begin() as upgraded, defined.begin() as created:
        made = facts(upgraded)
        assert set(TABLES.metadata.tables) <= set(made)
        assert made == facts(created)
        assert check(upgraded) == []
        assert current(upgraded) == head()


def test_the_rows_that_everybody_waits_on_stand_there(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)

    with engine.begin() as connection:
        leases = connection.execute(sa.select(TABLES.partition_lease).order_by("partition")).all()
        locks = connection.scalars(sa.select(TABLES.key_lock.c.number)).all()
    assert [tuple(lease) for lease in leases] == [(n, None, 0, None, None) for n in range(64)]
    expected = range(2048) if engine.dialect.name == "mysql" else range(0)
    assert sorted(locks) == list(expected)


def test_upgrading_again_takes_no_lock_and_writes_nothing(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)
        before = facts(connection)
    statements: list[str] = []
    event.listen(
        engine,
        "before_cursor_execute",
        lambda conn, cursor, statement, *rest: statements.append(statement),
    )

    with engine.begin() as connection:
        upgrade(connection)

    reads = ("SELECT", "PRAGMA", "DESCRIBE", "SHOW")
    assert [s for s in statements if not s.strip().upper().startswith(reads)] == []
    assert [s for s in statements if "lock(" in s.lower()] == []
    with engine.begin() as connection:
        assert facts(connection) == before


@pytest.mark.databases(*TRANSACTIONAL)
def test_a_rollback_of_the_callers_transaction_leaves_nothing(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        upgrade(connection)
        assert current(connection) == head()
        connection.rollback()

    with engine.begin() as connection:
        assert table_names(connection) == set()


def test_nothing_is_committed_for_the_caller(database: Database, engine: sa.Engine) -> None:
    with engine.connect() as connection:
        upgrade(connection)
        assert connection.in_transaction()
        connection.commit()

    with engine.begin() as connection:
        assert check(connection) == []


@pytest.mark.databases(*TRANSACTIONAL)
def test_the_callers_own_rows_share_the_fate_of_the_upgrade(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("create table orders (id integer primary key)")

    with engine.connect() as connection:
        connection.exec_driver_sql("insert into orders values (1)")
        upgrade(connection)
        connection.rollback()

    with engine.connect() as connection:
        connection.exec_driver_sql("insert into orders values (2)")
        upgrade(connection)
        connection.commit()

    with engine.begin() as connection:
        assert connection.exec_driver_sql("select id from orders").scalars().all() == [2]
        assert check(connection) == []


@pytest.mark.anyio
async def test_an_async_connection_reaches_it_by_run_sync(database: Database) -> None:
    engine = create_async_engine(database.async_url, poolclass=sa.NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(upgrade)
    async with engine.begin() as connection:
        await connection.run_sync(upgrade)
        assert await connection.run_sync(check) == []
    await engine.dispose()


@pytest.mark.databases(*TRANSACTIONAL)
def test_a_connection_in_autocommit_is_refused_before_anything_changes(engine: sa.Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with pytest.raises(AutocommitRefused, match="open transaction"):
            upgrade(connection)

        assert table_names(connection) == set()


@pytest.mark.anyio
@pytest.mark.databases("sqlite", "postgres18")
async def test_an_async_connection_in_autocommit_is_refused_too(database: Database) -> None:
    engine = create_async_engine(
        database.async_url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT"
    )
    async with engine.connect() as connection:
        with pytest.raises(AutocommitRefused, match="open transaction"):
            await connection.run_sync(upgrade)
        assert await connection.run_sync(table_names) == set()
    await engine.dispose()


def test_tables_made_from_the_definitions_are_taken_over(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        TABLES.metadata.create_all(connection)

    with engine.begin() as connection:
        upgrade(connection)

    with engine.begin() as connection:
        assert check(connection) == []


def test_a_strangers_table_of_our_name_is_refused_and_named(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("create table outbox_saga_inbox (id integer primary key)")

    with engine.connect() as connection:
        with pytest.raises(UpgradeRefused, match="outbox_saga_inbox: column consumer is missing"):
            upgrade(connection)
        connection.commit()  # an error leaves the transaction usable

    with engine.begin() as connection:
        if engine.dialect.name != "mysql":
            assert table_names(connection) == {"outbox_saga_inbox"}
        connection.exec_driver_sql("drop table outbox_saga_inbox")
    with engine.begin() as connection:
        upgrade(connection)
        assert check(connection) == []


def test_lost_lease_rows_are_put_back_and_the_others_kept(engine: sa.Engine) -> None:
    lease = TABLES.partition_lease
    with engine.begin() as connection:
        upgrade(connection)
        connection.execute(lease.delete().where(lease.c.partition.in_((3, 5))))
        connection.execute(lease.update().where(lease.c.partition == 7).values(epoch=9))

    with engine.begin() as connection:
        assert [str(d) for d in check(connection)] == [
            "outbox_saga_partition_lease: 2 rows missing, the first is 3"
        ]
        upgrade(connection)

    with engine.begin() as connection:
        assert check(connection) == []
        assert connection.scalar(sa.select(lease.c.epoch).where(lease.c.partition == 7)) == 9


def test_a_database_of_a_newer_library_is_left_alone(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)
        connection.exec_driver_sql("update outbox_saga_version set version_num = '9999'")

    with engine.begin() as connection, pytest.raises(UpgradeRefused, match="9999"):
        upgrade(connection)


def test_an_unknown_revision_is_refused(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        with pytest.raises(UpgradeRefused, match="no revision 'nope'"):
            upgrade(connection, revision="nope")
        assert table_names(connection) == set()


@pytest.mark.databases("postgres18", "postgres15")
def test_the_callers_lock_timeout_is_as_before(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("set local lock_timeout = '1234ms'")
        upgrade(connection)

        assert connection.exec_driver_sql("show lock_timeout").scalar_one() == "1234ms"


@pytest.mark.databases("mariadb")
def test_the_callers_lock_wait_timeout_is_as_before(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("set session lock_wait_timeout = 1234")
        upgrade(connection)

        left = connection.exec_driver_sql("select @@session.lock_wait_timeout").scalar_one()
        assert left == 1234


@pytest.mark.databases("sqlite", "postgres18", "mariadb")
def test_positions_of_deleted_messages_are_not_used_again(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)
    columns = "id, `partition`, topic, headers, body, created_at".replace(
        "`", "`" if engine.dialect.name == "mysql" else '"'
    )
    row = "'00000000000000000000000000000001', 0, 't', '{}', '', '2026-01-01 00:00:00'"

    positions: list[int] = []
    for _ in range(3):
        with engine.begin() as connection:
            connection.exec_driver_sql(
                f"insert into outbox_saga_outbox ({columns}) values ({row})"
            )
            position = sa.select(TABLES.outbox.c.position)
            positions.append(connection.scalars(position).one())
            connection.execute(TABLES.outbox.delete())

    assert positions == [1, 2, 3]


@pytest.mark.databases("postgres18", "postgres15")
def test_an_archive_without_its_default_partition_is_told_and_how_to_make_it(
    engine: sa.Engine,
) -> None:
    with engine.begin() as connection:
        upgrade(connection)
        connection.exec_driver_sql("DROP TABLE outbox_saga_archive_rest")

        (found,) = check(connection)
        assert (found.table, "has no default partition" in found.what) == (
            "outbox_saga_archive",
            True,
        )
        connection.exec_driver_sql(found.what.split("; ")[1].split(",")[0])
        assert check(connection) == []


@pytest.mark.databases("postgres18", "postgres15")
def test_an_archive_that_is_one_table_is_told(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)
        connection.exec_driver_sql("ALTER TABLE outbox_saga_archive RENAME TO old")
        connection.exec_driver_sql("CREATE TABLE outbox_saga_archive (LIKE old INCLUDING ALL)")
        connection.exec_driver_sql("DROP TABLE old")

        assert "is not partitioned, should be by published_at" in [
            each.what for each in check(connection)
        ]
