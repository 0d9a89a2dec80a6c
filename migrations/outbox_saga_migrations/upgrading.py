"""Bring a database to a revision, inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from outbox_saga.errors import ConfigurationError
from outbox_saga.tables import tables_in
from outbox_saga_migrations.checking import check
from outbox_saga_migrations.errors import UpgradeRefused
from outbox_saga_migrations.locking import LOCK_TIMEOUT, WAIT, exclusive
from outbox_saga_migrations.revisions import head, reached
from outbox_saga_migrations.rows import missing_rows, put_back_missing_rows
from outbox_saga_migrations.scripts import online, resolve, script_directory
from outbox_saga_migrations.steps import MYSQL, Steps


def upgrade(
    connection: Connection,
    *,
    schema: str | None = None,
    revision: str = "head",
    lock_timeout: float = LOCK_TIMEOUT,
    wait: float = WAIT,
) -> None:
    """Afterwards the database is at least at this revision; what was there already is left alone.

    It runs in the caller's transaction and does not commit: on PostgreSQL and SQLite a rollback
    leaves nothing behind, and an error leaves the transaction usable. Called again, or by several
    processes at once, it does nothing more than once. With nothing to do it takes no lock.

    MariaDB and MySQL commit at every CREATE TABLE, and with it whatever the caller did before:
    pass a connection with nothing else in progress. A run that died half way is finished by the
    next one.

        with engine.begin() as connection:
            upgrade(connection)

        async with async_engine.begin() as connection:
            await connection.run_sync(upgrade, schema="messaging")

    Args:
        connection: Where to; a transaction is begun on it if there is none. On PostgreSQL it
            should be READ COMMITTED, the default.
        schema: Where our tables go; None is the connection's default. PostgreSQL: made if it does
            not exist (and not granted to anybody). MariaDB, MySQL: a database, which must exist.
            SQLite: the name of an attached database.
        revision: How far; a revision the database has passed already changes nothing.
        lock_timeout: How long a statement waits for a table in use before the upgrade is given
            up, in seconds; not on SQLite.
        wait: How long to wait for another process's upgrade to end, in seconds; not on SQLite.

    Raises:
        UpgradeBusy: Another upgrade, or somebody using a table, did not end in time.
        UpgradeRefused: A table of our name stood there and is not like ours; the revision is
            unknown.
        AutocommitRefused: The connection commits each statement by itself (PostgreSQL, SQLite).
        ConfigurationError: A schema that does not exist on MariaDB, MySQL or SQLite.
        ValueError: Not a schema's name.
    """
    tables = tables_in(schema)
    target = resolve(revision)
    if reached(connection, schema, target) and not (
        target == head() and missing_rows(connection, tables)
    ):
        return
    with exclusive(connection, wait=wait, lock_timeout=lock_timeout):
        if not reached(connection, schema, target):
            _make_schema(connection, schema)
            _run(connection, schema, revision)
        if target == head():
            put_back_missing_rows(connection, tables)


def _run(connection: Connection, schema: str | None, revision: str) -> None:
    def path(at: Any, _: MigrationContext) -> Iterable[Any]:
        return script_directory()._upgrade_revs(revision, at)  # noqa: SLF001 - Alembic's own recipe

    context = online(connection, schema, fn=path)
    steps = Steps(context)
    context.run_migrations(steps=steps)
    if steps.adopted and revision in ("head", head()):
        _refuse_strangers(connection, schema, steps.adopted)


def _refuse_strangers(connection: Connection, schema: str | None, adopted: list[str]) -> None:
    foreign = [d for d in check(connection, schema=schema) if d.table in adopted]
    if foreign:
        raise UpgradeRefused(
            "tables of our names stand there already and are not like ours; rename or drop them: "
            + "; ".join(str(difference) for difference in foreign)
        )


def _make_schema(connection: Connection, schema: str | None) -> None:
    # CREATE SCHEMA IF NOT EXISTS asks for the right to create even where the schema exists
    if schema is None or sa.inspect(connection).has_schema(schema):
        return
    if connection.dialect.name == "postgresql":
        connection.execute(sa.schema.CreateSchema(schema))
        return
    what = "CREATE DATABASE" if connection.dialect.name in MYSQL else "ATTACH DATABASE"
    raise ConfigurationError(
        f"there is no schema {schema!r} here, and outbox-saga makes none; {what} comes first"
    )
