"""The archive's days (PostgreSQL): made ahead, dropped whole when they are past.

Dropping a day costs the same whatever it holds; deleting its rows would cost as much as writing
them, and leave the table as large. A day without a partition of its own is kept in the default
partition, so nothing here is needed for a message to be archived: it is tried, and tried again.

Making one takes ACCESS EXCLUSIVE on the default partition, dropping one on the whole archive: each
in a transaction of its own, that never waits longer than `LOCK_TIMEOUT`, because everybody who
comes later waits behind one who waits, and never takes longer than `TIMEOUT`: to attach a day
PostgreSQL looks through the default partition, which is empty unless days were missing.
"""

from __future__ import annotations

import datetime as dt
import re

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import family
from outbox_saga.tables import DEFAULT_PARTITION, Tables

AHEAD = 3  # days that have a partition before they begin
LOCK_TIMEOUT = 0.5  # seconds
TIMEOUT = 2.0  # seconds a statement

# Nobody need act on these: the archive is in use, rows of the day have come to the default
# partition meanwhile, or another runner has made it.
_TRY_LATER = {
    "55P03": "in use",
    "57014": "takes too long",
    "23514": "has rows already",
    "42P07": "is there already",
}
NOT_THE_OWNER = "42501"


def days_to_make(connection: sa.Connection, tables: Tables, clock: Clock) -> list[dt.date]:
    """The days from today on that have no partition and no rows in the default one."""
    if family(connection) != "postgresql":
        return []
    today = clock.read(connection).date()
    there = set(partition_days(connection, tables))
    rest = rest_of(tables)
    wanted: list[dt.date] = []
    for day in (today + dt.timedelta(days=n) for n in range(AHEAD + 1)):
        if day not in there:
            rows = sa.exists().where(within(rest, day))
            if not connection.execute(sa.select(rows)).scalar_one():
                wanted.append(day)
    return wanted


def days_past(
    connection: sa.Connection, tables: Tables, clock: Clock, window: float
) -> list[dt.date]:
    """The days that have a partition and ended longer ago than the window, oldest first.

    Args:
        window: Seconds; 0 keeps none, so that all days are past, also today and those made ahead.
    """
    if family(connection) != "postgresql":
        return []
    cutoff = clock.read(connection) - dt.timedelta(seconds=window)
    return [
        day
        for day in partition_days(connection, tables)
        if not window or _midnight(day + dt.timedelta(days=1)) <= cutoff
    ]


def within(archive: sa.FromClause, day: dt.date) -> sa.ColumnElement[bool]:
    """The condition that a message was published on this day."""
    return sa.and_(
        archive.c.published_at >= _midnight(day),
        archive.c.published_at < _midnight(day + dt.timedelta(days=1)),
    )


def partition_days(connection: sa.Connection, tables: Tables) -> list[dt.date]:
    """The days that have a partition of their own, oldest first."""
    names = connection.scalars(
        sa.text(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = CAST(:archive AS regclass)"
        ),
        {"archive": _quoted(connection, tables.archive)},
    )
    pattern = re.compile(re.escape(tables.archive.name) + r"_(\d{8})")
    found = (pattern.fullmatch(name) for name in names)
    return sorted(dt.datetime.strptime(m[1], "%Y%m%d").date() for m in found if m)  # noqa: DTZ007 - a day, not a moment


def make_day(connection: sa.Connection, tables: Tables, day: dt.date) -> None:
    """The day has a partition, in this transaction.

    Built beside the archive and then attached: made as a partition at once, it would lock the
    whole archive against everybody.
    """
    archive, name = _quoted(connection, tables.archive), _day_name(connection, tables, day)
    low, high = (_midnight(d).isoformat() for d in (day, day + dt.timedelta(days=1)))
    bounds = f"FROM ('{low}') TO ('{high}')"
    _never_wait_long(connection)
    connection.exec_driver_sql(f"CREATE TABLE {name} (LIKE {archive} INCLUDING ALL)")
    connection.exec_driver_sql(
        f"ALTER TABLE {archive} ATTACH PARTITION {name} FOR VALUES {bounds}"
    )


def drop_day(connection: sa.Connection, tables: Tables, day: dt.date) -> None:
    """The day is gone with all it holds, in this transaction."""
    _never_wait_long(connection)
    connection.exec_driver_sql(f"DROP TABLE {_day_name(connection, tables, day)}")


def why_later(error: DBAPIError) -> str | None:
    """Why a day could not be made or dropped just now; None for an error that is one."""
    return _TRY_LATER.get(sqlstate(error) or "")


def sqlstate(error: DBAPIError) -> str | None:
    """PostgreSQL's code of it."""
    return getattr(error.orig, "sqlstate", None)


def rest_of(tables: Tables) -> sa.TableClause:
    """The archive's default partition."""
    name = f"{tables.archive.name}_{DEFAULT_PARTITION}"
    columns = [sa.column(c.name, c.type) for c in tables.archive.c]
    return sa.table(name, *columns, schema=tables.schema)


def _never_wait_long(connection: sa.Connection) -> None:
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(LOCK_TIMEOUT * 1000)}")
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {round(TIMEOUT * 1000)}")


def _day_name(connection: sa.Connection, tables: Tables, day: dt.date) -> str:
    table = sa.table(f"{tables.archive.name}_{day:%Y%m%d}", schema=tables.schema)
    return _quoted(connection, table)


def _quoted(connection: sa.Connection, table: sa.TableClause) -> str:
    return str(connection.dialect.identifier_preparer.format_table(table))


def _midnight(day: dt.date) -> dt.datetime:
    return dt.datetime.combine(day, dt.time(), dt.UTC)
