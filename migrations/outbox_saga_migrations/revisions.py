"""Where a database stands in the row of revisions."""

from __future__ import annotations

from sqlalchemy import Connection

from outbox_saga.tables import tables_in
from outbox_saga_migrations.scripts import BASE, online, resolve, script_directory


def head() -> str:
    """The newest revision this version of the library knows."""
    revision = script_directory().get_current_head()
    assert revision is not None
    return revision


def current(connection: Connection, *, schema: str | None = None) -> str | None:
    """The revision this database is at, or None if our tables were never made here.

    Args:
        connection: Only read from.
        schema: Where our tables are; None is the connection's default.
    """
    tables_in(schema)  # refuses what is not a schema's name
    return online(connection, schema).get_current_revision()


def reached(connection: Connection, schema: str | None, target: str | None) -> bool:
    """Whether the database is at this revision or a later one; None is before the first."""
    at = current(connection, schema=schema)
    if target is None or at == target:
        return True
    return at is not None and target in passed(at)


def passed(at: str) -> set[str]:
    """This revision and all before it.

    Raises:
        UpgradeRefused: The revision is unknown here.
    """
    below = script_directory().iterate_revisions(resolve(at), BASE)
    return {script.revision for script in below}
