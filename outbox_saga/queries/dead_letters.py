"""What no broker took: found, put back into the outbox, or given up, each by a person's decision.

A letter goes back to its own position, below every later message of its key. While its key is
parked at that position no later one has left, and none can leave before it: the row comes back and
the park ends in one transaction, so whoever reads a page sees both or neither.

Locks go in the order in which the relay takes them when it stores a failure: the partition's
lease, then the letter, the outbox, the blocked keys. One letter a transaction, because two leases
held at once could wait in a circle with a relay that renews all of them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.decisions import Decision
from outbox_saga.envelopes import replayed
from outbox_saga.errors import SeenChanged
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import family, for_update, limit_idle_transaction
from outbox_saga.queries.operators import note_action
from outbox_saga.queries.outbox import partition_of
from outbox_saga.tables import Tables

IDLE_LIMIT = 5.0  # seconds an operator's process may stand still while it holds a relay's lease


@dataclass(frozen=True, slots=True)
class Matching:
    """Which dead letters; what is None says nothing.

    Args:
        topic: Of this topic.
        key: Of this key.
        code: With this error code.
        since: That died at this moment or later.
        until: That died before this moment.
    """

    topic: str | None = None
    key: str | None = None
    code: str | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None


ALL = Matching()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter as it was seen, without its body.

    Args:
        position: Its place in the order of the outbox, which a replay gives back to it.
        headers: The metadata as it is stored, as JSON.
        size: Of the body, in bytes.
        created_at: When it was published by the service.
        died_at: When it became a dead letter, by the database's clock.
        attempts: Failed ones, as the relay counted them.
        error_code: Short and stable.
        error: For people.
        error_class: Of what was raised, where there was an exception.
        trace: Of it; without values.
        parked: Its key is parked at its position: no later message of the key has left since.
    """

    id: UUID
    position: int
    partition: int
    topic: str
    key: str | None
    headers: str
    size: int
    created_at: dt.datetime
    died_at: dt.datetime
    attempts: int
    error_code: str
    error: str
    error_class: str | None
    trace: str | None
    parked: bool

    @property
    def version(self) -> str:
        """What changes whenever the letter does: an action that names it acts on this, or not."""
        return f"{self.attempts}-{round(self.died_at.timestamp() * 1_000_000):x}"

    @property
    def keeps_its_place(self) -> bool:
        """A replay comes before all later messages of its key; without a key there is no order."""
        return self.key is None or self.parked


@dataclass(frozen=True, slots=True)
class Group:
    """Dead letters of one topic and error code.

    Args:
        overtaken: Of them, those whose key is not parked for them: later ones may have left.
    """

    topic: str
    error_code: str
    count: int
    first: dt.datetime
    last: dt.datetime
    overtaken: int


@dataclass(frozen=True, slots=True)
class PutBack:
    """What became of a letter that was replayed.

    Args:
        letter: As it was.
        waits_behind: Where its key is parked for another dead letter, which it now waits for.
    """

    letter: DeadLetter
    waits_behind: int | None


# --- looking -------------------------------------------------------------------------------------


def _parked(tables: Tables) -> sa.ColumnElement[bool]:
    letter, blocked = tables.dead_letter, tables.blocked_key
    return sa.exists().where(
        blocked.c.partition == letter.c.partition,
        blocked.c.key == letter.c.key,
        blocked.c.position == letter.c.position,
        blocked.c.until.is_(None),
    )


def _where(tables: Tables, matching: Matching) -> list[sa.ColumnElement[bool]]:
    letter = tables.dead_letter
    wanted = {"topic": matching.topic, "key": matching.key, "error_code": matching.code}
    found = [letter.c[name] == value for name, value in wanted.items() if value is not None]
    if matching.since is not None:
        found.append(letter.c.died_at >= matching.since)
    if matching.until is not None:
        found.append(letter.c.died_at < matching.until)
    return found


