"""Writing messages.

One multi-row statement, after the locks of their keys, as the last locks of the transaction.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.envelopes import Envelope
from outbox_saga.queries.dialects import Family, family
from outbox_saga.queries.driver import Answer, ask, execute
from outbox_saga.queries.prepared import Twin, twin_of
from outbox_saga.tables import KEY_LOCKS, PARTITIONS, Tables

FEW = 8  # rows of PostgreSQL that are values of one statement, not elements of its arrays
CHUNK = 1000  # rows a statement; SQLite allows 32,766 parameters and we use 6 a row
CHUNK_BYTES = (
    4 * 1024 * 1024
)  # a statement; MariaDB takes packets of 16 MiB, escaping may double it


WROTE = "outbox_saga.wrote"  # in a connection's info: it has published since it left the pool


def lock_number(key: str) -> int:
    """Which of the 1,024 key locks.

    Without the modulo one transaction could exhaust the server's lock table.
    """
    return zlib.crc32(key.encode()) % KEY_LOCKS


def partition_of(key: str | None, id_: UUID) -> int:
    """Which of the 64 partitions; a message without a key goes by its id."""
    return zlib.crc32(id_.bytes if key is None else key.encode()) % PARTITIONS


def lock_class(connection: sa.Connection, tables: Tables) -> str:
    """SQL for the advisory lock class of this outbox's keys (PostgreSQL): its table's oid.

    One outbox has one class by whatever name it is reached, and two outboxes of one database do
    not wait for each other.
    """
    return _lock_class(connection.dialect, tables)


def _lock_class(dialect: sa.Dialect, tables: Tables) -> str:
    name = dialect.identifier_preparer.format_table(tables.outbox).replace("'", "''")
    return f"CAST(CAST(CAST('{name}' AS regclass) AS oid) AS int)"


def write_messages(
    connection: sa.Connection,
    tables: Tables,
    envelopes: Sequence[Envelope],
    *,
    key_locks: bool = True,
) -> Answer | None:
    """All of these messages, or an error.

    Inserted in this order, once the locks of all their keys are held.

    The locks are held until the transaction ends, so what is visible of a key is always a prefix
    of it.

    Args:
        connection: In the transaction that is about to commit.
        tables: Where.
        envelopes: At least one.
        key_locks: False only in tests that show what the lock is for.

    Returns:
        What gives a row with the transaction's id, timeline and moment, on PostgreSQL: whoever
        loses the answer to COMMIT can ask the server by it.
    """
    numbers = lock_numbers([e.key for e in envelopes]) if key_locks else []
    write = _WRITE[family(connection)]
    answer: Answer | None = None
    for chunk in _chunks(envelopes):
        told = write(connection, tables, chunk, numbers)
        answer = answer or told
        numbers = []
    connection.info[WROTE] = (connection.engine, tables.schema)
    return answer


def lock_numbers(keys: Iterable[str | None]) -> list[int]:
    """Their key locks, distinct and sorted: every transaction takes them in one order, so none
    waits in a circle.
    """
    return sorted({lock_number(key) for key in keys if key is not None})


def take_key_locks(connection: sa.Connection, tables: Tables, numbers: Sequence[int]) -> None:
    """These locks are held until the transaction ends. They are its last ones: see `lock_numbers`.

    For what enters the outbox by another statement than that of `write_messages`.
    """
    if not numbers:
        return
    kind = family(connection)
    if kind == "postgresql":
        lock = _LOCK.format(lock_class(connection, tables), "number")
        array = ",".join(map(str, numbers))
        connection.exec_driver_sql(
            f"SELECT pg_current_xact_id(), {lock} "
            f"FROM unnest(CAST('{{{array}}}' AS int[])) AS number"
        ).fetchall()
    elif kind == "mysql":
        _lock_rows(connection, tables, numbers)


def try_key_locks(
    connection: sa.Connection, tables: Tables, numbers: Sequence[int]
) -> frozenset[int]:
    """Those of these locks that are held now, until the transaction ends; it waits for none."""
    if not numbers:
        return frozenset()
    kind = family(connection)
    array = ",".join(map(str, numbers))
    if kind == "postgresql":
        class_ = lock_class(connection, tables)
        found = connection.exec_driver_sql(
            f"SELECT number FROM unnest(CAST('{{{array}}}' AS int[])) AS number "
            f"WHERE pg_try_advisory_xact_lock({class_}, number)"
        )
        return frozenset(row[0] for row in found)
    if kind == "mysql":
        name = connection.dialect.identifier_preparer.format_table(tables.key_lock)
        found = connection.exec_driver_sql(
            f"SELECT number FROM {name} FORCE INDEX (PRIMARY) WHERE number IN ({array}) "
            "ORDER BY number FOR UPDATE SKIP LOCKED"
        )
        return frozenset(row[0] for row in found)
    return frozenset(numbers)  # SQLite has one writer at a time, and this transaction is it


def _chunks(envelopes: Sequence[Envelope]) -> Iterator[Sequence[Envelope]]:
    if len(envelopes) == 1:  # as in most transactions
        yield envelopes
        return
    start = size = 0
    for end, envelope in enumerate(envelopes):
        more = statement_bytes(envelope)
        size += more
        if end > start and (end - start == CHUNK or size > CHUNK_BYTES):
            yield envelopes[start:end]
            start, size = end, more
    yield envelopes[start:]


def statement_bytes(envelope: Envelope) -> int:
    """Bytes of a statement that this message takes, about, before the driver escapes them."""
    size = len(envelope.body)
    if envelope.headers:
        # as JSON a quotation mark is two bytes, and so are the longest letters for their length
        size += 2 * sum(len(name) + 2 * len(value) for name, value in envelope.headers.items())
    return size


# Positions are handed out above the subquery, so after its locks. It is never left out, because
# what it calls is volatile; its condition is looked at first: the transaction id is taken before
# any position is, so that a reader of pg_snapshot_xmin can tell whether a lower position may still
# appear.
_ONE = """
INSERT INTO {outbox} (id, partition, topic, key, headers, body, created_at)
SELECT {rows}, clock_timestamp()
FROM (SELECT {locks} WHERE pg_current_xact_id() IS NOT NULL OFFSET 0) AS locks
RETURNING {transaction}
"""

_FEW = """
INSERT INTO {outbox} (id, partition, topic, key, headers, body, created_at)
SELECT m.id, m.partition, m.topic, m.key, m.headers, m.body, clock_timestamp()
FROM (VALUES {rows}) AS m(ordinal, id, partition, topic, key, headers, body),
(SELECT {locks} WHERE pg_current_xact_id() IS NOT NULL OFFSET 0) AS locks
ORDER BY m.ordinal
RETURNING {transaction}
"""

# The CTE must be consumed by an aggregate: unreferenced it takes no lock at all, and under EXISTS
# one of many. Without ORDER BY the rows may be inserted before their order is known.
_MANY = """
WITH locks AS MATERIALIZED (
  SELECT pg_current_xact_id(){locks} FROM unnest(CAST({numbers} AS int[])) AS number
), written AS (
  INSERT INTO {outbox} (id, partition, topic, key, headers, body, created_at)
  SELECT m.id, m.partition, m.topic, m.key, m.headers, m.body, clock_timestamp()
  FROM unnest({rows}) WITH ORDINALITY AS m(id, partition, topic, key, headers, body, ordinal)
  WHERE (SELECT count(*) FROM locks) >= 0
  ORDER BY m.ordinal
)
SELECT {transaction}
"""

# With the timeline and the moment: a standby that is promoted without this transaction gives its
# id out again, and so does a server that crashes before anything of it is in its log
TRANSACTION = (
    "CAST(pg_current_xact_id() AS text) || ' ' || left(pg_walfile_name(pg_current_wal_lsn()), 8) "
    "|| ' ' || CAST(extract(epoch FROM clock_timestamp()) AS text)"
)
_TYPES = ("uuid", "smallint", "text", "text", "text", "bytea")
_LOCK = "pg_advisory_xact_lock({}, {})"


def _write_postgresql(
    connection: sa.Connection, tables: Tables, rows: Sequence[Envelope], numbers: list[int]
) -> Answer:
    values: list[Any]
    twin: Twin | None = None
    if len(rows) > FEW:
        statement = _sql_for_many(connection.dialect, tables, bool(numbers))
        columns = zip(*(_values(e) for e in rows), strict=True)
        values = [numbers or [0], *(list(column) for column in columns)]
    else:
        # one statement for so many rows, whatever their locks: the driver prepares each once
        locks = len(rows) if numbers else 0
        statement, twin = _sql_for_few(connection.dialect, tables, len(rows), locks)
        values = []
        for e in rows:
            values += _values(e)
        values += numbers
        values += numbers[-1:] * (locks - len(numbers))
    return ask(connection, statement, tuple(values), twin)


def _values(e: Envelope) -> tuple[Any, ...]:
    return (e.id.hex, partition_of(e.key, e.id), e.topic, e.key, e.metadata(), e.body)


@functools.lru_cache(maxsize=256)
def _sql_for_few(
    dialect: sa.Dialect, tables: Tables, rows: int, locks: int
) -> tuple[str, Twin | None]:
    mark = marks(dialect)
    row = ", ".join(f"CAST({{}} AS {type_})" for type_ in _TYPES)
    marked = [row.format(*map(mark, _TYPES)) for _ in range(rows)]
    if rows > 1:
        marked = [f"({ordinal}, {row})" for ordinal, row in enumerate(marked)]
    class_ = _lock_class(dialect, tables)
    statement = (_FEW if rows > 1 else _ONE).format(
        outbox=dialect.identifier_preparer.format_table(tables.outbox),
        transaction=TRANSACTION,
        rows=", ".join(marked),
        locks=", ".join(_LOCK.format(class_, f"CAST({mark('int')} AS int)") for _ in range(locks)),
    )
    if not is_psycopg(dialect):
        return statement, None
    return statement, twin_of(statement, (*_TYPES * rows, *("int",) * locks))


def is_psycopg(dialect: sa.Dialect) -> bool:
    """Of version 3, by either of its dialects."""
    return dialect.driver in ("psycopg", "psycopg_async")


@functools.lru_cache(maxsize=64)
def _sql_for_many(dialect: sa.Dialect, tables: Tables, locked: bool) -> str:  # noqa: FBT001 - lru_cache keys by position
    mark = marks(dialect)
    return _MANY.format(
        outbox=dialect.identifier_preparer.format_table(tables.outbox),
        transaction=TRANSACTION,
        locks=", " + _LOCK.format(_lock_class(dialect, tables), "number") if locked else "",
        numbers=mark("int"),
        rows=", ".join(f"CAST({mark(type_)} AS {type_}[])" for type_ in _TYPES),
    )


def marks(dialect: sa.Dialect) -> Callable[[str], str]:
    """Gives one mark after the other, each for a value of that type, in this driver's words."""
    if dialect.paramstyle == "numeric_dollar":
        numbers = itertools.count(1)
        return lambda _: f"${next(numbers)}"
    if is_psycopg(dialect):
        # as they are: as text a body would be twice as long
        return lambda type_: "%b" if type_ == "bytea" else "%s"
    return lambda _: "%s"


