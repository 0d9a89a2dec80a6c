"""Messages that were delivered and acknowledged, but are not handled yet.

A row waits for its next attempt (`until`), sleeps behind an earlier one of its key (`ASLEEP`), or
is a dead letter (`until` is NULL). Of one consumer and key only the first row is ever handed out:
a dead letter that stays first keeps the later ones where they are, and when the first row goes the
next one is woken. `key` is the key a row holds up: a dead letter that holds up nothing has none
here, and keeps its own in its headers.
"""

from __future__ import annotations

import datetime as dt
import json
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.payloads import storable
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import family, idle_limit, insert_or_ignore, skip_locked
from outbox_saga.queries.inbox import body_hash, handled_hash
from outbox_saga.tables import INBOX_LOCKS, KEY_LOCKS, Tables

Stored = Literal["stored", "repeat", "altered", "free"]

ASLEEP = dt.datetime(9000, 1, 1, tzinfo=dt.UTC)  # until the one before it in its key is gone
MAX_ERROR = 2000  # characters of an error that are kept
MAX_TRACE = 20_000
HELD_KEY = "key"  # in the headers of a row that holds up no key


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a message was not handled.

    Args:
        code: Short and stable, for programs and metrics.
        error: For people; no payload.
        error_class: Of what was raised, if anything was.
        trace: Where: files, lines and functions, no values.
    """

    code: str
    error: str
    error_class: str | None = None
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message as one consumer got it; `headers` is what its row keeps beside the columns."""

    consumer: str
    message_id: UUID
    topic: str
    key: str | None
    headers: str
    body: bytes


class Leased(NamedTuple):
    """A waiting message that is this owner's for a while.

    `orphaned`: another process had it before, and gave no answer.
    """

    position: int
    consumer: str
    message_id: UUID
    topic: str
    key: str | None
    headers: str
    body: bytes
    attempts: int
    orphaned: bool


class Kind(NamedTuple):
    """The messages of one type that wait for one consumer."""

    consumer: str
    topic: str
    type: str


def lock_key(connection: sa.Connection, tables: Tables, consumer: str, key: str) -> None:
    """Nobody else stores or removes messages of this consumer and key until this transaction ends.

    So what is visible of a key is always a prefix of its queue. Taken for moments only, never
    while a handler runs: keys that share a number must not wait for each other's handlers.
    """
    number = zlib.crc32(f"{consumer}\0{key}".encode()) % INBOX_LOCKS
    kind = family(connection)
    preparer = connection.dialect.identifier_preparer
    if kind == "postgresql":
        # a class of its own, by the table's oid: publishers' locks have the outbox's
        name = preparer.format_table(tables.inbox_waiting).replace("'", "''").replace(":", r"\:")
        lock_class = f"CAST(CAST(CAST('{name}' AS regclass) AS oid) AS int)"
        connection.execute(
            sa.text(f"SELECT pg_advisory_xact_lock({lock_class}, :number)"), {"number": number}
        )
    elif kind == "mysql":
        # rows, because GET_LOCK belongs to the session and would outlive the transaction
        lock = tables.key_lock
        connection.execute(
            sa.select(lock.c.number).where(lock.c.number == KEY_LOCKS + number).with_for_update()
        ).all()


# --- into the queue ------------------------------------------------------------------------------


def store(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    delivered: Delivered,
    failed: Failed | None,
    *,
    delay: float | None = 0.0,
    attempts: int = 1,
) -> Stored:
    """The message waits from now on, once, behind whatever waits of its key.

    Args:
        failed: Why; None: only because others of its key may wait.
        delay: Seconds until the next attempt, when it is the first of its key; None: it is a dead
            letter.
        attempts: Failed ones so far.

    Returns:
        "stored". "repeat": it waits already, or was handled meanwhile. "altered": so was, or does,
        another body under its id; nothing was written. "free": nothing of its key waits, and it
        has not failed, so nothing was written: handle it.
    """
    waiting, key = tables.inbox_waiting, delivered.key
    if key is not None:
        lock_key(connection, tables, delivered.consumer, key)
    digest = handled_hash(connection, tables, delivered.consumer, delivered.message_id)
    if digest is None:
        there = connection.execute(
            sa.select(waiting.c.body).where(
                waiting.c.consumer == delivered.consumer,
                waiting.c.message_id == delivered.message_id,
            )
        ).scalar_one_or_none()
        digest = None if there is None else body_hash(there)
    if digest is not None:
        return "repeat" if digest == body_hash(delivered.body) else "altered"
    ahead = key is not None and wake(connection, tables, clock, delivered.consumer, key)
    if failed is None and not ahead:
        return "free"
    until: Any = None
    if failed is None or delay is not None:
        until = ASLEEP if ahead else clock.now(delay or 0.0)
    stored = connection.execute(
        insert_or_ignore(connection, waiting).values(
            consumer=delivered.consumer,
            message_id=delivered.message_id,
            topic=delivered.topic,
            key=key,
            headers=delivered.headers,
            body=delivered.body,
            arrived_at=clock.now(),
            until=until,
            attempts=0 if failed is None else attempts,
            failed_at=None if failed is None else clock.now(),
            **_told(failed or Failed("behind", "an earlier message of its key waits")),
        )
    ).rowcount
    return "stored" if stored else "repeat"  # without a key only the unique index tells


