"""What came back for a request: one row, written when the answer comes.

An answer stays as it is. That a handler had given up is no answer, and is replaced by one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import insert_or_ignore
from outbox_saga.tables import Tables

Outcome = Literal["done", "refused", "faulted"]


class Replied(NamedTuple):
    """What came back; `answer` is JSON."""

    outcome: Outcome
    answer: str


def note(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    request: UUID,
    outcome: Outcome,
    answer: str,
) -> None:
    """This came back, unless an answer has come before."""
    reply = tables.reply
    values = {"outcome": outcome, "answer": answer, "answered_at": clock.now()}
    first = insert_or_ignore(connection, reply).values(request_id=request, **values)
    if not connection.execute(first).rowcount and outcome != "faulted":
        given_up = (reply.c.request_id == request, reply.c.outcome == "faulted")
        connection.execute(sa.update(reply).where(*given_up).values(**values))


def read(connection: sa.Connection, tables: Tables, request: UUID) -> Replied | None:
    """What came back so far; None: nothing."""
    reply = tables.reply
    row = connection.execute(
        sa.select(reply.c.outcome, reply.c.answer).where(reply.c.request_id == request)
    ).first()
    return None if row is None else Replied(row.outcome, row.answer)
