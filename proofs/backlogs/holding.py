"""Transactions that somebody leaves open while the relay works; each shows that it was open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy as sa

from outbox_saga.envelopes import Envelope
from outbox_saga.ids import new_id
from outbox_saga.queries.outbox import write_messages
from outbox_saga.tables import tables_in
from proofs.backlogs.filling import Place, outbox

HELD = "held"  # the key of the message in an open transaction; no other message has it


@contextmanager
def reading(place: Place) -> Iterator[None]:
    """A REPEATABLE READ transaction has a snapshot from now on: no row it sees can be vacuumed."""
    count = f"SELECT count(*) FROM {outbox()}".encode()
    with place.connect() as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        before = _one(connection, count)
        yield
        after = _one(connection, count)
        connection.execute("COMMIT")
    if before != after:
        raise RuntimeError(f"the snapshot was not held: it saw {before} rows and then {after}")


@contextmanager
def writing(place: Place) -> Iterator[None]:
    """A transaction has written into another table, and is idle: it has a transaction id."""
    with place.connect() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS proof_held (number int)")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO proof_held VALUES (1)")
        with _open(place, connection):
            yield
        connection.execute("ROLLBACK")


@contextmanager
def publishing(place: Place) -> Iterator[None]:
    """A transaction stands still between its insert into the outbox and its COMMIT, its key
    locked; it commits at the end.
    """
    message = Envelope(id=new_id(), topic="orders", key=HELD, type="OrderPlaced", body=b"{}")
    engine = sa.create_engine(place.url, poolclass=sa.NullPool)
    with engine.connect() as connection, connection.begin():
        write_messages(connection, tables_in(), [message])
        raw = connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        with _open(place, raw):
            yield


@contextmanager
def _open(place: Place, holder: psycopg.Connection) -> Iterator[None]:
    """Its transaction has an id, and is still the same one at the end."""
    asked = (
        b"SELECT backend_xid::text FROM pg_stat_activity WHERE pid = %s AND state LIKE 'idle in%%'"
    )
    pid = holder.info.backend_pid
    with place.connect() as eyes:
        before = _one(eyes, asked, pid)
        yield
        after = _one(eyes, asked, pid)
    if before is None or before != after:
        raise RuntimeError(f"the transaction was not held: its id was {before}, then {after}")


def _one(connection: psycopg.Connection, question: bytes, *values: object) -> object:
    row = connection.execute(question, values or None).fetchone()
    return row[0] if row else None
