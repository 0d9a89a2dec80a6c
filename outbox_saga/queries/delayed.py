"""Messages that wait for their time, and how they enter the outbox when it has come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.envelopes import Envelope
from outbox_saga.queries.clock import DATABASE_CLOCK, Clock
from outbox_saga.queries.dialects import family, skip_locked
from outbox_saga.queries.driver import Answer
from outbox_saga.queries.outbox import (
    CHUNK_BYTES,
    TRANSACTION,
    WROTE,
    lock_number,
    lock_numbers,
    partition_of,
    statement_bytes,
    try_key_locks,
)
from outbox_saga.tables import PREFIX, Tables

ROWS = 500  # a statement
DUE = PREFIX + "delayed_due"  # the index by time
ROUNDS = 5  # looks behind messages whose keys are held


class Delayed(NamedTuple):
    """A message that enters the outbox so many seconds after it was written."""

    envelope: Envelope
    seconds: float


def write_delayed(
    connection: sa.Connection,
    tables: Tables,
    messages: Sequence[Delayed],
    clock: Clock = DATABASE_CLOCK,
) -> Answer | None:
    """All of these, or an error; due by the database's clock, counted from this statement.

    No lock of their keys is taken: they get their place among the messages of their key when they
    enter the outbox.

    Args:
        connection: In the transaction that is about to commit.
        messages: At least one.

    Returns:
        What gives a row with the transaction's id, on PostgreSQL; see `write_messages`.
    """
    for chunk in _chunks(messages):
        connection.execute(
            sa.insert(tables.delayed).values(
                [
                    {
                        "id": e.id,
                        "due_at": clock.now(seconds),
                        "partition": partition_of(e.key, e.id),
                        "topic": e.topic,
                        "key": e.key,
                        "headers": e.metadata(),
                        "body": e.body,
                        "created_at": clock.now(),
                    }
                    for e, seconds in chunk
                ]
            )
        )
    if family(connection) != "postgresql":
        return None
    told = connection.exec_driver_sql(f"SELECT {TRANSACTION}").first()
    return lambda: told


def _chunks(messages: Sequence[Delayed]) -> Iterator[Sequence[Delayed]]:
    start = size = 0
    for end, (envelope, _) in enumerate(messages):
        more = statement_bytes(envelope)
        size += more
        if end > start and (end - start == ROWS or size > CHUNK_BYTES):
            yield messages[start:end]
            start, size = end, more
    yield messages[start:]


def enter_outbox(connection: sa.Connection, tables: Tables, clock: Clock, limit: int) -> int:
    """How many messages whose time has come are in the outbox now, and wait no longer.

    Each enters once, whoever else does the same at this moment; those of a key enter in the order
    in which they are due, under the lock of the key, as everything that enters the outbox. It
    waits for nobody: messages of a key that a writer holds just now enter the next time, and hold
    up no others.

    Args:
        connection: In a transaction of its own: it ends with the locks of many keys.
        limit: Rows, at most.
    """
    delayed, outbox = tables.delayed, tables.outbox
    ids = _free(connection, tables, clock, limit)
    if not ids:
        return 0
    names = ["id", "partition", "topic", "key", "headers", "body"]
    moved: sa.Select[Any] = (
        sa.select(*(delayed.c[name] for name in names), clock.now())
        .where(delayed.c.id.in_(ids))
        .order_by(delayed.c.due_at, delayed.c.id)
    )
    connection.execute(sa.insert(outbox).from_select([*names, "created_at"], moved))
    _remove(connection, delayed, ids)
    connection.info[WROTE] = (connection.engine, tables.schema)
    return len(ids)


def _remove(connection: sa.Connection, delayed: sa.Table, ids: list[UUID]) -> None:
    if family(connection) != "mysql":
        connection.execute(sa.delete(delayed).where(delayed.c.id.in_(ids)))
        return
    # one by one: for many of them MariaDB scans the table, whatever index it is told to use, and
    # would wait for every row that somebody has not committed yet
    one = sa.delete(delayed).where(delayed.c.id == sa.bindparam("gone"))
    connection.execute(one, [{"gone": id_} for id_ in ids])


def _free(connection: sa.Connection, tables: Tables, clock: Clock, limit: int) -> list[UUID]:
    """The messages that are due, locked with the locks of their keys."""
    free, seen, busy = list[UUID](), list[UUID](), set[str]()
    for _ in range(ROUNDS):
        # read without a lock: who locked rows first might get the lock of their key second, and
        # would let them in behind later ones
        wanted = limit - len(free)
        due = _due(connection, tables, clock, seen, busy, wanted)
        held = try_key_locks(connection, tables, lock_numbers(row.key for row in due))
        mine = [row.id for row in due if row.key is None or lock_number(row.key) in held]
        free += _locked(connection, tables, mine)
        if len(due) < wanted or len(free) == limit:
            break
        seen += mine
        busy |= {row.key for row in due if row.key is not None and row.id not in set(mine)}
    return free


def _due(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    seen: list[UUID],
    busy: set[str],
    limit: int,
) -> Sequence[sa.Row[Any]]:
    delayed = tables.delayed
    found = sa.select(delayed.c.id, delayed.c.key).where(delayed.c.due_at <= clock.now())
    if seen:
        found = found.where(delayed.c.id.not_in(seen))
    if busy:
        found = found.where(sa.or_(delayed.c.key.is_(None), delayed.c.key.not_in(busy)))
    found = _by_index(DUE, delayed, found).order_by(delayed.c.due_at, delayed.c.id)
    return connection.execute(found.limit(limit)).all()


def _locked(connection: sa.Connection, tables: Tables, ids: list[UUID]) -> list[UUID]:
    """Those of them that are still there; messages without a key another relay may have taken.

    Locking the rows gives this transaction its id, which has to come before any position does.
    """
    if not ids:
        return []
    delayed = tables.delayed
    found = sa.select(delayed.c.id).where(delayed.c.id.in_(ids))
    # these rows and no others: along the other index MariaDB keeps what it passes locked, too, and
    # a relay that skips one of its key's, and not the next, would let that in first
    found = _by_index("PRIMARY", delayed, found)
    return list(connection.scalars(skip_locked(connection, found)))


def _by_index(index: str, delayed: sa.Table, found: Any) -> Any:
    for name in ("mysql", "mariadb"):
        found = found.with_hint(delayed, f"FORCE INDEX ({index})", name)
    return found
