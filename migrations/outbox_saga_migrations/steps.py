"""What the revisions are written with: steps that may be taken again.

MariaDB and MySQL commit every CREATE and DROP by itself. A process that dies between two of them
leaves half a revision behind, with the version table still at the one before; so a step first
looks whether it has been taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy.dialects import mysql, postgresql, sqlite

from outbox_saga_migrations.errors import UpgradeRefused
from outbox_saga_migrations.scripts import SCHEMA_OPTION

MYSQL = ("mysql", "mariadb")


class Steps:
    """Each method guarantees its end state, whether or not the step was taken before.

    Args:
        context: Online or offline. Offline, `IF NOT EXISTS` stands where the database knows it.
    """

    def __init__(self, context: MigrationContext) -> None:
        self._context = context
        self._operations = Operations(context)
        self._schema: str | None = context.opts.get(SCHEMA_OPTION)
        self.adopted: list[str] = []
        """Tables that stood there already: made by a run that died, or by somebody else."""

    def create_table(self, name: str, *columns: sa.Column[Any], **options: Any) -> None:
        """The table exists; one of this name that stood there is kept, and noted in `adopted`.

        Raises UpgradeRefused at once if that one lacks columns. Later would be too late: MariaDB
        and MySQL commit at the next step, and with it that this revision was reached.
        """
        if self._stands(name):
            there = self._columns(name)
            lacking = [column.name for column in columns if column.name not in there]
            if lacking:
                raise UpgradeRefused(
                    "tables of our names stand there already and are not like ours; rename or "
                    "drop them: "
                    + "; ".join(f"{name}: column {column} is missing" for column in lacking)
                )
            self.adopted.append(name)
            return
        self._operations.create_table(
            name,
            *columns,
            schema=self._schema,
            if_not_exists=True if self._context.as_sql else None,
            **options,
        )

    def set_storage(self, table: str, **parameters: str) -> None:
        """The table has these storage parameters, on PostgreSQL; elsewhere nothing happens."""
        if self._context.dialect.name != "postgresql":
            return
        quote = self._context.dialect.identifier_preparer.quote
        name = ".".join(quote(part) for part in (self._schema, table) if part is not None)
        settings = ", ".join(f"{key} = {value}" for key, value in parameters.items())
        self._context.execute(f"ALTER TABLE {name} SET ({settings})")

    def add_column(self, table: str, column: sa.Column[Any]) -> None:
        """The table has this column; one of this name that stood there is kept."""
        if not self._context.as_sql and column.name in self._columns(table):
            return
        # MySQL has no ADD COLUMN IF NOT EXISTS; offline it is written for a database at the
        # revision before
        self._operations.add_column(table, column, schema=self._schema)

    def drop_column(self, table: str, name: str) -> None:
        """The table has no such column."""
        if self._context.as_sql or name in self._columns(table):
            self._operations.drop_column(table, name, schema=self._schema)

    def add_default_partition(self, table: str, name: str) -> None:
        """Rows that belong to no other partition go here, on PostgreSQL."""
        if self._context.dialect.name != "postgresql":
            return
        quote = self._context.dialect.identifier_preparer.quote
        whole, part = (
            ".".join(quote(word) for word in (self._schema, each) if word is not None)
            for each in (table, name)
        )
        self._context.execute(f"CREATE TABLE IF NOT EXISTS {part} PARTITION OF {whole} DEFAULT")

    def create_index(
        self, name: str, table: str, columns: Sequence[str], *, unique: bool = False
    ) -> None:
        """The index exists; one of this name on this table is kept."""
        if not self._context.as_sql:
            indexes = self._inspector().get_indexes(table, schema=self._schema)
            if any(index["name"] == name for index in indexes):
                return
        # MySQL has no CREATE INDEX IF NOT EXISTS; MariaDB, whose dialect may bear either name, has
        knows = self._context.dialect.name != "mysql"
        self._operations.create_index(
            name,
            table,
            list(columns),
            unique=unique,
            schema=self._schema,
            if_not_exists=True if self._context.as_sql and knows else None,
        )

    def drop_index(self, name: str, table: str) -> None:
        """The table has no index of this name."""
        if not self._context.as_sql:
            indexes = self._inspector().get_indexes(table, schema=self._schema)
            if all(index["name"] != name for index in indexes):
                return
        self._operations.drop_index(name, table, schema=self._schema)

    def drop_table(self, name: str) -> None:
        """The table is gone, with its indexes."""
        self._operations.drop_table(name, schema=self._schema, if_exists=True)

    def insert_missing(self, table: str, rows: Sequence[Mapping[str, int]]) -> None:
        """Rows of these primary keys exist; those that stood there are not changed."""
        names = list(rows[0])
        target = sa.table(table, *(sa.column(n, sa.Integer) for n in names), schema=self._schema)
        values = [dict(row) for row in rows]
        self._context.execute(insert_missing(self._context.dialect.name, target, values))

    def delete_rows(self, table: str, column: str, least: int) -> None:
        """No row of this column has this value or a higher one."""
        target = sa.table(table, sa.column(column, sa.Integer), schema=self._schema)
        self._context.execute(sa.delete(target).where(target.c[column] >= least))

    def on_mysql(self) -> bool:
        """Whether this is MariaDB or MySQL."""
        return self._context.dialect.name in MYSQL

    def _stands(self, table: str) -> bool:
        if self._context.as_sql:
            return False
        return self._inspector().has_table(table, schema=self._schema)

    def _columns(self, table: str) -> set[str]:
        columns = self._inspector().get_columns(table, schema=self._schema)
        return {column["name"] for column in columns}

    def _inspector(self) -> sa.Inspector:
        connection = self._context.connection
        assert connection is not None
        return sa.inspect(connection)


def insert_missing(dialect: str, target: Any, rows: list[dict[str, int]]) -> sa.Insert:
    """One INSERT that leaves rows alone whose primary key exists; any other error is an error."""
    if dialect in MYSQL:
        # INSERT IGNORE would also swallow values out of range
        first = next(iter(rows[0]))
        statement = mysql.insert(target).values(rows)
        return statement.on_duplicate_key_update({first: target.c[first]})
    if dialect == "postgresql":
        return postgresql.insert(target).values(rows).on_conflict_do_nothing()
    return sqlite.insert(target).values(rows).on_conflict_do_nothing()
