"""What becomes of rows that the broker did not take: their keys wait, or they are dead letters.

Many in few statements: a thousand that fail at once must not keep those waiting that do not.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.payloads import storable
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import delete_among, for_update
from outbox_saga.queries.outbox_rows import UnreadableRow, same_id
from outbox_saga.queries.relay import Failed, OutboxRow, delete_published
from outbox_saga.queries.stored import as_stored
from outbox_saga.tables import Tables

MAX_ERROR = 2000  # characters of an error that are kept


def store_failures(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    failures: Sequence[tuple[Failed, int]],
) -> list[Failed]:
    """Those that were stored; whatever is in the outbox no more was published or buried before.

    Each with the number of its failed attempts. In this transaction, which holds the lease.
    """
    written_at = _in_outbox(connection, tables, clock, [failed.row for failed, _ in failures])
    there = [pair for pair in failures if pair[0].row.id in written_at]
    if not there:
        return []
    unblock(connection, tables, [failed.row for failed, _ in there])
    blocking = [pair for pair in there if pair[0].blocks]
    _block(connection, tables, clock, blocking)
    _bury(connection, tables, clock, [p for p in there if p[0].delay is None], written_at)
    return [failed for failed, _ in there]


def unblock(connection: sa.Connection, tables: Tables, rows: Sequence[OutboxRow]) -> None:
    """The keys of these rows no longer wait for them."""
    if rows:
        connection.execute(
            delete_among(
                connection,
                tables.blocked_key,
                partition=sorted({row.partition for row in rows}),
                key=sorted({row.key or "" for row in rows}),
                position=[row.position for row in rows],
            )
        )


def _in_outbox(
    connection: sa.Connection, tables: Tables, clock: Clock, rows: Sequence[OutboxRow]
) -> dict[UUID, dt.datetime]:
    """When these were written, by id, of those that are still there: position AND id.

    They are locked, because an owner before us may remove one at any moment: it would count as
    published, and be a dead letter all the same, for which its key is parked.
    """
    unreadable = [row for row in rows if isinstance(row, UnreadableRow)]
    if unreadable:
        rows = [row for row in rows if not isinstance(row, UnreadableRow)]
        there = _unreadable_in_outbox(connection, tables, clock, unreadable)
        return there | (_in_outbox(connection, tables, clock, rows) if rows else {})
    outbox, ids = tables.outbox, {row.position: row.id for row in rows}
    asked = sa.select(outbox.c.position, outbox.c.id, outbox.c.created_at)
    for name in ("mysql", "mariadb"):
        # one that scans waits for every row that somebody has not committed yet
        asked = asked.with_hint(outbox, "FORCE INDEX (PRIMARY)", name)
    asked = asked.where(outbox.c.position.in_(list(ids))).order_by(outbox.c.position)
    found = connection.execute(for_update(connection, asked)).all()
    return {row.id: row.created_at for row in found if ids[row.position] == row.id}


def _unreadable_in_outbox(
    connection: sa.Connection, tables: Tables, clock: Clock, rows: Sequence[UnreadableRow]
) -> dict[UUID, dt.datetime]:
    """As `_in_outbox`, of rows whose ids may be none: those count as written now."""
    outbox, stored = tables.outbox, {row.position: row for row in rows}
    asked = sa.select(outbox.c.position, as_stored(connection, outbox.c.id).label("id"))
    for name in ("mysql", "mariadb"):
        asked = asked.with_hint(outbox, "FORCE INDEX (PRIMARY)", name)
    asked = asked.where(outbox.c.position.in_(list(stored))).order_by(outbox.c.position)
    found: Sequence[Any] = connection.execute(for_update(connection, asked)).all()
    now: dt.datetime = connection.execute(sa.select(clock.now())).scalar_one()
    same = [
        stored[position] for position, id_ in found if same_id(stored[position].stored_id, id_)
    ]
    return {row.id: now for row in same}


def _block(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    failures: Sequence[tuple[Failed, int]],
) -> None:
    """Their keys wait for them, or are parked; later ones of the key stay where they are."""
    parked = [_blocked(f, n) for f, n in failures if f.delay is None]
    waiting = [
        _blocked(f, n) | {"wait": clock.microseconds(f.delay)}
        for f, n in failures
        if f.delay is not None
    ]
    if parked:
        connection.execute(sa.insert(tables.blocked_key).values(until=None), parked)
    if waiting:
        until = clock.now_plus("wait")
        connection.execute(sa.insert(tables.blocked_key).values(until=until), waiting)


def _blocked(failed: Failed, attempts: int) -> dict[str, Any]:
    return {
        "partition": failed.row.partition,
        "key": failed.row.key or "",
        "position": failed.row.position,
        "attempts": attempts,
        "error_code": failed.code,
        "error": storable(failed.error, MAX_ERROR),
    }


def _bury(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    failures: Sequence[tuple[Failed, int]],
    written_at: dict[UUID, dt.datetime],
) -> None:
    """They become dead letters with everything they had, and leave the outbox."""
    if not failures:
        return
    connection.execute(
        sa.insert(tables.dead_letter).values(died_at=clock.now()),
        [
            failed.row._asdict()
            | {
                "created_at": written_at[failed.row.id],
                "attempts": attempts,
                "error_code": failed.code,
                "error": storable(failed.error, MAX_ERROR),
                "error_class": failed.error_class,
            }
            for failed, attempts in failures
        ],
    )
    delete_published(connection, tables, [failed.row for failed, _ in failures])
