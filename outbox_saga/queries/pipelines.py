"""Transactions in one round trip: what every pipeline of psycopg needs.

In a busy program each answer that is waited for costs a turn at Python's lock too, which takes
longer than most statements.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

# Not conn.commit(), which costs a round trip of its own in a pipeline. The level is said because
# the server's default may be another: there, a row that an overlapping owner removed is an error.
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
COMMIT = "COMMIT"

# A client that stands still between this and the COMMIT holds the rows locked. In a pipeline the
# session is not idle meanwhile, so that only this limit ends it.
LIMITED = ", set_config('transaction_timeout', %(milliseconds)s, true)"
_LIMITS_SINCE = (17,)


def can_limit(dialect: sa.Dialect) -> bool:
    """Whether the server knows `LIMITED`."""
    version: tuple[int, ...] | None = getattr(dialect, "server_version_info", None)
    return version is not None and version >= _LIMITS_SINCE


def milliseconds(seconds: float) -> str:
    """The value of `LIMITED`."""
    # 0 would switch the limit off
    return str(min(max(1, round(seconds * 1000)), 2_147_483_647))


@contextlib.contextmanager
def told_as_sqlalchemy_does(connection: sa.Connection, raw: Any) -> Iterator[None]:
    """The driver's errors as SQLAlchemy's, so that `is_transient` reads them as all others."""
    dbapi: Any = connection.dialect.loaded_dbapi
    try:
        yield
    except dbapi.Error as error:
        raise DBAPIError.instance(
            None,
            None,
            error,
            dbapi.Error,
            connection_invalidated=bool(raw.closed),
            dialect=connection.dialect,
        ) from error
