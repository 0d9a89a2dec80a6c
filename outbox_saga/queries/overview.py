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
    """What waits for one consumer's handlers.

    Args:
        again: Failed, and are tried again.
        behind: Stand behind another message of their key.
        dead: Wait for a person.
    """

    consumer: str
    again: int
    behind: int
    dead: int


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
    table = tables.inbox_waiting
    some = sa.select(table.c.consumer, table.c.until).limit(COUNTED).subquery()

    def rows_where(condition: Any) -> Any:
        return sa.func.sum(sa.case((condition, 1), else_=0))

    found = connection.execute(
        sa.select(
            some.c.consumer,
            rows_where(some.c.until < ASLEEP),
            rows_where(some.c.until >= ASLEEP),
            rows_where(some.c.until.is_(None)),
        )
        .group_by(some.c.consumer)
        .order_by(some.c.consumer)
    )
    return tuple(Handling(consumer, *map(int, counts)) for consumer, *counts in found)


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
