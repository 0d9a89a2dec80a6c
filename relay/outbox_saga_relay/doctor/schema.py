"""Every database: our tables, and how they compare."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa

from outbox_saga_migrations import check
from outbox_saga_relay.doctor.cases import DatabaseCase
from outbox_saga_relay.doctor.findings import Check, Found


def tables(case: DatabaseCase) -> Iterator[Found]:
    """Our tables are as this version of the library needs them."""
    schema = case.tables.schema
    option = f" --schema {schema}" if schema is not None else ""
    for difference in check(case.connection, schema=schema):
        yield Found("error", str(difference), f"outbox-saga db upgrade{option}")


def collations(case: DatabaseCase) -> Iterator[Found]:
    """Keys and ids compare as bytes."""
    find = {"postgresql": _postgresql, "mariadb": _mysql, "mysql": _mysql, "sqlite": _sqlite}
    for column, collation in find[case.kind](case):
        yield Found(
            "error",
            f"{column} compares by {collation}, for which different texts may be equal",
            "give it back the type that `outbox-saga db check` names",
        )


def _postgresql(case: DatabaseCase) -> Iterator[tuple[str, str]]:
    # a text column of ours that is compared has collation "C"; the others are never compared
    compared = {
        (table.name, column.name)
        for table in case.tables.metadata.sorted_tables
        for column in table.columns
        if 'COLLATE "C"' in column.type.compile(dialect=case.connection.dialect)
    }
    for table, column, collation in case.rows(
        """
        SELECT c.relname, a.attname, l.collname FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_collation l ON l.oid = a.attcollation
        WHERE c.relnamespace =
            CAST(quote_ident(coalesce(:schema, current_schema())) AS regnamespace)
          AND starts_with(c.relname, 'outbox_saga_') AND l.collname NOT IN ('C', 'POSIX')
        ORDER BY 1, 2
        """,
        schema=case.tables.schema,
    ):
        if (table, column) in compared:
            yield f"{table}.{column}", collation


def _mysql(case: DatabaseCase) -> Iterator[tuple[str, str]]:
    for table, column, collation in case.rows(
        "SELECT table_name, column_name, collation_name FROM information_schema.columns "
        "WHERE table_schema = coalesce(:schema, database()) "
        "AND table_name LIKE 'outbox\\_saga\\_%' AND collation_name NOT LIKE '%\\_bin' "
        "AND table_name <> 'outbox_saga_version' ORDER BY 1, 2",
        schema=case.tables.schema,
    ):
        yield f"{table}.{column}", collation


def _sqlite(case: DatabaseCase) -> Iterator[tuple[str, str]]:
    master = sa.table("sqlite_master", sa.column("name"), sa.column("sql"))
    statement = sa.select(master.c.name, master.c.sql).where(
        master.c.name.startswith("outbox_saga_", autoescape=True)
    )
    for name, written in case.connection.execute(statement):
        for collation in re.findall(r"\bCOLLATE\s+[\"'`\[]?(\w+)", written or "", re.IGNORECASE):
            if collation.upper() != "BINARY":
                yield f"a column of {name}", collation


CHECKS: Final[tuple[Check[DatabaseCase], ...]] = (
    Check(
        "schema.tables",
        "everything `outbox-saga db check` looks at",
        "What differs fails when it is first used, or keeps a promise no longer.",
        ("error",),
        tables,
    ),
    Check(
        "schema.collations",
        "how keys and ids compare",
        "Different ids or keys count as one: the inbox drops a message it has never seen.",
        ("error",),
        collations,
    ),
)