def _write_mysql(
    connection: sa.Connection, tables: Tables, rows: Sequence[Envelope], numbers: list[int]
) -> None:
    preparer = connection.dialect.identifier_preparer
    if numbers:
        _lock_rows(connection, tables, numbers)
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
    execute(
        connection,
        f"INSERT INTO {preparer.format_table(tables.outbox)} "
        f"(id, `partition`, topic, `key`, headers, body, created_at) VALUES {marks}",
        tuple(values),
    )


def _lock_rows(connection: sa.Connection, tables: Tables, numbers: Sequence[int]) -> None:
    # bucket rows, because GET_LOCK belongs to the session and would outlive the transaction
    preparer = connection.dialect.identifier_preparer
    marks = ", ".join(["%s"] * len(numbers))
    connection.exec_driver_sql(
        f"SELECT number FROM {preparer.format_table(tables.key_lock)} FORCE INDEX (PRIMARY) "
        f"WHERE number IN ({marks}) ORDER BY number FOR UPDATE",
        tuple(numbers),
    ).fetchall()


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
    execute(
        connection,
        f"INSERT INTO {preparer.format_table(tables.outbox)} "
        f'(id, "partition", topic, "key", headers, body, created_at) VALUES {marks}',
        tuple(values),
    )


_WRITE: Mapping[Family, Callable[..., Answer | None]] = {
    "postgresql": _write_postgresql,
    "mysql": _write_mysql,
    "sqlite": _write_sqlite,
}
