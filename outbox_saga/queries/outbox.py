"""Writing messages.

One multi-row statement, after the locks of their keys, as the last locks of the transaction.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.envelopes import Envelope
from outbox_saga.queries.dialects import family
from outbox_saga.tables import KEY_LOCKS, PARTITIONS, Tables

CHUNK = 1000  # rows a statement; SQLite allows 32,766 parameters and we use 6 a row
CHUNK_BYTES = (
    4 * 1024 * 1024
)  # bodies a statement; MariaDB takes packets of 16 MiB, escaping may double a body


WROTE = "outbox_saga.wrote"  # in a connection's info: it has published since it left the pool


def lock_number(key: str) -> int:
    """Which of the 1,024 key locks.

    Without the modulo one transaction could exhaust the server's lock table.
    """
    return zlib.crc32(key.encode("utf-8")) % KEY_LOCKS


def partition_of(key: str | None, id_: UUID) -> int:
    """Which of the 64 partitions; a message without a key goes by its id."""
    return zlib.crc32(key.encode("utf-8") if key is not None else id_.bytes) % PARTITIONS


def lock_class(connection: sa.Connection, tables: Tables) -> str:
    """SQL for the advisory lock class of this outbox's keys (PostgreSQL): its table's oid.

    One outbox has one class by whatever name it is reached, and two outboxes of one database do
    not wait for each other.
    """
    outbox = connection.dialect.identifier_preparer.format_table(tables.outbox)
    name = outbox.replace("'", "''").replace(":", r"\:")
    return f"CAST(CAST(CAST('{name}' AS regclass) AS oid) AS int)"


def write_messages(
    connection: sa.Connection,
    tables: Tables,
    envelopes: Sequence[Envelope],
    *,
    key_locks: bool = True,
) -> None:
    """All of these messages, or an error.

    Inserted in this order, once the locks of all their keys are held.

    The locks are held until the transaction ends, so what is visible of a key is always a prefix
    of it.

    Args:
        connection: In the transaction that is about to commit.
        tables: Where.
        envelopes: At least one.
        key_locks: False only in tests that show what the lock is for.
    """
    keys = {e.key for e in envelopes if e.key is not None} if key_locks else set()
    # distinct and sorted: every transaction takes them in one order, so none waits in a circle
    numbers = sorted({lock_number(key) for key in keys})
    write = {"postgresql": _write_postgresql, "mysql": _write_mysql, "sqlite": _write_sqlite}[
        family(connection)
    ]
    for chunk in _chunks(envelopes):
        write(connection, tables, chunk, numbers)
        numbers = []
    connection.info[WROTE] = (connection.engine, tables.schema)


def _chunks(envelopes: Sequence[Envelope]) -> Iterator[Sequence[Envelope]]:
    start = size = 0
    for end, envelope in enumerate(envelopes):
        size += len(envelope.body)
        if end > start and (end - start == CHUNK or size > CHUNK_BYTES):
            yield envelopes[start:end]
            start, size = end, len(envelope.body)
    yield envelopes[start:]


# The CTE must be consumed by an aggregate: unreferenced it takes no lock at all, and under EXISTS
# one of many. Without ORDER BY the rows may be inserted before their order is known. The
# transaction id is taken before any position is, so that a reader of pg_snapshot_xmin can tell
# whether a lower position may still appear.
_POSTGRESQL = """
WITH locks AS MATERIALIZED (
  SELECT pg_current_xact_id(){lock} FROM unnest(CAST(:numbers AS int[])) AS number
)
INSERT INTO {outbox} (id, partition, topic, key, headers, body, created_at)
SELECT m.id, m.partition, m.topic, m.key, m.headers, m.body, clock_timestamp()
FROM unnest(
  CAST(:ids AS uuid[]), CAST(:partitions AS smallint[]), CAST(:topics AS text[]),
  CAST(:keys AS text[]), CAST(:headers AS text[]), CAST(:bodies AS bytea[])
) WITH ORDINALITY AS m(id, partition, topic, key, headers, body, ordinal)
WHERE (SELECT count(*) FROM locks) >= 0
ORDER BY m.ordinal
"""

_compiled: dict[tuple[Any, ...], tuple[str, tuple[str, ...] | None]] = {}
_compiling = threading.Lock()


def _driver_sql(
    connection: sa.Connection, tables: Tables, *, locked: bool
) -> tuple[str, tuple[str, ...] | None]:
    """The statement in the driver's own parameter style.

    Compiled once, because SQLAlchemy's path costs a tenth.
    """
    dialect = connection.dialect
    cache_key = (dialect.driver, dialect.paramstyle, tables.schema, locked)
    found = _compiled.get(cache_key)
    if found is None:
        outbox = dialect.identifier_preparer.format_table(tables.outbox)
        lock = (
            f", pg_advisory_xact_lock({lock_class(connection, tables)}, number)" if locked else ""
        )
        compiled = sa.text(_POSTGRESQL.format(outbox=outbox, lock=lock)).compile(dialect=dialect)
        order: Any = getattr(compiled, "positiontup", None)
        with _compiling:
            found = _compiled[cache_key] = (str(compiled), tuple(order) if order else None)
    return found


def _write_postgresql(
    connection: sa.Connection, tables: Tables, rows: Sequence[Envelope], numbers: list[int]
) -> None:
    statement, order = _driver_sql(connection, tables, locked=bool(numbers))
    values: dict[str, Any] = {
        "numbers": numbers or [0],
        "ids": [str(e.id) for e in rows],
        "partitions": [partition_of(e.key, e.id) for e in rows],
        "topics": [e.topic for e in rows],
        "keys": [e.key for e in rows],
        "headers": [e.metadata() for e in rows],
        "bodies": [e.body for e in rows],
    }
    connection.exec_driver_sql(
        statement, values if order is None else tuple(values[name] for name in order)
    )


def _write_mysql(
    connection: sa.Connection, tables: Tables, rows: Sequence[Envelope], numbers: list[int]
) -> None:
    preparer = connection.dialect.identifier_preparer
    if numbers:
        # bucket rows, because GET_LOCK belongs to the session and would outlive the transaction
        marks = ", ".join(["%s"] * len(numbers))
        connection.exec_driver_sql(
            f"SELECT number FROM {preparer.format_table(tables.key_lock)} FORCE INDEX (PRIMARY) "
            f"WHERE number IN ({marks}) ORDER BY number FOR UPDATE",
            tuple(numbers),
        ).fetchall()
    values: list[Any] = []
    for e in rows:
        values += (
            e.id.hex,
            partition_of(e.key, e.id),
            e.topic.encode(),
            e.key.encode() if e.key is not None else None,
            e.metadata(),
            e.body,
        )
    marks = ", ".join(["(%s, %s, %s, %s, %s, %s, UTC_TIMESTAMP(6))"] * len(rows))
    connection.exec_driver_sql(
        f"INSERT INTO {preparer.format_table(tables.outbox)} "
        f"(id, `partition`, topic, `key`, headers, body, created_at) VALUES {marks}",
        tuple(values),
    )


def _write_sqlite(
    connection: sa.Connection, tables: Tables, rows: Sequence[Envelope], numbers: list[int]
) -> None:
    # no lock: SQLite has one writer at a time, and this transaction is it
    preparer = connection.dialect.identifier_preparer
    values: list[Any] = []
    for e in rows:
        values += (e.id.hex, partition_of(e.key, e.id), e.topic, e.key, e.metadata(), e.body)
    moment = "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'"
    marks = ", ".join([f"(?, ?, ?, ?, ?, ?, {moment})"] * len(rows))
    connection.exec_driver_sql(
        f"INSERT INTO {preparer.format_table(tables.outbox)} "
        f'(id, "partition", topic, "key", headers, body, created_at) VALUES {marks}',
        tuple(values),
    )
