"""The rows that must stand there before anybody works: leases and, on MariaDB, key locks."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from outbox_saga.tables import INBOX_LOCKS, KEY_LOCKS, PARTITIONS, Tables
from outbox_saga_migrations.steps import MYSQL, insert_missing


def missing_rows(connection: Connection, tables: Tables) -> dict[sa.Table, list[int]]:
    """For each table with fixed rows, the numbers that are not there.

    Left out: tables with all of them, and tables that do not exist.
    """
    inspector = sa.inspect(connection)
    lacking: dict[sa.Table, list[int]] = {}
    for table, numbers in _fixed_rows(connection, tables).items():
        if not inspector.has_table(table.name, schema=tables.schema):
            continue
        (number,) = table.primary_key.columns
        present = set(connection.scalars(sa.select(number)))
        if lost := [n for n in numbers if n not in present]:
            lacking[table] = lost
    return lacking


def put_back_missing_rows(connection: Connection, tables: Tables) -> None:
    """All fixed rows stand there; those that did are not changed."""
    for table, numbers in missing_rows(connection, tables).items():
        (number,) = table.primary_key.columns
        rows = [{number.name: n} for n in numbers]
        if table is tables.partition_lease:
            rows = [{**row, "epoch": 0} for row in rows]
        connection.execute(insert_missing(connection.dialect.name, table, rows))


def _fixed_rows(connection: Connection, tables: Tables) -> dict[sa.Table, range]:
    fixed = {tables.partition_lease: range(PARTITIONS)}
    if connection.dialect.name in MYSQL:
        fixed[tables.key_lock] = range(KEY_LOCKS + INBOX_LOCKS)
    return fixed
