"""What waits, for whom, and who is at work: numbers and names, never what a message says."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from outbox_saga.queries.clock import Clock
from outbox_saga.queries.waiting import ASLEEP
from outbox_saga.tables import Tables

COUNTED = 100_000  # rows; counting millions of them would be a load of its own


@dataclass(frozen=True, slots=True)
class Count:
    """Rows of a table; where there are `more`, counting stopped there."""

    rows: int
    more: bool = False


@dataclass(frozen=True, slots=True)
class Handling:
    """What waits for one consumer's handlers; `more` says that there may be.

    Args:
        again: Failed, and are tried again.
        behind: Stand behind another message of their key.
        dead: Wait for a person.
    """

    consumer: str
    again: Count
    behind: Count
    dead: Count


@dataclass(frozen=True, slots=True)
class Working:
    """One process, as it told of itself.

    Args:
        alive: Its lease has not ended; a process that has ended in good order is not listed.
        seen: Seconds since it last said so.
        detail: Of a relay its counters, its partitions, the age of the oldest pending message,
            and who holds its low-water mark.
    """

    kind: str
    service: str
    host: str
    pid: int
    alive: bool
    seen: float
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Overview:
    """One moment.

    Args:
        first_waits: Seconds since the first message in the outbox was written; None: it is empty.
        due: Delayed messages whose time has come, and which are not in the outbox yet.
        retried_keys: Keys that wait for another attempt.
        parked_keys: Keys that wait for a person.
    """

    outbox: Count
    first_waits: float | None
    delayed: Count
    due: Count
    retried_keys: Count
    parked_keys: Count
    dead_letters: Count
    handling: tuple[Handling, ...]
    processes: tuple[Working, ...]


def overview(connection: sa.Connection, tables: Tables, clock: Clock) -> Overview:
    """Everything as of now; it reads at most `COUNTED` rows of a table."""
    outbox, delayed, blocked = tables.outbox, tables.delayed, tables.blocked_key
    now = clock.read(connection)
    first = connection.scalar(sa.select(outbox.c.created_at).order_by(outbox.c.position).limit(1))
    return Overview(
        outbox=_count(connection, outbox),
        first_waits=None if first is None else _since(first, now),
        delayed=_count(connection, delayed),
        due=_count(connection, delayed, delayed.c.due_at <= clock.now()),
        retried_keys=_count(connection, blocked, blocked.c.until.is_not(None)),
        parked_keys=_count(connection, blocked, blocked.c.until.is_(None)),
        dead_letters=_count(connection, tables.dead_letter),
        handling=_handling(connection, tables),
        processes=_processes(connection, tables, now),
    )


def _since(moment: dt.datetime, now: dt.datetime) -> float:
    return max(0.0, (now - moment).total_seconds())


def _count(connection: sa.Connection, table: sa.Table, *where: Any) -> Count:
    some = sa.select(sa.literal(1).label("one")).select_from(table).where(*where)
    counted = some.limit(COUNTED + 1).subquery()
    found = connection.execute(sa.select(sa.func.count()).select_from(counted)).scalar_one()
    return Count(min(found, COUNTED), more=found > COUNTED)


def _handling(connection: sa.Connection, tables: Tables) -> tuple[Handling, ...]:
    until = tables.inbox_waiting.c.until
    # each by itself: a million of one kind must not hide the others
    states = until < ASLEEP, until >= ASLEEP, until.is_(None)
    counts = [_by_consumer(connection, tables, state) for state in states]
    consumers = sorted(set[str]().union(*(found for found, _ in counts)))
    return tuple(
        Handling(consumer, *(Count(found.get(consumer, 0), more) for found, more in counts))
        for consumer in consumers
    )


def _by_consumer(
    connection: sa.Connection, tables: Tables, state: Any
) -> tuple[dict[str, int], bool]:
    """How many in this state each consumer has; whether there are more than were counted."""
    consumer = tables.inbox_waiting.c.consumer
    some = sa.select(consumer).where(state).limit(COUNTED + 1).subquery()
    rows = connection.execute(
        sa.select(some.c.consumer, sa.func.count()).group_by(some.c.consumer)
    ).all()
    found: dict[str, int] = {row[0]: row[1] for row in rows}
    return found, sum(found.values()) > COUNTED


def _processes(connection: sa.Connection, tables: Tables, now: dt.datetime) -> tuple[Working, ...]:
    table = tables.process
    found = connection.execute(
        sa.select(table).order_by(table.c.kind, table.c.service, table.c.started_at)
    )
    return tuple(
        Working(
            row.kind,
            row.service,
            row.host,
            row.pid,
            alive=row.until > now,
            seen=_since(row.seen_at, now),
            detail=json.loads(row.detail),
        )
        for row in found
    )