def _told(failed: Failed) -> dict[str, str | None]:
    return {
        "error_code": failed.code,
        "error": storable(failed.error, MAX_ERROR),
        "error_class": None if failed.error_class is None else failed.error_class[:200],
        "trace": None if failed.trace is None else storable(failed.trace, MAX_TRACE),
    }


def wake(connection: sa.Connection, tables: Tables, clock: Clock, consumer: str, key: str) -> bool:
    """Whether anything of this key waits; the first of it does not sleep any more.

    Under its lock.
    """
    waiting = tables.inbox_waiting
    first = connection.execute(
        sa.select(waiting.c.position, waiting.c.until)
        .where(waiting.c.consumer == consumer, waiting.c.key == key)
        .order_by(waiting.c.position)
        .limit(1)
    ).first()
    if first is None:
        return False
    if first.until == ASLEEP:
        connection.execute(
            sa.update(waiting)
            .where(waiting.c.position == first.position)
            .values(until=clock.now())
        )
    return True


def any_of_key(connection: sa.Connection, tables: Tables, consumer: str, key: str) -> bool:
    """Whether anything of this consumer and key waits."""
    waiting = tables.inbox_waiting
    found = sa.select(waiting.c.position).where(
        waiting.c.consumer == consumer, waiting.c.key == key
    )
    return connection.execute(found.limit(1)).first() is not None


# --- out of the queue ----------------------------------------------------------------------------


def _due(
    tables: Tables,
    clock: Clock,
    consumers: Collection[str],
    only: Kind | None,
    but: Collection[Kind],
) -> list[Any]:
    waiting = tables.inbox_waiting
    return [
        waiting.c.until <= clock.now(),
        sa.or_(waiting.c.lease_until.is_(None), waiting.c.lease_until < clock.now()),
        waiting.c.consumer.in_(sorted(consumers)),
        *([_is_of(tables, only)] if only is not None else []),
        *(~_is_of(tables, kind) for kind in but),
    ]


def _is_of(tables: Tables, kind: Kind) -> Any:
    """As its headers tell: they begin with the type. A row that cannot be read is of no kind."""
    waiting = tables.inbox_waiting
    beginnings = [f'{{"type":{gap}"{kind.type}",' for gap in ("", " ")]
    return sa.and_(
        waiting.c.consumer == kind.consumer,
        waiting.c.topic == kind.topic,
        sa.or_(*(sa.func.substr(waiting.c.headers, 1, len(b)) == b for b in beginnings)),
    )


def any_due(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    consumers: Collection[str],
    *,
    only: Kind | None = None,
    but: Collection[Kind] = (),
) -> bool:
    """Whether there may be something to lease.

    Reads only, so that an idle look takes no write lock.
    """
    return bool(
        connection.execute(
            sa.select(sa.literal(1)).where(*_due(tables, clock, consumers, only, but)).limit(1)
        ).first()
    )


