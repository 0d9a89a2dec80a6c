"""What may be forgotten, in bounded batches.

By the moment something ended, never by `created_at`: that is when a transaction wrote it, and a
transaction may stay open for longer than any window. The outbox, delayed messages, dead letters,
waiting messages, sagas that have not ended for good and what operators did are no concern of these
verbs.
"""

from __future__ import annotations

import sqlalchemy as sa

from outbox_saga.instances import OVER_FOR_GOOD
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


def prune_sagas(
    connection: sa.Connection, tables: Tables, clock: Clock, window: float, limit: int
) -> int:
    """How many completed or compensated sagas were removed, with their history; at most `limit`.

    What they were started as is forgotten, too: started again under its business key, one begins
    anew. A saga that is stuck stays.

    Args:
        window: Seconds since it ended.
    """
    saga, history = tables.saga, tables.saga_history
    past = _over(tables, clock, window)
    # by id, not by the place of the row: whoever prunes may not read what a saga is about
    chosen = sa.select(saga.c.id).where(past).order_by(saga.c.ended_at).limit(limit)
    ids = list(connection.scalars(chosen))
    if not ids:
        return 0
    # an effect that came late may have opened one again since
    gone = connection.execute(sa.delete(saga).where(saga.c.id.in_(ids), past)).rowcount
    stays = sa.exists().where(saga.c.id == history.c.saga_id)
    connection.execute(sa.delete(history).where(history.c.saga_id.in_(ids), ~stays))
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
    if not keys:
        return 0
    return connection.execute(sa.delete(barrier).where(sa.tuple_(*key).in_(keys), past)).rowcount


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


def past_sagas(connection: sa.Connection, tables: Tables, clock: Clock, window: float) -> int:
    """How many sagas `prune_sagas` would remove in all."""
    past = _over(tables, clock, window)
    statement = sa.select(sa.func.count(tables.saga.c.id)).where(past)
    return connection.execute(statement).scalar_one()


def past_barriers(connection: sa.Connection, tables: Tables, clock: Clock, window: float) -> int:
    """How many notes `prune_barriers` would remove in all."""
    barrier = tables.barrier
    past = barrier.c.updated_at < clock.now(-window)
    statement = sa.select(sa.func.count(barrier.c.saga_id)).where(past)
    return connection.execute(statement).scalar_one()


def _over(tables: Tables, clock: Clock, window: float) -> sa.ColumnElement[bool]:
    saga = tables.saga.c
    return sa.and_(saga.ended_at < clock.now(-window), saga.state.in_(sorted(OVER_FOR_GOOD)))


def _delete(
    connection: sa.Connection, table: sa.FromClause, past: sa.ColumnElement[bool], limit: int
) -> int:
    return connection.execute(delete_at_most(connection, table, past, limit)).rowcount


def _count(connection: sa.Connection, table: sa.FromClause, past: sa.ColumnElement[bool]) -> int:
    statement = sa.select(sa.func.count()).select_from(table).where(past)
    return connection.execute(statement).scalar_one()
