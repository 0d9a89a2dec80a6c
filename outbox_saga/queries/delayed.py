"""Messages that wait for their time, and how they enter the outbox when it has come."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import sqlalchemy as sa

from outbox_saga.envelopes import Envelope
from outbox_saga.queries.clock import DATABASE_CLOCK, Clock
from outbox_saga.queries.dialects import family, skip_locked
from outbox_saga.queries.driver import Answer
from outbox_saga.queries.outbox import (
    CHUNK_BYTES,
    TRANSACTION,
    WROTE,
    partition_of,
    statement_bytes,
    try_key_locks,
)
from outbox_saga.queries.stored import as_stored
from outbox_saga.tables import KEY_LOCKS, PREFIX, Tables

ROWS = 500  # a statement
DUE = PREFIX + "delayed_due"  # the index by time
LOOKED = 10_000  # messages that are looked at in one transaction, to find some whose key is free


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


@dataclass(slots=True)
class Progress:
    """How far one look at all that is due has come, which begins anew when it has ended.

    It may take several transactions: behind a hundred thousand messages whose keys are held there
    may be others. Of a key that was held no message enters before the look has ended, for it
    would come in front of those that the look has passed.

    Args:
        most: Messages that one transaction looks at.
        last: Due moment and id of the last one; None: it begins.
        busy: The key locks that others held.
    """

    most: int = LOOKED
    last: tuple[Any, Any] | None = None
    busy: set[int] = field(default_factory=set)

    def copy(self) -> Progress:
        """The same, to go on with until it is known whether the transaction has committed."""
        return replace(self, busy=set(self.busy))


def enter_outbox(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    limit: int,
    progress: Progress | None = None,
) -> int:
    """How many messages whose time has come are in the outbox now, and wait no longer.

    Each enters once, whoever else does the same at this moment; those of a key enter in the order
    in which they are due, under the lock of the key, as everything that enters the outbox. It
    waits for nobody: messages of a key that a writer holds just now enter another time, and hold
    up no others, however many they are.

    Args:
        connection: In a transaction of its own: it ends with the locks of many keys.
        limit: Rows, at most.
        progress: Where to go on, and changed to where to go on the next time, if this
            transaction commits. None: at the first that is due.
    """
    delayed, outbox = tables.delayed, tables.outbox
    ids = _free(connection, tables, clock, limit, progress or Progress())
    if not ids:
        return 0
    names = ["id", "partition", "topic", "key", "headers", "body"]
    moved: sa.Select[Any] = (
        sa.select(*(delayed.c[name] for name in names), clock.now())
        .where(as_stored(connection, delayed.c.id).in_(ids))
        .order_by(delayed.c.due_at, delayed.c.id)
    )
    connection.execute(sa.insert(outbox).from_select([*names, "created_at"], moved))
    _remove(connection, delayed, ids)
    connection.info[WROTE] = (connection.engine, tables.schema)
    return len(ids)


def _remove(connection: sa.Connection, delayed: sa.Table, ids: list[Any]) -> None:
    id_ = as_stored(connection, delayed.c.id)
    if family(connection) != "mysql":
        connection.execute(sa.delete(delayed).where(id_.in_(ids)))
        return
    # one by one: for many of them MariaDB scans the table, whatever index it is told to use, and
    # would wait for every row that somebody has not committed yet
    one = sa.delete(delayed).where(id_ == sa.bindparam("gone"))
    connection.execute(one, [{"gone": gone} for gone in ids])


def _free(
    connection: sa.Connection, tables: Tables, clock: Clock, limit: int, progress: Progress
) -> list[Any]:
    """The messages that are due, locked with the locks of their keys."""
    free, looked = list[Any](), 0
    while len(free) < limit and looked < progress.most:
        # read without a lock: who locked rows first might get the lock of their key second, and
        # would let them in behind later ones
        wanted = limit - len(free)
        rows = min(max(wanted, ROWS), progress.most - looked)
        due = _due(connection, tables, clock, progress.last, rows)
        # as many as are wanted whose keys are not known to be held
        some, passed = list[tuple[Any, int | None]](), 0
        for row in due:
            if len(some) == wanted:
                break
            number = _number(row.key)
            if number not in progress.busy:
                some.append((row.id, number))
            progress.last = (row.due_at, row.id)
            passed += 1
        looked += passed
        numbers = {number for _, number in some if number is not None}
        held = try_key_locks(connection, tables, sorted(numbers))
        progress.busy |= numbers - held
        mine = [id_ for id_, number in some if number is None or number in held]
        free += _locked(connection, tables, mine)
        if passed == len(due) < rows:
            progress.last, progress.busy = None, set()
            break
    return free


def _number(key: str | bytes | None) -> int | None:
    """Which of the key locks, of a key as the database has it."""
    if key is None:
        return None
    return zlib.crc32(key.encode() if isinstance(key, str) else key) % KEY_LOCKS


def _due(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    after: tuple[Any, Any] | None,
    limit: int,
) -> Sequence[sa.Row[Any]]:
    delayed = tables.delayed
    id_, key = (as_stored(connection, delayed.c[name]) for name in ("id", "key"))
    if family(connection) == "sqlite":
        key = sa.null()  # nobody else writes now, so no lock of a key is held
    found = sa.select(id_.label("id"), key.label("key"), delayed.c.due_at)
    found = found.where(delayed.c.due_at <= clock.now())
    if after is not None:
        moment, last = after
        found = found.where(
            delayed.c.due_at >= moment, sa.or_(delayed.c.due_at > moment, id_ > last)
        )
    found = _by_index(DUE, delayed, found).order_by(delayed.c.due_at, delayed.c.id)
    return connection.execute(found.limit(limit)).all()


def _locked(connection: sa.Connection, tables: Tables, ids: list[Any]) -> list[Any]:
    """Those of them that are still there; messages without a key another relay may have taken.

    Locking the rows gives this transaction its id, which has to come before any position does.
    """
    if not ids:
        return []
    delayed = tables.delayed
    id_ = as_stored(connection, delayed.c.id)
    found = sa.select(id_).where(id_.in_(ids))
    # these rows and no others: along the other index MariaDB keeps what it passes locked, too, and
    # a relay that skips one of its key's, and not the next, would let that in first
    found = _by_index("PRIMARY", delayed, found)
    return list(connection.scalars(skip_locked(connection, found)))


def _by_index(index: str, delayed: sa.Table, found: Any) -> Any:
    for name in ("mysql", "mariadb"):
        found = found.with_hint(delayed, f"FORCE INDEX ({index})", name)
    return found
