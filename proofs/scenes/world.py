"""A database, a broker, and what both hold at rest.

    with world() as on:
        with Session(on.database.engine) as session, session.begin():
            on.publish(session, b'{"n":1}', key="k")
        with on.relay():
            on.quiesce()
        violations, counts = on.check()

What was committed is known from rows that the business transactions wrote themselves, never from
our own tables; what the broker has is read from its first message on.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from urllib.parse import unquote

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.testing import invariants
from outbox_saga.testing.invariants import Delivered, Violation
from outbox_saga.testing.servers import DatabaseServer, Nats, Postgres18, choose
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga_migrations import upgrade
from proofs.chaos import stream
from proofs.outages import relaying

QUIESCE = 60.0  # seconds from the end of all faults until everything must be at rest
TOPIC = "talk"
TYPE = "Said"

metadata = sa.MetaData()
intent = sa.Table(  # what a business transaction committed to send, written in it
    "scene_intent",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(40), nullable=False, unique=True),
    sa.Column("key", sa.String(255)),
    sa.Column("body", sa.LargeBinary(2**24), nullable=False),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
)


class World:
    """One empty database with our tables and the intents, and one empty stream."""

    def __init__(self, database: Database, nats: Nats, broker_url: str) -> None:
        self.database = database
        self.nats = nats
        self.broker_url = broker_url

    @property
    def url(self) -> str:
        """Of the database."""
        return self.database.url.render_as_string(hide_password=False)

    def publish(
        self,
        session: Any,
        body: bytes,
        *,
        key: str | None = None,
        content_type: str = "application/json",
        **options: Any,
    ) -> str:
        """Publish it in the transaction of a Session or Connection, with its intent."""
        uow = UnitOfWork(session, **options)
        id_ = uow.publish_body(body, topic=TOPIC, type=TYPE, key=key, content_type=content_type)
        session.execute(intended(id_, key, body))
        return str(id_)

    def relay(self, *options: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """A relay process, as an operator starts it; ended in good order."""
        return relaying.relay(self.database, self.broker_url, *options)

    def quiesce(self, seconds: float = QUIESCE, *, parked: int = 0) -> float:
        """Wait until nothing is left to be sent, or so long; how long it took.

        Args:
            seconds: At most.
            parked: Keys that stay parked behind their dead letters.
        """
        began = time.monotonic()
        while sum(self._left().values()) > parked and time.monotonic() < began + seconds:
            time.sleep(0.05)
        return round(time.monotonic() - began, 2)

    def _left(self) -> dict[str, int]:
        tables = self.database.tables
        left = (tables.outbox, tables.delayed, tables.blocked_key, tables.inbox_waiting)
        return {table.name: self._count(table) for table in left}

    def _count(self, table: sa.Table) -> int:
        with self.database.engine.connect() as connection:
            count = sa.select(sa.func.count()).select_from(table)
            return connection.execute(count).scalar_one()

    def delivered(self) -> list[Delivered]:
        """The broker's log, from the first message on."""
        return [
            Delivered(headers["ce-id"], _key(headers), body)
            for headers, body in asyncio.run(stream.messages(self.nats))
        ]

    def check(
        self, *, dead: Collection[str] = (), parked: Collection[str] = ()
    ) -> tuple[list[Violation], dict[str, int]]:
        """What must never be and is, and how much there is of everything.

        Args:
            dead: Ids of messages that must be dead letters; no other may.
            parked: Keys that must still be parked behind them; no other may.
        """
        tables = self.database.tables
        delivered = self.delivered()
        with self.database.engine.connect() as connection:
            intents = connection.execute(sa.select(intent).order_by(intent.c.number)).all()
            outbox, graves, blocked = (
                connection.execute(sa.select(table)).all()
                for table in (tables.outbox, tables.dead_letter, tables.blocked_key)
            )
        committed = {row.id: bytes(row.body) for row in intents}
        died = {str(row.id): bytes(row.body) for row in graves}
        found = invariants.messages(
            committed, {str(row.id): bytes(row.body) for row in outbox}, died, delivered
        )
        found += invariants.order([(row.id, row.key) for row in intents], delivered)
        found += _same("I3", "dead letter", set(died), set(dead))
        waiting = [row.key for row in blocked if row.key not in parked]
        found += [Violation("I16", f"key {key}", "blocked at rest") for key in waiting]
        found += [
            Violation("I3", f"{count} rows of {name}", "left at rest")
            for name, count in self._left().items()
            if count and name != tables.blocked_key.name
        ]
        counts = {
            "committed": len(committed),
            "delivered": len(delivered),
            "delivered twice": len(delivered) - len({one.id for one in delivered}),
            "dead letters": len(died),
            "parked keys": len(blocked) - len(waiting),
            "left": sum(self._left().values()) - len(blocked),
            "violations": len(found),
        }
        return found, counts


@contextmanager
def world(
    kind: type[DatabaseServer] | None = Postgres18,
    *,
    stream_settings: Mapping[str, Any] = {},
    **options: Any,
) -> Iterator[World]:
    """Servers of its own, which are gone afterwards.

    Args:
        kind: Of database; None is SQLite, in a file.
        stream_settings: Of the stream, besides those it has everywhere.
        options: Of `Database`.
    """
    with ExitStack() as stack:
        if kind is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            url = f"sqlite:///{folder}/scene.db"
        else:
            url = stack.enter_context(choose(kind)).create_database()
        nats, broker_url = stack.enter_context(stream.broker())
        asyncio.run(stream.create(nats, **stream_settings))
        database = Database(url, **options)
        prepare(database)
        try:
            yield World(database, nats, broker_url)
        finally:
            asyncio.run(database.close())


def prepare(database: Database) -> None:
    """Our tables and the intents."""
    with database.begin() as connection:
        upgrade(connection)
    with database.begin() as connection:
        metadata.create_all(connection)


def intended(id_: object, key: str | None, body: bytes) -> sa.Insert:
    """The row that says that this was published, for the same transaction."""
    return sa.insert(intent).values(id=str(id_), key=key, body=body)


def told(violations: Sequence[Violation], most: int = 20) -> list[str]:
    """For an Outcome."""
    return [str(one) for one in violations[:most]]


def _same(invariant: str, about: str, found: set[str], wanted: set[str]) -> list[Violation]:
    return [
        *(Violation(invariant, f"{about} {id_}", "unexpected") for id_ in found - wanted),
        *(Violation(invariant, f"{about} {id_}", "missing") for id_ in wanted - found),
    ]


def _key(headers: dict[str, str]) -> str | None:
    found = headers.get("ce-partitionkey")
    return None if found is None else unquote(found)
