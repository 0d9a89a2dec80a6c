"""Relay: how fast a backlog leaves when the broker costs nothing.

The floor is a bare psycopg script that makes the same round trips: DELETE of the page before (by
position and id), COMMIT and SELECT of the next page in one pipeline, every row looked at, nothing
else: no lease, no envelopes, no order of keys, no failures, no publisher.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from functools import partial

import psycopg

from benchmarks import databases
from benchmarks.backlog import Backlog
from benchmarks.load import Watch
from benchmarks.measuring import Effort, Group, Sample, Variant, compare
from benchmarks.publishers import NoBroker
from outbox_saga.database import Database
from outbox_saga.tables import tables_in
from outbox_saga_relay.relay import Relay

NAME = "relay"
UNIT = "rows/s"
KEYS = 2_000
BATCH = 500  # the relay's own default page
BACKLOG, QUICK_BACKLOG = 200_000, 20_000
FLOOR = "bare psycopg script"
OURS = "Relay, no-op publisher"

Drain = Callable[[Backlog], None]


def measure(effort: Effort) -> Iterator[Group]:
    """The backlog against the driver's floor, on PostgreSQL."""
    with databases.postgres() as place:
        backlog = Backlog(place, QUICK_BACKLOG if effort.quick else BACKLOG, KEYS)
        backlog.prepare()
        setting = f"{place.name}, backlog {backlog.rows:,}, {KEYS:,} keys, pages of {BATCH}"
        yield compare(NAME, setting, UNIT, against_the_floor(backlog), effort)


def against_the_floor(backlog: Backlog, batch: int = BATCH) -> list[Variant]:
    """The driver's floor and the relay, with pages of the same size."""
    return [
        Variant(FLOOR, lambda: drained(backlog, partial(_floor, batch=batch))),
        Variant(OURS, lambda: drained(backlog, partial(no_op, page_rows=batch)), FLOOR),
    ]


def drained(backlog: Backlog, drain: Drain) -> Sample:
    """The whole backlog, once."""
    backlog.refill()
    gc.collect()
    gc.freeze()  # as `outbox-saga relay` does before it starts; for the floor, too
    with Watch() as watch:
        cpu, began = time.process_time(), time.monotonic()
        drain(backlog)
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    gc.unfreeze()
    if left := backlog.left():
        raise RuntimeError(f"{left} of {backlog.rows} rows were not published")
    return Sample(backlog.rows, seconds, cpu, watch.ours, watch.foreign)


def relayed(backlog: Backlog, broker: Callable[[int], NoBroker], page_rows: int = BATCH) -> None:
    """By the relay, to the broker that says when it has seen them all."""

    async def drain() -> None:
        database, publisher = Database(backlog.place.url, pool_size=2), broker(backlog.rows)
        await Relay(database, publisher, page_rows=page_rows).run(publisher.done)
        await database.close()

    asyncio.run(drain())


def no_op(backlog: Backlog, page_rows: int = BATCH) -> None:
    """By the relay, to a broker that costs nothing."""
    relayed(backlog, NoBroker, page_rows)


def _floor(backlog: Backlog, batch: int) -> None:
    outbox = tables_in().outbox.name
    select = (
        f"SELECT position, id, partition, topic, key, headers, body FROM {outbox} "
        "ORDER BY position LIMIT %s"
    ).encode()
    delete = f"DELETE FROM {outbox} WHERE position = ANY(%s) AND id = ANY(%s)".encode()
    with backlog.connect() as connection, connection.cursor(binary=True) as cursor:
        connection.autocommit = True  # the pipeline says BEGIN and COMMIT itself
        seen = 0
        rows = cursor.execute(select, (batch,)).fetchall()
        while rows:
            positions, ids = [row[0] for row in rows], [row[1] for row in rows]
            for _ in rows:
                seen += 1
            with connection.pipeline():
                cursor.execute("BEGIN")
                cursor.execute(delete, (positions, ids))
                cursor.execute("COMMIT")
                cursor.execute(select, (batch,))
                rows = _last_result(cursor)
    assert seen == backlog.rows


def _last_result(cursor: psycopg.Cursor) -> list[tuple[object, ...]]:
    """In a pipeline a cursor stands at its first answer; the page is the last."""
    while cursor.nextset():
        pass
    return cursor.fetchall()
