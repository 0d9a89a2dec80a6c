"""What may be forgotten, in bounded batches.

By the moment something ended, never by `created_at`: that is when a transaction wrote it, and a
transaction may stay open for longer than any window. The outbox, delayed messages, dead letters,
waiting messages, sagas that have not ended for good and what operators did are no concern of these
verbs.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import TypeVar

import sqlalchemy as sa

from outbox_saga.instances import OVER_FOR_GOOD
from outbox_saga.queries.archive_partitions import days_past, rest_of, within
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import delete_at_most, family
from outbox_saga.tables import Tables

T = TypeVar("T")
AT_ONCE = 5000  # rows of three parameters; PostgreSQL takes 65,535 a statement, SQLite 32,766


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


def prune_day(connection: sa.Connection, tables: Tables, day: dt.date, limit: int) -> int:
    """How many messages of a day that has a partition were removed, at most `limit`.

    Instead of dropping the day, for whoever does not own it.
    """
    return _delete(connection, tables.archive, within(tables.archive, day), limit)


def prune_processes(
    connection: sa.Connection, tables: Tables, clock: Clock, window: float, limit: int
) -> int:
    """How many processes were forgotten that have been dead for that long, at most `limit`.

    Args:
        window: Seconds since the process said last that it lives, and until when.
    """
    process = tables.process
    return _delete(connection, process, process.c.until < clock.now(-window), limit)


def prune_sagas(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    window: float,
    limit: int,
    *,
    keyed: bool = False,
) -> int:
    """How many completed or compensated sagas were removed, with their history; at most `limit`.

    A saga that is stuck stays.

    Args:
        window: Seconds since it ended.
        keyed: Those that were started under a business key, too. Started again under it, one would
            begin anew with the keys of the first for all that it does outside, and be given the
            answers that the first one got.
    """
    saga, history = tables.saga, tables.saga_history
    past = _over(tables, clock, window, keyed=keyed)
    # by id, not by the place of the row: whoever prunes may not read what a saga is about
    chosen = sa.select(saga.c.id).where(past).order_by(saga.c.ended_at).limit(limit)
    ids = list(connection.scalars(chosen))
    gone = 0
    for some in _batched(ids, AT_ONCE):
        # an effect that came late may have opened one again since
        gone += connection.execute(sa.delete(saga).where(saga.c.id.in_(some), past)).rowcount
        # of a column: for EXISTS (SELECT *) PostgreSQL wants the right to read all of them
        stays = sa.exists(saga.c.id).where(saga.c.id == history.c.saga_id)
        connection.execute(sa.delete(history).where(history.c.saga_id.in_(some), ~stays))
    return gone


def prune_barriers(
    connection: sa.Connection, tables: Tables, clock: Clock, window: float, limit: int
) -> int:
    """How many notes of commands were removed, at most `limit`.

    A command of which the note is gone would be carried out again if it came again.

    Args:
        window: Seconds since anything came of it.
    """
    barrier = tables.barrier
    key = (barrier.c.saga_id, barrier.c.step, barrier.c.generation)
    past = barrier.c.updated_at < clock.now(-window)
    chosen = sa.select(*key).where(past).order_by(barrier.c.updated_at).limit(limit)
    keys = [tuple(row) for row in connection.execute(chosen)]
    return sum(
        connection.execute(sa.delete(barrier).where(sa.tuple_(*key).in_(some), past)).rowcount
        for some in _batched(keys, AT_ONCE)
    )


def past_inbox(connection: sa.Connection, tables: Tables, clock: Clock, window: float) -> int:
    """How many notes `prune_inbox` would remove in all."""
    inbox = tables.inbox
    return _count(connection, inbox, inbox.c.handled_at < clock.now(-window))


def past_replies(connection: sa.Connection, tables: Tables, clock: Clock, window: float) -> int:
    """How many answers `prune_replies` would remove in all."""
    reply = tables.reply
    return _count(connection, reply, reply.c.answered_at < clock.now(-window))


def past_archive(connection: sa.Connection, tables: Tables, clock: Clock, window: float) -> int:
    """How many published messages a round would remove, one by one or with their day."""
    archive: sa.FromClause = tables.archive
    in_days = 0
    for day in days_past(connection, tables, clock, window):
        in_days += _count(connection, tables.archive, within(tables.archive, day))
    if family(connection) == "postgresql":
        archive = rest_of(tables)
    return in_days + _count(connection, archive, archive.c.published_at < clock.now(-window))


def past_processes(connection: sa.Connection, tables: Tables, clock: Clock, window: float) -> int:
    """How many processes `prune_processes` would forget in all."""
    process = tables.process
    return _count(connection, process, process.c.until < clock.now(-window))


def past_sagas(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    window: float,
    *,
    keyed: bool = False,
) -> int:
    """How many sagas `prune_sagas` would remove in all."""
    past = _over(tables, clock, window, keyed=keyed)
    statement = sa.select(sa.func.count(tables.saga.c.id)).where(past)
    return connection.execute(statement).scalar_one()


def past_barriers(connection: sa.Connection, tables: Tables, clock: Clock, window: float) -> int:
    """How many notes `prune_barriers` would remove in all."""
    barrier = tables.barrier
    past = barrier.c.updated_at < clock.now(-window)
    statement = sa.select(sa.func.count(barrier.c.saga_id)).where(past)
    return connection.execute(statement).scalar_one()


def _over(tables: Tables, clock: Clock, window: float, *, keyed: bool) -> sa.ColumnElement[bool]:
    saga = tables.saga.c
    over = saga.state.in_(sorted(OVER_FOR_GOOD))
    anyone = sa.true() if keyed else saga.business_key.is_(None)
    return sa.and_(saga.ended_at < clock.now(-window), over, anyone)


def _batched(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """All of them in their order, so many at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _delete(
    connection: sa.Connection, table: sa.FromClause, past: sa.ColumnElement[bool], limit: int
) -> int:
    return connection.execute(delete_at_most(connection, table, past, limit)).rowcount


def _count(connection: sa.Connection, table: sa.FromClause, past: sa.ColumnElement[bool]) -> int:
    statement = sa.select(sa.func.count()).select_from(table).where(past)
    return connection.execute(statement).scalar_one()
