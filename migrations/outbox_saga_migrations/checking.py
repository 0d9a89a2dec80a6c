"""Whether a database is as this version of the library needs it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from outbox_saga.tables import DEFAULT_PARTITION, Tables, tables_in
from outbox_saga_migrations.revisions import current, head
from outbox_saga_migrations.rows import missing_rows
from outbox_saga_migrations.scripts import VERSION_TABLE
from outbox_saga_migrations.shapes import TableShape, actual_shape, defined_shape


@dataclass(frozen=True)
class Difference:
    """One thing that is not as the library needs it.

    Args:
        table: The table, without its schema.
        what: What is there and what should be.
    """

    table: str
    what: str

    def __str__(self) -> str:
        return f"{self.table}: {self.what}"


def check(connection: Connection, *, schema: str | None = None) -> list[Difference]:
    """Every difference between this database and the definitions; an empty list means it is ready.

    Looked at: the revision, tables, columns (type, collation, NULL, numbering), primary keys,
    indexes, the storage engine, the archive's partitions, and the rows that must stand in the
    lease and key-lock tables. Not looked at: storage parameters and more indexes than ours, which
    are the administrator's to choose.

    Args:
        connection: Only read from.
        schema: Where our tables are; None is the connection's default.
    """
    tables = tables_in(schema)
    return [*_revision(connection, schema), *_tables(connection, tables)]


def _revision(connection: Connection, schema: str | None) -> Iterator[Difference]:
    at = current(connection, schema=schema)
    if at != head():
        there = "there is no revision" if at is None else f"the revision is {at}"
        yield Difference(VERSION_TABLE, f"{there}, and this version of outbox-saga needs {head()}")


def _tables(connection: Connection, tables: Tables) -> Iterator[Difference]:
    inspector = sa.inspect(connection)
    for table in tables.metadata.sorted_tables:
        if not inspector.has_table(table.name, schema=tables.schema):
            yield Difference(table.name, "missing")
            continue
        defined = defined_shape(table, connection.dialect)
        found = actual_shape(connection, table.name, tables.schema)
        for what in _differences(defined, found):
            yield Difference(table.name, what)
    yield from _archive(connection, tables)
    for table, numbers in missing_rows(connection, tables).items():
        yield Difference(table.name, f"{len(numbers)} rows missing, the first is {numbers[0]}")


# from the catalog, which everybody may read; to_regclass finds nothing where there is none
_PARTITIONED = """
    SELECT c.relkind = 'p', p.partdefid <> 0
    FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = c.oid
    WHERE c.oid = to_regclass(:archive)
"""


def _archive(connection: Connection, tables: Tables) -> Iterator[Difference]:
    """PostgreSQL: by days, and with a partition for those that have none of their own."""
    if connection.dialect.name != "postgresql":
        return
    named = connection.dialect.identifier_preparer.format_table(tables.archive)
    found = connection.execute(sa.text(_PARTITIONED), {"archive": named}).first()
    if found is None:
        return  # told as missing
    partitioned, has_default = found
    if not partitioned:
        yield Difference(tables.archive.name, "is not partitioned, should be by published_at")
    elif not has_default:
        yield Difference(
            tables.archive.name,
            "has no default partition, so that on a day without one of its own nothing can be "
            f"published; CREATE TABLE {named}_{DEFAULT_PARTITION} PARTITION OF {named} DEFAULT, "
            "and grant on it what the roles have on the archive",
        )


def _differences(defined: TableShape, found: TableShape) -> Iterator[str]:
    yield from _columns(defined, found)
    yield from _indexes(defined, found)
    if defined.primary_key != found.primary_key:
        yield (
            f"the primary key is ({', '.join(found.primary_key)}), should be "
            f"({', '.join(defined.primary_key)})"
        )
    if defined.engine != found.engine:
        yield f"the storage engine is {found.engine}, should be {defined.engine}"


def _columns(defined: TableShape, found: TableShape) -> Iterator[str]:
    for name, column in defined.columns.items():
        if name not in found.columns:
            yield f"column {name} is missing"
        elif found.columns[name] != column:
            yield f"column {name} is {found.columns[name]}, should be {column}"
    for name in found.columns:
        if name not in defined.columns:
            yield f"column {name} is not ours"


def _indexes(defined: TableShape, found: TableShape) -> Iterator[str]:
    for name, index in defined.indexes.items():
        if name not in found.indexes:
            yield f"index {name} is missing"
        elif found.indexes[name] != index:
            yield f"index {name} is not on ({', '.join(index[0])})"
    for name, (_, unique) in found.indexes.items():
        if unique and name not in defined.indexes:
            yield f"unique index {name} is not ours and would refuse rows of ours"
