"""The SQL of an upgrade, for people who run SQL themselves."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext

from outbox_saga.errors import ConfigurationError
from outbox_saga.tables import tables_in
from outbox_saga_migrations.locking import ADVISORY_LOCK, LOCK_TIMEOUT
from outbox_saga_migrations.scripts import BASE, offline, resolve, script_directory
from outbox_saga_migrations.steps import MYSQL, Steps

DIALECTS = ("postgresql", "mariadb", "mysql", "sqlite")


def sql(
    dialect_name: str,
    *,
    schema: str | None = None,
    revision: str = "head",
    start: str = "base",
    lock_timeout: float = LOCK_TIMEOUT,
) -> str:
    """The statements that `upgrade` would run, ending with the note of the revision reached.

    PostgreSQL and SQLite run it as one transaction. MariaDB and MySQL commit at every CREATE; a
    script that stopped half way there is finished by `upgrade`, not by running it again.

    Args:
        dialect_name: postgresql, mariadb, mysql or sqlite.
        schema: As for `upgrade`.
        revision: How far.
        start: The revision the database is at; `base` is an empty one.
        lock_timeout: How long a statement waits for a table in use, in seconds; PostgreSQL.

    Raises:
        ConfigurationError: A database we do not know.
        UpgradeRefused: The revision is unknown.
        ValueError: Not a schema's name.
    """
    if dialect_name not in DIALECTS:
        raise ConfigurationError(
            f"outbox-saga has no tables for {dialect_name!r}; choose one of {', '.join(DIALECTS)}"
        )
    tables_in(schema)  # refuses what is not a schema's name
    resolve(revision)
    at = resolve(start) or BASE
    dialect = sa.make_url(f"{dialect_name}://").get_dialect()()
    written = io.StringIO()

    def path(_: Any, __: MigrationContext) -> Iterable[Any]:
        return script_directory()._upgrade_revs(revision, at)  # noqa: SLF001

    context = offline(
        dialect,
        schema,
        fn=path,
        starting_rev=start,
        output_buffer=written,
        literal_binds=True,
        transactional_ddl=dialect_name not in MYSQL,
    )
    with context.begin_transaction():
        if dialect_name == "postgresql":
            context.execute(f"SET LOCAL lock_timeout = '{int(lock_timeout * 1000)}ms'")
            context.execute(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")
            if schema is not None:
                context.execute(sa.schema.CreateSchema(schema, if_not_exists=True))
        context.run_migrations(steps=Steps(context))
    return written.getvalue()
