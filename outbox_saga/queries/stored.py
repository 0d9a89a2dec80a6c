"""Columns as the database has them, read without a type of ours.

Our types decode what we have written; rows may come from elsewhere, and one that cannot be decoded
must not fail all that are read with it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from outbox_saga.queries.dialects import family


def as_stored(connection: sa.Connection, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """The column, which gives what the driver makes of it, and takes that for a comparison.

    PostgreSQL lets nothing else than its type into a column, so it gives our own values there.
    """
    if family(connection) == "postgresql":
        return column
    return sa.type_coerce(column, sa.types.NullType())


def is_undecodable(error: DBAPIError) -> bool:
    """Whether SQLite's driver found text that is not UTF-8: an error without SQLite's code."""
    original = error.orig
    ours = type(original).__module__ == "sqlite3" and not error.connection_invalidated
    return ours and getattr(original, "sqlite_errorcode", None) is None
