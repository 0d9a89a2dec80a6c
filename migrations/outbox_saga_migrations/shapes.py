"""A table's shape in plain values, from the definitions and from the database, to be compared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.engine import Dialect

from outbox_saga_migrations.steps import MYSQL


@dataclass(frozen=True)
class ColumnShape:
    """What matters of a column: type, collation where it is not the default, NULL, numbering."""

    type: str
    nullable: bool
    numbered: str

    def __str__(self) -> str:
        null = "NULL" if self.nullable else "NOT NULL"
        return " ".join(part for part in (self.type, null, self.numbered) if part)


@dataclass(frozen=True)
class TableShape:
    """What matters of a table; storage parameters do not, those are the administrator's."""

    columns: dict[str, ColumnShape]
    primary_key: tuple[str, ...]
    indexes: dict[str, tuple[tuple[str, ...], bool]]
    engine: str | None


def defined_shape(table: sa.Table, dialect: Dialect) -> TableShape:
    """The shape that the definition asks for on this database."""
    return TableShape(
        columns={
            column.name: ColumnShape(
                _type(column.type, dialect),
                bool(column.nullable),
                _defined_numbering(column, dialect),
            )
            for column in table.columns
        },
        primary_key=tuple(column.name for column in table.primary_key.columns),
        indexes={
            str(index.name): (tuple(column.name for column in index.columns), bool(index.unique))
            for index in table.indexes
        },
        engine="InnoDB" if dialect.name in MYSQL else None,
    )


def actual_shape(connection: Connection, table: str, schema: str | None) -> TableShape:
    """The shape the table has; it must exist."""
    dialect = connection.dialect
    inspector = sa.inspect(connection)
    collations = _collations(connection, table, schema)
    numbered_on_sqlite = dialect.name == "sqlite" and _has_autoincrement(connection, table, schema)
    columns: dict[str, ColumnShape] = {}
    primary_key = tuple(inspector.get_pk_constraint(table, schema=schema)["constrained_columns"])
    for column in inspector.get_columns(table, schema=schema):
        name = column["name"]
        numbered = _actual_numbering(column)
        if numbered_on_sqlite and (name,) == primary_key:
            numbered = "AUTOINCREMENT"
        written = _without_collation(column["type"].compile(dialect=dialect))
        columns[name] = ColumnShape(
            _with_collation(written, collations.get(name)), bool(column["nullable"]), numbered
        )
    options = inspector.get_table_options(table, schema=schema) if dialect.name in MYSQL else {}
    return TableShape(
        columns=columns,
        primary_key=primary_key,
        indexes={
            str(index["name"]): (
                tuple(str(column) for column in index["column_names"]),
                bool(index["unique"]),
            )
            for index in inspector.get_indexes(table, schema=schema)
        },
        engine=options.get(f"{dialect.name}_engine"),
    )


def _type(kind: sa.types.TypeEngine[Any], dialect: Dialect) -> str:
    written = kind.compile(dialect=dialect)
    collation = re.search(r' COLLATE "?(\w+)"?', written)
    return _with_collation(_without_collation(written), collation[1] if collation else None)


def _without_collation(written: str) -> str:
    """As both sides write it: no display width, which MySQL dropped; collation put on later."""
    written = re.sub(r" (CHARACTER SET|COLLATE) \S+", "", written.upper())
    return re.sub(r"\b(SMALLINT|INTEGER|BIGINT)\(\d+\)", r"\1", written)


def _with_collation(written: str, collation: str | None) -> str:
    return f"{written} COLLATE {collation}" if collation else written


# from the catalog: information_schema hides the columns that this user has no right on
_COLLATIONS_OF_POSTGRESQL = """
    SELECT a.attname, l.collname
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
    WHERE c.relname = :table AND n.nspname = coalesce(:schema, current_schema())
      AND a.attnum > 0 AND l.collname <> 'default'
"""
_COLLATIONS_OF_MYSQL = """
    SELECT column_name, collation_name FROM information_schema.columns
    WHERE table_name = :table AND table_schema = coalesce(:schema, database())
      AND collation_name IS NOT NULL
"""


def _collations(connection: Connection, table: str, schema: str | None) -> dict[str, str]:
    """By column; on PostgreSQL only those that are not the database's default."""
    if connection.dialect.name == "sqlite":
        return {}
    postgresql = connection.dialect.name == "postgresql"
    query = sa.text(_COLLATIONS_OF_POSTGRESQL if postgresql else _COLLATIONS_OF_MYSQL)
    found = connection.execute(query, {"table": table, "schema": schema})
    return {str(name): str(collation) for name, collation in found}


def _defined_numbering(column: sa.Column[Any], dialect: Dialect) -> str:
    if column.identity is None:
        return ""
    if dialect.name == "postgresql":
        always = "ALWAYS" if column.identity.always else "BY DEFAULT"
        return f"GENERATED {always} AS IDENTITY (CACHE {column.identity.cache})"
    return "AUTO_INCREMENT" if dialect.name in MYSQL else "AUTOINCREMENT"


def _actual_numbering(column: Any) -> str:
    if identity := column.get("identity"):
        always = "ALWAYS" if identity["always"] else "BY DEFAULT"
        return f"GENERATED {always} AS IDENTITY (CACHE {identity['cache']})"
    if column.get("default") and "nextval(" in column["default"]:
        return str(column["default"])
    return "AUTO_INCREMENT" if column.get("autoincrement") is True else ""


def _has_autoincrement(connection: Connection, table: str, schema: str | None) -> bool:
    master = sa.table("sqlite_master", sa.column("sql"), sa.column("name"), schema=schema)
    written = connection.scalar(sa.select(master.c.sql).where(master.c.name == table))
    return "AUTOINCREMENT" in str(written).upper()
