"""A backlog as `publish` writes it, made once, copied into the outbox before each measurement."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import sqlalchemy as sa

from benchmarks import databases
from benchmarks.measuring import say
from outbox_saga.envelopes import Envelope
from outbox_saga.ids import new_id
from outbox_saga.tables import PARTITIONS, tables_in

BODY = b'{"account":1,"amount":2,"currency":"EUR","note":"' + b"x" * 430 + b'"}'

_TABLES = """
DROP TABLE IF EXISTS bench_key, bench_backlog;
CREATE TABLE bench_key (number int PRIMARY KEY, key text, partition smallint);
CREATE TABLE bench_backlog (number bigserial PRIMARY KEY, id uuid, topic text,
    partition smallint, key text, headers text, body bytea, created_at timestamptz);
"""
# Keys come at random, so a page holds some of them twice.
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
SELECT id, partition, topic, key, headers, body, created_at FROM bench_backlog
WHERE number <= {rows} ORDER BY number
"""
_ENVELOPES = """
SELECT id, topic, key, headers, body FROM bench_backlog WHERE number <= %s ORDER BY number
"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Messages of about 500 bytes that wait in the outbox.

    Args:
        place: The database, PostgreSQL 18.
        rows: How many.
        keys: Of how many keys.
    """

    place: databases.Place
    rows: int
    keys: int

    @property
    def dsn(self) -> str:
        """For drivers that know nothing of SQLAlchemy."""
        url = sa.make_url(self.place.url).set(drivername="postgresql")
        return url.render_as_string(hide_password=False)

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection]:
        """A connection of one's own."""
        with psycopg.connect(self.dsn) as connection:
            yield connection

    def prepare(self) -> None:
        """The rows are in `bench_backlog`."""
        say(f"relay: making {self.rows:,} rows with {self.keys:,} keys")
        sample = Envelope(
            id=new_id(),
            topic="orders",
            key=None,
            type="OrderPlaced",
            body=BODY,
            correlation_id=str(new_id()),
        )
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(_TABLES)
            keys = [f"account:{number}" for number in range(self.keys)]
            cursor.executemany(
                "INSERT INTO bench_key VALUES (%s, %s, %s)",
                [(n, key, zlib.crc32(key.encode()) % PARTITIONS) for n, key in enumerate(keys)],
            )
            cursor.execute("SELECT setseed(0.5)")
            filling = {"headers": sample.metadata(), "body": sample.body, "keys": self.keys}
            cursor.execute(_FILL, {**filling, "rows": self.rows})

    def refill(self, rows: int | None = None) -> None:
        """The first rows (all) are in the outbox, and the server has nothing else to do."""
        outbox = tables_in().outbox.name
        with self.connect() as connection:
            connection.autocommit = True
            connection.execute(f"TRUNCATE TABLE {outbox}".encode())
            connection.execute(_REFILL.format(outbox=outbox, rows=rows or self.rows).encode())
            connection.execute(f"VACUUM ANALYZE {outbox}".encode())
            connection.execute("CHECKPOINT")

    def left(self) -> int:
        """Rows still in the outbox."""
        with self.connect() as connection:
            row = connection.execute(f"SELECT count(*) FROM {tables_in().outbox.name}".encode())
            return int(row.fetchone()[0])  # type: ignore[index]  # count(*) gives a row

    def envelopes(self, rows: int | None = None) -> list[Envelope]:
        """The first rows (all), as a relay would open them."""
        with self.connect() as connection:
            found = connection.execute(_ENVELOPES, (rows or self.rows,)).fetchall()
        return [Envelope.from_row(*row) for row in found]