def lease_due(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    owner: UUID,
    seconds: float,
    consumers: Collection[str],
    limit: int,
    in_hand: Collection[int] = (),
    *,
    only: Kind | None = None,
    but: Collection[Kind] = (),
) -> list[Leased]:
    """Due messages of these consumers, the first of their keys, now leased to `owner`.

    Args:
        seconds: Then another process may take them over.
        limit: Messages.
        in_hand: Positions of those that `owner` is at, though it may have let their leases run
            out: they are not leased to it a second time.
        only: Of this kind.
        but: Of none of these kinds.
    """
    waiting = tables.inbox_waiting
    earlier = waiting.alias("earlier")
    found = connection.execute(
        skip_locked(
            connection,
            sa.select(
                *(waiting.c[name] for name in Leased._fields[:-1]),
                sa.and_(waiting.c.owner.is_not(None), waiting.c.owner != owner).label("orphaned"),
                # its locks never outlive the lease, though the process stand still here
                *idle_limit(connection, seconds),
            )
            .where(
                *_due(tables, clock, consumers, only, but),
                sa.or_(
                    waiting.c.owner.is_(None),
                    waiting.c.owner != owner,
                    waiting.c.position.not_in(sorted(in_hand)),
                ),
                # nobody wakes a row that is not the first; should somebody have, it still waits
                ~sa.exists().where(
                    earlier.c.consumer == waiting.c.consumer,
                    earlier.c.key == waiting.c.key,
                    earlier.c.position < waiting.c.position,
                ),
            )
            .order_by(waiting.c.until)
            .limit(limit),
        )
    ).all()
    if found:
        connection.execute(
            sa.update(waiting)
            .where(waiting.c.position.in_([row.position for row in found]))
            .values(owner=owner, lease_until=clock.now(seconds))
        )
    return [Leased._make((*row[:8], bool(row.orphaned))) for row in found]


def _mine(tables: Tables, leased: Leased, owner: UUID) -> list[Any]:
    waiting = tables.inbox_waiting
    return [
        waiting.c.position == leased.position,
        waiting.c.message_id == leased.message_id,
        waiting.c.owner == owner,
    ]


def renew(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    owner: UUID,
    positions: Sequence[int],
    seconds: float,
) -> None:
    """Those of these messages that are still this owner's stay so for another lease."""
    waiting = tables.inbox_waiting
    connection.execute(
        sa.update(waiting)
        .where(waiting.c.position.in_(positions), waiting.c.owner == owner)
        .values(lease_until=clock.now(seconds))
    )


def release(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    owner: UUID,
    leased: Leased,
    *,
    after: float | None,
) -> None:
    """Given back without an attempt; due again after so many seconds (None: as it was)."""
    values: dict[str, Any] = {"owner": None, "lease_until": None}
    if after is not None:
        values["until"] = clock.now(after)
    connection.execute(
        sa.update(tables.inbox_waiting).where(*_mine(tables, leased, owner)).values(**values)
    )


def done(
    connection: sa.Connection, tables: Tables, clock: Clock, owner: UUID, leased: Leased
) -> bool:
    """True: it was still this owner's, and waits no more; the next of its key is due now."""
    if leased.key is not None:
        lock_key(connection, tables, leased.consumer, leased.key)
    gone = connection.execute(
        sa.delete(tables.inbox_waiting).where(*_mine(tables, leased, owner))
    ).rowcount
    if gone and leased.key is not None:
        wake(connection, tables, clock, leased.consumer, leased.key)
    return bool(gone)


def fail(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    owner: UUID,
    leased: Leased,
    failed: Failed,
    *,
    delay: float | None,
    parks: bool,
) -> bool:
    """True: it was still this owner's, and its attempt is counted.

    Args:
        delay: Seconds until the next attempt; None: it is a dead letter now.
        parks: Whether a dead letter holds up its key; otherwise the next of its key is due now.
    """
    values: dict[str, Any] = {
        "attempts": leased.attempts + 1,
        "until": None if delay is None else clock.now(delay),
        "failed_at": clock.now(),
        "owner": None,
        "lease_until": None,
        **_told(failed),
    }
    lets_go = delay is None and not parks and leased.key is not None
    if lets_go:
        assert leased.key is not None
        lock_key(connection, tables, leased.consumer, leased.key)
        values |= {"key": None, "headers": with_held_key(leased.headers, leased.key)}
    changed = connection.execute(
        sa.update(tables.inbox_waiting).where(*_mine(tables, leased, owner)).values(**values)
    ).rowcount
    if changed and lets_go:
        assert leased.key is not None
        wake(connection, tables, clock, leased.consumer, leased.key)
    return bool(changed)


def with_held_key(headers: str, key: str) -> str:
    """The headers of a row that holds up nothing: they keep its key for whoever reads it."""
    return json.dumps({**json.loads(headers), HELD_KEY: key})
