"""What no broker took: put back into the outbox, or given up, each by a person's decision.

A letter goes back to its own position, below every later message of its key. While its key is
parked at that position no later one has left, and none can leave before it: the row comes back and
the park ends in one transaction, so whoever reads a page sees both or neither.

Locks go in the order in which the relay takes them when it stores a failure: the partition's
lease, then the letter, the outbox, the blocked keys. One letter a transaction, because two leases
held at once could wait in a circle with a relay that renews all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from outbox_saga.decisions import Decision
from outbox_saga.envelopes import replayed
from outbox_saga.errors import SeenChanged
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dead_letters import DeadLetter, PutBack, parks_of, partition_of_key
from outbox_saga.queries.dialects import family, for_update, limit_idle_transaction
from outbox_saga.queries.operators import note_action
from outbox_saga.tables import Tables

IDLE_LIMIT = 5.0  # seconds an operator's process may stand still while it holds a relay's lease


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
    partition = partition_of_key(key)
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
    there = f"SELECT 1 FROM {preparer.format_table(outbox)} WHERE position = :position"
    source = ", ".join(":headers" if n == "headers" else q for n, q in names.items())
    # an identity column takes no position of ours otherwise, and SQLAlchemy has no word for it
    overriding = " OVERRIDING SYSTEM VALUE" if family(connection) == "postgresql" else ""
    statement = sa.text(
        f"INSERT INTO {preparer.format_table(outbox)} ({', '.join(names.values())}){overriding} "
        f"SELECT {source} FROM {preparer.format_table(letter)} WHERE id = :id"
        # two letters may have one position, as after the promotion of a standby
        f" AND NOT EXISTS ({there})"
    ).bindparams(
        sa.bindparam("headers", headers, outbox.c.headers.type),
        sa.bindparam("id", seen.id, letter.c.id.type),
        sa.bindparam("position", seen.position, outbox.c.position.type),
    )
    if not connection.execute(statement).rowcount:
        raise SeenChanged(
            f"another message waits at position {seen.position}, which dead letter {seen.id} had, "
            "too; replay this one when that one has left"
        )


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
