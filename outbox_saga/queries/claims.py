"""Claims of handlers whose effects are outside the database: duplicates wait, never run beside.

A claim is committed before the handler runs and removed with what it did. One whose process died
ends with its lease.
"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import insert_or_ignore
from outbox_saga.queries.inbox import Arrival, body_hash, handled_hash, waits
from outbox_saga.tables import Tables

Claimed = tuple[Arrival | Literal["busy"], int]


def take(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    owner: UUID,
    seconds: float,
    consumer: str,
    message_id: UUID,
    body: bytes,
    *,
    key: str | None,
    look_for_waiting: bool,
) -> Claimed:
    """("new", n): claimed for the n-th time, of which n-1 gave no answer that is on record;
    "busy": somebody has it.

    Nothing is claimed when the message is none to run: "repeat", "altered" and "behind" are those
    of `note_arrival`.

    Args:
        owner: Another one for each attempt, so that a late one cannot pass for the next.
    """
    claim = tables.inbox_claim
    mine = [claim.c.consumer == consumer, claim.c.message_id == message_id]
    attempts = 1
    inserted = connection.execute(
        insert_or_ignore(connection, claim).values(
            consumer=consumer,
            message_id=message_id,
            owner=owner,
            until=clock.now(seconds),
            attempts=1,
        )
    ).rowcount
    if not inserted:
        taken_over = connection.execute(
            sa.update(claim)
            .where(*mine, claim.c.until < clock.now())
            .values(owner=owner, until=clock.now(seconds), attempts=claim.c.attempts + 1)
        ).rowcount
        if not taken_over:
            return "busy", 0
        attempts = connection.execute(sa.select(claim.c.attempts).where(*mine)).scalar_one()
    # after the claim: whoever had it before has removed it together with what is looked for here
    digest = handled_hash(connection, tables, consumer, message_id)
    arrival: Arrival = "new"
    if digest is not None:
        arrival = "repeat" if digest == body_hash(body) else "altered"
    elif (
        look_for_waiting
        and connection.execute(sa.select(waits(tables, consumer, message_id, key))).scalar_one()
    ):
        arrival = "behind"
    if arrival != "new":
        release(connection, tables, owner, consumer, message_id)
        return arrival, 0
    return "new", attempts


def renew(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    owner: UUID,
    seconds: float,
    consumer: str,
    message_id: UUID,
) -> bool:
    """True: the claim is still this owner's, for another lease."""
    claim = tables.inbox_claim
    return bool(
        connection.execute(
            sa.update(claim)
            .where(
                claim.c.consumer == consumer,
                claim.c.message_id == message_id,
                claim.c.owner == owner,
            )
            .values(until=clock.now(seconds))
        ).rowcount
    )


def release(
    connection: sa.Connection, tables: Tables, owner: UUID, consumer: str, message_id: UUID
) -> bool:
    """True: the claim was still this owner's, and is gone."""
    claim = tables.inbox_claim
    return bool(
        connection.execute(
            sa.delete(claim).where(
                claim.c.consumer == consumer,
                claim.c.message_id == message_id,
                claim.c.owner == owner,
            )
        ).rowcount
    )


def told(
    connection: sa.Connection,
    tables: Tables,
    consumer: str,
    message_id: UUID,
    owner: UUID | None = None,
) -> None:
    """The times it was claimed are on record with the message: the claim counts none of them.

    It stays: who made it may still act.

    Args:
        owner: Only this one's.
    """
    claim = tables.inbox_claim
    mine = [claim.c.consumer == consumer, claim.c.message_id == message_id]
    if owner is not None:
        mine.append(claim.c.owner == owner)
    connection.execute(sa.update(claim).where(*mine).values(attempts=0))


def forget(connection: sa.Connection, tables: Tables, consumer: str, message_id: UUID) -> None:
    """Of a message that counts as handled: whoever claims it is told so, and commits nothing."""
    claim = tables.inbox_claim
    connection.execute(
        sa.delete(claim).where(claim.c.consumer == consumer, claim.c.message_id == message_id)
    )
