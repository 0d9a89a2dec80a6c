"""Columns as the database has them, read without a type of ours.

Our types decode what we have written; rows may come from elsewhere, and one that cannot be decoded
must not fail all that are read with it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from outbox_saga.queries.dialects import family


def as_stored(connection: sa.Connection, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """The column, which gives what the driver makes of it, and takes that for a comparison.

    PostgreSQL lets nothing else than its type into a column, so it gives our own values there.
    """
    if family(connection) == "postgresql":
        return column
    return sa.type_coerce(column, sa.types.NullType())
