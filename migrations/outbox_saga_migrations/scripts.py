"""Where the revisions are, and how Alembic runs them without any configuration file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.engine import Dialect

from outbox_saga.tables import PREFIX
from outbox_saga_migrations.errors import UpgradeRefused

SCRIPT_LOCATION = Path(__file__).resolve().parent
"""The folder of `env.py` and `versions/`, for an Alembic configuration of one's own."""

VERSION_TABLE = PREFIX + "version"
"""Which revision a database is at; in the same schema as the tables."""

SCHEMA_OPTION = "outbox_saga_schema"
"""The option of `context.configure()` by which the revisions learn their schema."""

BASE = "base"


@cache
def script_directory() -> ScriptDirectory:
    """All revisions; read once a process."""
    return ScriptDirectory(str(SCRIPT_LOCATION))


def resolve(revision: str) -> str | None:
    """The full name of a revision; None for `base`, which is before the first.

    Raises:
        UpgradeRefused: No such revision; this version of the library may be too old for it.
    """
    if revision == BASE:
        return None
    try:
        return script_directory().get_revision(revision).revision
    except CommandError as error:
        raise UpgradeRefused(
            f"outbox-saga has no revision {revision!r} here ({error}); install the version of "
            "outbox-saga that this database was made with, or a newer one"
        ) from error


def options(schema: str | None) -> dict[str, Any]:
    """What every Alembic context of ours is configured with, `env.py` included."""
    return {
        "version_table": VERSION_TABLE,
        "version_table_schema": schema,
        SCHEMA_OPTION: schema,
    }


def online(connection: Connection, schema: str | None, **more: Any) -> MigrationContext:
    """A context on the caller's connection, in the caller's transaction; it never commits.

    Neither `alembic.op` nor `alembic.context` is touched, which are global to the process: so
    threads may upgrade at the same time, and a service's own revision may call us.
    """
    return MigrationContext.configure(
        connection, opts={**options(schema), "script": script_directory(), **more}
    )


def offline(dialect: Dialect, schema: str | None, **more: Any) -> MigrationContext:
    """A context that writes SQL instead of running it."""
    opts = {**options(schema), "script": script_directory(), "as_sql": True, **more}
    return MigrationContext.configure(dialect=dialect, opts=opts)
