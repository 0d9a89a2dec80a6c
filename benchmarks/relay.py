"""Relay: how fast a backlog leaves when the broker costs nothing.

The floor is a bare psycopg script that makes the same round trips: DELETE of the page before (by
position and id), COMMIT and SELECT of the next page in one pipeline, every row looked at, nothing
else: no lease, no envelopes, no order of keys, no failures, no publisher.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import sqlalchemy as sa

from benchmarks import databases
from benchmarks.load import Watch
from benchmarks.measuring import Effort, Group, Sample, Variant, compare, say
from outbox_saga.brokers.contract import ACCEPTED, Outcome
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.ids import new_id
from outbox_saga.tables import PARTITIONS, tables_in
from outbox_saga_relay.relay import Relay

NAME = "relay"
UNIT = "rows/s"
KEYS = 2_000
BATCH = 500  # the relay's own default page
BACKLOG, QUICK_BACKLOG = 200_000, 20_000
FLOOR = "bare psycopg script"

# Rows as `publish` writes them; their keys come at random, so a page holds some of them twice.
_FILL = """
INSERT INTO bench_backlog (id, partition, topic, key, headers, body, created_at)
SELECT uuidv7(), k.partition, 'orders', k.key, %(headers)s, %(body)s, clock_timestamp()
FROM (SELECT n, floor(random() * %(keys)s)::int AS number
      FROM generate_series(1, %(rows)s) AS n) AS drawn
JOIN bench_key AS k USING (number)
ORDER BY drawn.n
"""
_REFILL = """
INSERT INTO {outbox} (id, partition, topic, key, headers, body, created_at)
SELECT id, partition, topic, key, headers, body, created_at FROM bench_backlog ORDER BY number
"""


class NoBroker:
    """A publisher that accepts everything at once and says when it has seen enough."""

    def __init__(self, enough: int) -> None:
        self.seen = 0
        self.done = asyncio.Event()
        self._enough = enough

    async def open(self) -> None:
        """Nothing to connect to."""

    async def publish(
        self,
        envelopes: Sequence[Envelope],
        settled: object = None,  # noqa: ARG002 - the seam
    ) -> Sequence[Outcome]:
        """Accepted, all of them."""
        self.seen += len(envelopes)
        if self.seen >= self._enough:
            self.done.set()
        return [ACCEPTED] * len(envelopes)

    async def close(self) -> None:
        """Nothing to disconnect."""


@dataclass(frozen=True, slots=True)
class _Backlog:
    place: databases.Place
    rows: int

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection]:
        url = sa.make_url(self.place.url).set(drivername="postgresql")
        with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
            yield connection

    def prepare(self) -> None:
        """The rows, made once and copied into the outbox before each measurement."""
        say(f"relay: making {self.rows:,} rows with {KEYS:,} keys")
        sample = Envelope(
            id=new_id(),
            topic="orders",
            key=None,
            type="OrderPlaced",
            body=b'{"account":1,"amount":2,"currency":"EUR","note":"' + b"x" * 430 + b'"}',
            correlation_id=str(new_id()),
        )
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(
                "CREATE TABLE bench_key (number int PRIMARY KEY, key text, partition smallint);"
                "CREATE TABLE bench_backlog (number bigserial PRIMARY KEY, id uuid, topic text,"
                " partition smallint, key text, headers text, body bytea, created_at timestamptz)"
            )
            keys = [f"account:{number}" for number in range(KEYS)]
            cursor.executemany(
                "INSERT INTO bench_key VALUES (%s, %s, %s)",
                [(n, key, zlib.crc32(key.encode()) % PARTITIONS) for n, key in enumerate(keys)],
            )
            cursor.execute("SELECT setseed(0.5)")
            filling = {"headers": sample.metadata(), "body": sample.body, "keys": KEYS}
            cursor.execute(_FILL, {**filling, "rows": self.rows})

    def refill(self) -> None:
        """The whole backlog is in the outbox, and the server has nothing else to do."""
        outbox = tables_in().outbox.name
        with self.connect() as connection:
            connection.autocommit = True
            connection.execute(f"TRUNCATE TABLE {outbox}".encode())
            connection.execute(_REFILL.format(outbox=outbox).encode())
            connection.execute(f"VACUUM ANALYZE {outbox}".encode())
            connection.execute("CHECKPOINT")

    def left(self) -> int:
        """Rows still in the outbox."""
        with self.connect() as connection:
            row = connection.execute(f"SELECT count(*) FROM {tables_in().outbox.name}".encode())
            return int(row.fetchone()[0])  # type: ignore[index]  # count(*) gives a row


Drain = Callable[[_Backlog], None]


def measure(effort: Effort) -> Iterator[Group]:
    """The backlog against the driver's floor, on PostgreSQL."""
    with databases.postgres() as place:
        backlog = _Backlog(place, QUICK_BACKLOG if effort.quick else BACKLOG)
        backlog.prepare()
        setting = f"{place.name}, backlog {backlog.rows:,}, {KEYS:,} keys, pages of {BATCH}"
        variants = [
            Variant(FLOOR, lambda: _measured(backlog, _floor)),
            Variant("Relay, no-op publisher", lambda: _measured(backlog, _relay), FLOOR),
        ]
        yield compare(NAME, setting, UNIT, variants, effort)


def _measured(backlog: _Backlog, drain: Drain) -> Sample:
    backlog.refill()
    with Watch() as watch:
        cpu, began = time.process_time(), time.monotonic()
        drain(backlog)
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    if left := backlog.left():
        raise RuntimeError(f"{left} of {backlog.rows} rows were not published")
    return Sample(backlog.rows, seconds, cpu, watch.ours, watch.foreign)


def _floor(backlog: _Backlog) -> None:
    outbox = tables_in().outbox.name
    select = (
        f"SELECT position, id, partition, topic, key, headers, body FROM {outbox} "
        "ORDER BY position LIMIT %s"
    ).encode()
    delete = f"DELETE FROM {outbox} WHERE position = ANY(%s) AND id = ANY(%s)".encode()
    with backlog.connect() as connection, connection.cursor(binary=True) as cursor:
        connection.autocommit = True  # the pipeline says BEGIN and COMMIT itself
        seen = 0
        rows = cursor.execute(select, (BATCH,)).fetchall()
        while rows:
            positions, ids = [row[0] for row in rows], [row[1] for row in rows]
            for _ in rows:
                seen += 1
            with connection.pipeline():
                cursor.execute("BEGIN")
                cursor.execute(delete, (positions, ids))
                cursor.execute("COMMIT")
                cursor.execute(select, (BATCH,))
                rows = _last_result(cursor)
    assert seen == backlog.rows


def _last_result(cursor: psycopg.Cursor) -> list[tuple[object, ...]]:
    """In a pipeline a cursor stands at its first answer; the page is the last."""
    while cursor.nextset():
        pass
    return cursor.fetchall()


def _relay(backlog: _Backlog) -> None:
    async def drain() -> None:
        database = Database(backlog.place.url, pool_size=2)
        broker = NoBroker(backlog.rows)
        await Relay(database, broker, page_rows=BATCH).run(broker.done)
        await database.close()

    asyncio.run(drain())
