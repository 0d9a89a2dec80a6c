"""What operators did, and why: written with the action, in its transaction, and never changed."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.decisions import Decision
from outbox_saga.ids import new_id
from outbox_saga.queries.clock import Clock
from outbox_saga.tables import Tables


@dataclass(frozen=True, slots=True)
class Noted:
    """One action of an operator.

    Args:
        action: What was done, as in `dead_letter.replay`.
        subject: To what, as in `message 0190…`.
        detail: What the row was before, and what came of it; never a payload.
    """

    id: UUID
    at: dt.datetime
    operator: str
    action: str
    subject: str
    reason: str
    detail: Mapping[str, Any]


def note_action(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    decision: Decision,
    action: str,
    subject: str,
    detail: Mapping[str, Any],
) -> None:
    """The action is on record if, and only if, this transaction commits.

    Args:
        subject: At most 255 bytes: an id, or a place; a key goes into the detail.
        detail: JSON; never a payload.
    """
    connection.execute(
        sa.insert(tables.operator_action).values(
            id=new_id(),
            at=clock.now(),
            operator=decision.operator,
            action=action,
            subject=subject,
            reason=decision.reason,
            detail=json.dumps(detail, default=str),
        )
    )


def was_done(
    connection: sa.Connection, tables: Tables, action: str, since: dt.datetime | None
) -> bool:
    """Whether this action is on record, of this moment or later."""
    noted = tables.operator_action
    found = sa.select(sa.literal(1)).where(noted.c.action == action).limit(1)
    if since is not None:
        found = found.where(noted.c.at >= since)
    return connection.execute(found).first() is not None


def noted_actions(
    connection: sa.Connection, tables: Tables, *, before: Noted | None = None, limit: int = 100
) -> list[Noted]:
    """The latest actions, newest first.

    Args:
        before: The last one that was read: those before it.
    """
    action = tables.operator_action
    statement = sa.select(action).order_by(action.c.at.desc(), action.c.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(
            sa.or_(
                action.c.at < before.at,
                sa.and_(action.c.at == before.at, action.c.id < before.id),
            )
        )
    return [
        Noted(r.id, r.at, r.operator, r.action, r.subject, r.reason, json.loads(r.detail))
        for r in connection.execute(statement)
    ]