def find_letters(
    connection: sa.Connection,
    tables: Tables,
    matching: Matching = ALL,
    *,
    after: int | None = None,
    limit: int = 100,
    ids: Sequence[UUID] | None = None,
) -> list[DeadLetter]:
    """Dead letters in the order of their positions, which is the order of each key.

    Args:
        after: The position of the last one that was read.
        limit: Letters.
        ids: Only these.
    """
    letter = tables.dead_letter
    kept = [c for c in letter.c if c.name != "body"]
    statement = (
        sa.select(
            *kept, sa.func.length(letter.c.body).label("size"), _parked(tables).label("parked")
        )
        .where(*_where(tables, matching))
        .order_by(letter.c.position, letter.c.id)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(letter.c.position > after)
    if ids is not None:
        statement = statement.where(letter.c.id.in_(ids))
    return [
        DeadLetter(**{**row._mapping, "parked": bool(row.parked)})  # noqa: SLF001 - public, in SQLAlchemy's words
        for row in connection.execute(statement)
    ]


def count_letters(
    connection: sa.Connection, tables: Tables, matching: Matching = ALL
) -> list[Group]:
    """How many there are of each topic and error code, the most first."""
    letter = tables.dead_letter
    overtaken = sa.and_(letter.c.key.is_not(None), ~_parked(tables))
    statement = (
        sa.select(
            letter.c.topic,
            letter.c.error_code,
            sa.func.count().label("letters"),
            sa.func.min(letter.c.died_at).label("first"),
            sa.func.max(letter.c.died_at).label("last"),
            sa.func.sum(sa.case((overtaken, 1), else_=0)).label("overtaken"),
        )
        .where(*_where(tables, matching))
        .group_by(letter.c.topic, letter.c.error_code)
        .order_by(sa.desc("letters"), letter.c.topic, letter.c.error_code)
    )
    return [
        Group(r.topic, r.error_code, r.letters, r.first, r.last, int(r.overtaken))
        for r in connection.execute(statement)
    ]


def read_body(connection: sa.Connection, tables: Tables, id_: UUID) -> bytes | None:
    """The bytes of a dead letter as they were committed; None when it is gone."""
    letter = tables.dead_letter
    body: bytes | None = connection.execute(
        sa.select(letter.c.body).where(letter.c.id == id_)
    ).scalar_one_or_none()
    return body


def parks_of(connection: sa.Connection, tables: Tables, key: str) -> list[int]:
    """The positions at which this key is parked; none when it is not."""
    blocked = tables.blocked_key
    statement = (
        sa.select(blocked.c.position)
        .where(
            blocked.c.partition == _partition_of(key),
            blocked.c.key == key,
            blocked.c.until.is_(None),
        )
        .order_by(blocked.c.position)
    )
    return list(connection.scalars(statement))


def waiting_behind(connection: sa.Connection, tables: Tables, key: str) -> int:
    """How many messages of this key wait in the outbox."""
    outbox = tables.outbox
    return connection.execute(
        sa.select(sa.func.count()).where(
            outbox.c.partition == _partition_of(key), outbox.c.key == key
        )
    ).scalar_one()


# --- acting --------------------------------------------------------------------------------------


def put_back(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    seen: DeadLetter,
    decision: Decision,
) -> PutBack:
    """The letter is in the outbox again, at its own position, with its id and its bytes; its key
    is no longer parked for it.

    Raises:
        SeenChanged: It is gone, or has died again since it was seen.
    """
    headers = _lock(connection, tables, seen)
    _insert(connection, tables, seen, replayed(headers))
    connection.execute(sa.delete(tables.dead_letter).where(tables.dead_letter.c.id == seen.id))
    _unpark_at(connection, tables, seen.partition, seen.key or "", [seen.position])
    look_again_from(connection, tables, seen.partition, seen.position)
    others = parks_of(connection, tables, seen.key) if seen.key is not None else []
    note_action(
        connection,
        tables,
        clock,
        decision,
        "dead_letter.replay",
        f"message {seen.id}",
        {**_told(seen), "kept_its_place": seen.keeps_its_place},
    )
    return PutBack(seen, others[0] if others else None)


def discard(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    seen: DeadLetter,
    decision: Decision,
    *,
    unpark: bool = False,
) -> None:
    """The letter is gone for good; what is left of it is what the audit says.

    Args:
        unpark: The later messages of its key go without it. Otherwise they go on waiting.

    Raises:
        SeenChanged: It is gone, or has died again since it was seen.
    """
    _lock(connection, tables, seen)
    connection.execute(sa.delete(tables.dead_letter).where(tables.dead_letter.c.id == seen.id))
    unparked = unpark and _unpark_at(
        connection, tables, seen.partition, seen.key or "", [seen.position]
    )
    if unparked:
        look_again_from(connection, tables, seen.partition, seen.position)
    note_action(
        connection,
        tables,
        clock,
        decision,
        "dead_letter.discard",
        f"message {seen.id}",
        {**_told(seen), "unparked": bool(unparked)},
    )


def unpark(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    key: str,
    seen: Sequence[int],
    decision: Decision,
) -> None:
    """Later messages of this key go without the dead letters they waited for.

    The letters stay; one that is replayed afterwards comes after those that have left.

    Args:
        seen: The positions at which the key was seen parked, as `parks_of` gives them.

    Raises:
        SeenChanged: The key is not parked, or not there.
    """
    partition = _partition_of(key)
    _lock_lease(connection, tables, partition)
    if not seen or parks_of(connection, tables, key) != sorted(seen):
        raise SeenChanged("the key is not parked there (any more); look again")
    _unpark_at(connection, tables, partition, key, seen)
    # what waited may stand below what the relay has read
    look_again_from(connection, tables, partition, min(seen))
    note_action(
        connection,
        tables,
        clock,
        decision,
        "key.unpark",
        f"partition {partition}, position {min(seen)}",
        {"key": key, "positions": list(seen)},
    )


def look_again_from(
    connection: sa.Connection, tables: Tables, partition: int, position: int
) -> None:
    """The owner of this partition reads again from this position on: a row, or a key that waited,
    has come back below what it has read.

    In the transaction that brings it back. The owner must see both in one look: a page that knows
    the key is free, but not that it has to look lower, would let later ones pass.
    """
    lease = tables.partition_lease
    connection.execute(
        sa.update(lease)
        .where(lease.c.partition == partition)
        .values(
            revisit=sa.case(
                (sa.or_(lease.c.revisit.is_(None), lease.c.revisit > position), position),
                else_=lease.c.revisit,
            )
        )
    )


def _partition_of(key: str) -> int:
    return partition_of(key, UUID(int=0))  # the id decides only for messages without a key


def _lock_lease(connection: sa.Connection, tables: Tables, partition: int) -> None:
    lease = tables.partition_lease
    limit_idle_transaction(connection, IDLE_LIMIT)
    connection.execute(
        for_update(connection, sa.select(lease.c.partition).where(lease.c.partition == partition))
    )


def _lock(connection: sa.Connection, tables: Tables, seen: DeadLetter) -> str:
    """The letter's metadata, once nobody else can change the letter."""
    _lock_lease(connection, tables, seen.partition)
    letter = tables.dead_letter
    row = connection.execute(
        for_update(
            connection,
            sa.select(letter.c.headers).where(
                letter.c.id == seen.id,
                letter.c.died_at == seen.died_at,
                letter.c.attempts == seen.attempts,
            ),
        )
    ).first()
    if row is None:
        raise SeenChanged(
            f"dead letter {seen.id} is gone, or has died again since you looked; look again"
        )
    headers: str = row.headers
    return headers


_COPIED = ("position", "id", "partition", "topic", "key", "headers", "body", "created_at")


def _insert(connection: sa.Connection, tables: Tables, seen: DeadLetter, headers: str) -> None:
    """The letter's row in the outbox, at its own position; its bytes never leave the database."""
    outbox, letter = tables.outbox, tables.dead_letter
    preparer = connection.dialect.identifier_preparer
    names = {name: preparer.quote(name) for name in _COPIED}
    source = ", ".join(":headers" if n == "headers" else q for n, q in names.items())
    # an identity column takes no position of ours otherwise, and SQLAlchemy has no word for it
    overriding = " OVERRIDING SYSTEM VALUE" if family(connection) == "postgresql" else ""
    statement = sa.text(
        f"INSERT INTO {preparer.format_table(outbox)} ({', '.join(names.values())}){overriding} "
        f"SELECT {source} FROM {preparer.format_table(letter)} WHERE id = :id"
    ).bindparams(
        sa.bindparam("headers", headers, outbox.c.headers.type),
        sa.bindparam("id", seen.id, letter.c.id.type),
    )
    connection.execute(statement)


def _unpark_at(
    connection: sa.Connection, tables: Tables, partition: int, key: str, positions: Sequence[int]
) -> int:
    blocked = tables.blocked_key
    return connection.execute(
        sa.delete(blocked).where(
            blocked.c.partition == partition,
            blocked.c.key == key,
            blocked.c.position.in_(positions),
        )
    ).rowcount


def _told(seen: DeadLetter) -> dict[str, Any]:
    return {
        "topic": seen.topic,
        "key": seen.key,
        "position": seen.position,
        "died_at": seen.died_at,
        "attempts": seen.attempts,
        "error_code": seen.error_code,
    }
