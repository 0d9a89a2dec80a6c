"""How much waits in the outbox, counted no further than anybody asks."""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass

import sqlalchemy as sa

from outbox_saga.tables import Tables

LOOK = 1.0  # seconds for which one count serves every transaction of a process


@dataclass(slots=True)
class _Counted:
    at: float
    limit: int
    found: int


_lock = threading.Lock()
_counts: weakref.WeakKeyDictionary[sa.Engine, dict[str | None, _Counted]] = (
    weakref.WeakKeyDictionary()
)


def pending_up_to(connection: sa.Connection, tables: Tables, limit: int) -> int:
    """How many messages wait in the outbox, delayed ones not among them; at most `limit`."""
    some = sa.select(sa.literal(1)).select_from(tables.outbox).limit(limit).subquery()
    return connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()


def backlog_reaches(connection: sa.Connection, tables: Tables, limit: int) -> bool:
    """Whether so many messages wait in the outbox, as of at most a second ago.

    A soft limit: transactions that commit within the same second do not see each other's
    messages. One count a second and process, because it reads up to `limit` rows.
    """
    now = time.monotonic()
    with _lock:
        known = _counts.setdefault(connection.engine, {}).get(tables.schema)
        if known is not None and known.limit >= limit and now - known.at < LOOK:
            return known.found >= limit
    found = pending_up_to(connection, tables, limit)
    with _lock:
        _counts[connection.engine][tables.schema] = _Counted(now, limit, found)
    return found >= limit
