"""What may be forgotten, in bounded batches.

By the moment something ended, never by `created_at`: that is when a transaction wrote it, and a
transaction may stay open for longer than any window. The outbox, delayed messages, dead letters,
waiting messages, sagas and what operators did are no concern of these verbs.
"""

from __future__ import annotations

import sqlalchemy as sa

from outbox_saga.queries.archive_partitions import rest_of
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import delete_at_most, family
from outbox_saga.tables import Tables


def prune_inbox(
    connection: sa.Connection, tables: Tables, clock: Clock, window: float, limit: int
) -> int:
    """How many notes of handled messages were removed, at most `limit`.

    A message of which the note is gone would be handled again if it came again.

    Args:
        window: Seconds since it was handled.
    """
    inbox = tables.inbox
    return _delete(connection, inbox, inbox.c.handled_at < clock.now(-window), limit)


def prune_replies(
    connection: sa.Connection, tables: Tables, clock: Clock, window: float, limit: int
) -> int:
    """How many answers to requests were removed, at most `limit`.

    Args:
        window: Seconds since it came.
    """
    reply = tables.reply
    return _delete(connection, reply, reply.c.answered_at < clock.now(-window), limit)


def prune_archive(
    connection: sa.Connection, tables: Tables, clock: Clock, window: float, limit: int
) -> int:
    """How many published messages were removed, at most `limit`.

    On PostgreSQL of those that stand in no day's partition: the days are dropped whole.

    Args:
        window: Seconds since it was published.
    """
    archive: sa.FromClause = tables.archive
    if family(connection) == "postgresql":
        archive = rest_of(tables)
    return _delete(connection, archive, archive.c.published_at < clock.now(-window), limit)


def prune_processes(
    connection: sa.Connection, tables: Tables, clock: Clock, window: float, limit: int
) -> int:
    """How many processes were forgotten that have been dead for that long, at most `limit`.

    Args:
        window: Seconds since the process said last that it lives, and until when.
    """
    process = tables.process
    return _delete(connection, process, process.c.until < clock.now(-window), limit)


def past_inbox(connection: sa.Connection, tables: Tables, clock: Clock, window: float) -> int:
    """How many notes `prune_inbox` would remove in all."""
    inbox = tables.inbox
    return _count(connection, inbox, inbox.c.handled_at < clock.now(-window))


def past_replies(connection: sa.Connection, tables: Tables, clock: Clock, window: float) -> int:
    """How many answers `prune_replies` would remove in all."""
    reply = tables.reply
    return _count(connection, reply, reply.c.answered_at < clock.now(-window))


def past_archive(connection: sa.Connection, tables: Tables, clock: Clock, window: float) -> int:
    """How many published messages are past the window, wherever they stand."""
    archive = tables.archive
    return _count(connection, archive, archive.c.published_at < clock.now(-window))


def past_processes(connection: sa.Connection, tables: Tables, clock: Clock, window: float) -> int:
    """How many processes `prune_processes` would forget in all."""
    process = tables.process
    return _count(connection, process, process.c.until < clock.now(-window))


def _delete(
    connection: sa.Connection, table: sa.FromClause, past: sa.ColumnElement[bool], limit: int
) -> int:
    return connection.execute(delete_at_most(connection, table, past, limit)).rowcount


def _count(connection: sa.Connection, table: sa.FromClause, past: sa.ColumnElement[bool]) -> int:
    statement = sa.select(sa.func.count()).select_from(table).where(past)
    return connection.execute(statement).scalar_one()
