"""The inbox row: the first statement of a handler's transaction."""

from __future__ import annotations

import hashlib
from typing import Literal
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import insert_or_ignore
from outbox_saga.tables import Tables

Arrival = Literal["new", "repeat", "altered"]


def body_hash(body: bytes) -> bytes:
    """SHA-256 of the body: the same id with another body is a bug or an attack, not a repeat."""
    return hashlib.sha256(body).digest()


def note_arrival(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    consumer: str,
    message_id: UUID,
    digest: bytes,
) -> Arrival:
    """Answers "new" for exactly one transaction per (consumer, id).

    A second one waits here until the first has ended.

    Inserting first and looking at the row count is what makes it so; reading first ran effects
    twice in 22 of 34 schedules.
    """
    inserted = connection.execute(
        insert_or_ignore(connection, tables.inbox).values(
            consumer=consumer, message_id=message_id, body_hash=digest, handled_at=clock.now()
        )
    ).rowcount
    if inserted:
        return "new"
    seen = connection.execute(
        sa.select(tables.inbox.c.body_hash).where(
            tables.inbox.c.consumer == consumer, tables.inbox.c.message_id == message_id
        )
    ).scalar_one_or_none()
    return "repeat" if seen == digest else "altered"
