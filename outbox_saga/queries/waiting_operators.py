"""What operators see of waiting messages, and what they may do with them."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.queries import claims
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import for_update, insert_or_ignore
from outbox_saga.queries.inbox import body_hash
from outbox_saga.queries.waiting import ASLEEP, HELD_KEY, Delivered, lock_key, wake
from outbox_saga.tables import Tables

State = Literal["due", "behind", "dead"]


@dataclass(frozen=True, slots=True)
class WaitingMessage:
    """One message that waits for its handler, as it was when somebody looked.

    Args:
        position: Its place; also how operators name it.
        key: Its own key.
        holds_up_key: Whether later messages of that key wait because of it.
        state: "due" at `until`; "behind" an earlier one of its key; "dead" until somebody decides.
        failed_at: None when it has only stood behind another.
        being_handled: Whether some process has it in hand now.
        headers: As they are kept, JSON; only when one message was asked for.
        body: Only when one message was asked for.
    """

    position: int
    consumer: str
    message_id: UUID
    topic: str
    key: str | None
    holds_up_key: bool
    state: State
    arrived_at: dt.datetime
    until: dt.datetime | None
    failed_at: dt.datetime | None
    attempts: int
    error_code: str
    error: str
    error_class: str | None
    trace: str | None
    being_handled: bool
    headers: str | None = None
    body: bytes | None = None

    @property
    def version(self) -> str:
        """What changes whenever an attempt, or a person, changes what an action is about: one
        that names it acts on this, or not.
        """
        return f"{self.attempts}-{'dead' if self.state == 'dead' else 'waits'}"


def list_waiting(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    *,
    consumer: str | None = None,
    key: str | None = None,
    state: State | None = None,
    after: int = 0,
    limit: int = 100,
) -> list[WaitingMessage]:
    """Waiting messages in the order of their places, without their bodies.

    Args:
        key: Those that stand in this key's queue; a dead letter that holds up nothing does not.
        after: The last place of the page before.
        limit: Messages.
    """
    waiting = tables.inbox_waiting
    statement = _look(tables, clock).where(waiting.c.position > after)
    if consumer is not None:
        statement = statement.where(waiting.c.consumer == consumer)
    if key is not None:
        statement = statement.where(waiting.c.key == key)
    if state == "dead":
        statement = statement.where(waiting.c.until.is_(None))
    elif state == "behind":
        statement = statement.where(waiting.c.until == ASLEEP)
    elif state == "due":
        statement = statement.where(waiting.c.until < ASLEEP)
    rows = connection.execute(statement.order_by(waiting.c.position).limit(limit))
    return [_seen(row) for row in rows]


def read_waiting(
    connection: sa.Connection, tables: Tables, clock: Clock, position: int
) -> WaitingMessage | None:
    """The message at this place, with headers and body; None when there is none any more."""
    waiting = tables.inbox_waiting
    row = connection.execute(
        _look(tables, clock).add_columns(waiting.c.body).where(waiting.c.position == position)
    ).one_or_none()
    return None if row is None else _seen(row, row.headers, row.body)


def retry_now(
    connection: sa.Connection, tables: Tables, clock: Clock, seen: WaitingMessage
) -> bool:
    """True: it gets one more attempt now, or as soon as those before it in its key are gone.

    False: it is not as it was seen, or is being handled; nothing was changed.
    """
    waiting = tables.inbox_waiting
    _lock(connection, tables, seen)
    if _still(connection, tables, clock, seen) is None:
        return False
    ahead = seen.holds_up_key and bool(
        connection.execute(
            sa.select(sa.literal(1))
            .where(
                waiting.c.consumer == seen.consumer,
                waiting.c.key == seen.key,
                waiting.c.position < seen.position,
            )
            .limit(1)
        ).first()
    )
    connection.execute(
        sa.update(waiting)
        .where(waiting.c.position == seen.position)
        .values(until=ASLEEP if ahead else clock.now(), owner=None, lease_until=None)
    )
    return True


def discard(
    connection: sa.Connection, tables: Tables, clock: Clock, seen: WaitingMessage
) -> Delivered | None:
    """It is gone, counts as handled when it is delivered again, and its key goes on.

    None: it is not as it was seen, or is being handled; nothing was changed.
    """
    waiting = tables.inbox_waiting
    _lock(connection, tables, seen)
    row = _still(connection, tables, clock, seen)
    if row is None:
        return None
    connection.execute(
        insert_or_ignore(connection, tables.inbox).values(
            consumer=seen.consumer,
            message_id=seen.message_id,
            body_hash=body_hash(row.body),
            handled_at=clock.now(),
        )
    )
    connection.execute(sa.delete(waiting).where(waiting.c.position == seen.position))
    claims.forget(connection, tables, seen.consumer, seen.message_id)
    if seen.holds_up_key and seen.key is not None:
        wake(connection, tables, clock, seen.consumer, seen.key)
    return Delivered(seen.consumer, seen.message_id, seen.topic, row.key, row.headers, row.body)


def _look(tables: Tables, clock: Clock) -> sa.Select[Any]:
    waiting = tables.inbox_waiting
    left_out = {"body", "owner", "lease_until"}
    columns = (c for c in waiting.c if c.name not in left_out)
    return sa.select(*columns, (waiting.c.lease_until > clock.now()).label("leased"))


def _seen(row: Any, headers: str | None = None, body: bytes | None = None) -> WaitingMessage:
    state: State = "due"
    if row.until is None:
        state = "dead"
    elif row.until == ASLEEP:
        state = "behind"
    return WaitingMessage(
        position=row.position,
        consumer=row.consumer,
        message_id=row.message_id,
        topic=row.topic,
        key=row.key if row.key is not None else json.loads(row.headers).get(HELD_KEY),
        holds_up_key=row.key is not None,
        state=state,
        arrived_at=row.arrived_at,
        until=row.until if state == "due" else None,
        failed_at=row.failed_at,
        attempts=row.attempts,
        error_code=row.error_code,
        error=row.error,
        error_class=row.error_class,
        trace=row.trace,
        being_handled=bool(row.leased),
        headers=headers,
        body=body,
    )


def _lock(connection: sa.Connection, tables: Tables, seen: WaitingMessage) -> None:
    if seen.holds_up_key and seen.key is not None:
        lock_key(connection, tables, seen.consumer, seen.key)


def _still(connection: sa.Connection, tables: Tables, clock: Clock, seen: WaitingMessage) -> Any:
    """Its row, if it is as it was seen and in nobody's hands; locked until the end."""
    waiting = tables.inbox_waiting
    row = connection.execute(
        for_update(
            connection,
            sa.select(
                waiting.c.body,
                waiting.c.headers,
                waiting.c.key,
                waiting.c.attempts,
                waiting.c.until,
                (waiting.c.lease_until > clock.now()).label("leased"),
            ).where(
                waiting.c.position == seen.position,
                waiting.c.message_id == seen.message_id,
                waiting.c.consumer == seen.consumer,
            ),
        )
    ).one_or_none()
    if (
        row is None
        or row.leased
        or row.attempts != seen.attempts
        or (row.until is None) != (seen.state == "dead")
        or (row.key is not None) != seen.holds_up_key
    ):
        return None
    return row
