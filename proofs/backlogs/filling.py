"""An outbox with a backlog: ordinary logged rows, as `publish` writes them, and real indexes."""

from __future__ import annotations

import base64
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import sqlalchemy as sa

from benchmarks import databases
from outbox_saga.envelopes import Envelope
from outbox_saga.ids import new_id
from outbox_saga.tables import PARTITIONS, tables_in
from proofs.registry import say

KEYS = 2_000
TELL = 5.0  # seconds: what took longer is told of
BODY = 480  # bytes, about
KEYED = [f"account:{number}" for number in range(KEYS)]

_FILL = """
INSERT INTO {outbox} (id, partition, topic, key, headers, body, created_at)
SELECT uuidv7(), (%(partitions)s::smallint[])[drawn.n], 'orders', (%(keys)s::text[])[drawn.n],
       %(headers)s, %(body)s, clock_timestamp()
FROM (SELECT 1 + floor(random() * %(count)s)::int AS n FROM generate_series(1, %(rows)s)) AS drawn
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A database with our tables.

    Args:
        name: With the server's version.
        url: For sync engines.
    """

    name: str
    url: str

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection]:
        """Not one of ours: whoever fills, holds and counts; every statement by itself."""
        url = sa.make_url(self.url).set(drivername="postgresql")
        told = url.render_as_string(hide_password=False)
        with psycopg.connect(told, autocommit=True) as connection:
            yield connection

    def fill(self, rows: int, body: int = BODY, *, checkpoint: bool = True) -> None:
        """Only these rows are in the outbox, and the server has nothing else to do."""
        began = time.monotonic()
        with self.connect() as connection:
            connection.execute(f"TRUNCATE TABLE {outbox()}".encode())
            if rows:
                self.add(connection, rows, body)
            connection.execute(f"VACUUM ANALYZE {outbox()}".encode())
            if checkpoint:
                connection.execute("CHECKPOINT")
        if (seconds := time.monotonic() - began) > TELL:
            say(f"filled with {rows:,} rows in {seconds:.0f} s")

    def add(self, connection: psycopg.Connection, rows: int, body: int = BODY) -> None:
        """So many rows more, their keys drawn at random, so a page holds some of them twice."""
        sample = Envelope(
            id=new_id(),
            topic="orders",
            key=None,
            type="OrderPlaced",
            body=_body(body),
            correlation_id=str(new_id()),
        )
        values = {
            "partitions": [zlib.crc32(key.encode()) % PARTITIONS for key in KEYED],
            "keys": KEYED,
            "headers": sample.metadata(),
            "body": sample.body,
            "count": KEYS,
            "rows": rows,
        }
        connection.execute(_FILL.format(outbox=outbox()).encode(), values)

    def left(self) -> int:
        """Rows still in the outbox."""
        with self.connect() as connection:
            row = connection.execute(f"SELECT count(*) FROM {outbox()}".encode()).fetchone()
            return int(row[0])  # type: ignore[index]  # count(*) gives a row


def _body(size: int) -> bytes:
    """JSON of about so many bytes, which the database cannot make shorter."""
    note = base64.b64encode(os.urandom(max(0, size - 34) * 3 // 4))
    return b'{"account":1,"amount":2,"note":"' + note + b'"}'


def outbox() -> str:
    """The table's name."""
    return str(tables_in().outbox.name)


@contextmanager
def place() -> Iterator[Place]:
    """PostgreSQL 18, fsync and synchronous_commit on, and nobody else on it."""
    with databases.postgres() as found:
        yield Place(found.name, found.url)
