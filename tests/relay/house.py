"""One database with our tables and a till beside them, for tests of what happens after the commit.

Time is the database's, shifted by `house.clock`: `house.advance(60)` and a minute has passed for
everybody who works with this house.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.brokers.contract import ACCEPTED, Outcome, Settled
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.messages import Event
from outbox_saga.queries.clock import Clock
from outbox_saga.retries import Retry
from outbox_saga.tables import Tables, tables_in
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga_migrations import upgrade
from outbox_saga_relay.relay import Relay
from tests.fixtures.databases import SERVERS
from tests.fixtures.databases import Database as EmptyDatabase

RETRY = Retry(max_attempts=1_000_000, initial=30.0, max_delay=60.0)
PATIENCE = 20.0  # seconds after which what a test waits for counts as never coming

till = sa.Table(
    "till",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("note", sa.String(100), nullable=False),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
)


class Said(Event, topic="talk"):
    """A message that says one word."""

    word: str


def word_of(message: Envelope | bytes) -> str:
    """What was said."""
    body = message.body if isinstance(message, Envelope) else message
    word: str = json.loads(body)["word"]
    return word


def prepare(database: EmptyDatabase) -> EmptyDatabase:
    """Our tables and the till are in it from now on."""
    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        upgrade(connection)
    with engine.begin() as connection:
        till.metadata.create_all(connection)
    return database


class House:
    """One prepared database, empty when a test begins."""

    def __init__(self, database: EmptyDatabase) -> None:
        self.name = database.name
        self.url = database.url
        self.clock = Clock()
        self.tables: Tables = tables_in(None)
        self.eyes = sa.create_engine(self.url, poolclass=sa.NullPool)
        self._databases: list[Database] = []
        self._relays: list[Relay] = []
        self.database = self.another_database()

    def another_database(self, **options: Any) -> Database:
        """The same database as another process has it; closed when the test ends."""
        database = Database(self.url, clock=self.clock, **options)
        self._databases.append(database)
        return database

    def relay(self, publisher: Any, **options: Any) -> Relay:
        """A relay of this house, with pools of its own and a lease no pause of a test outlives.

        What fails waits for 15 to 60 seconds: longer than any test, shorter than `advance(61)`.
        """
        settings: dict[str, Any] = {"lease": 10_000_000.0, "retry": RETRY, **options}
        relay = Relay(self.another_database(), publisher, **settings)
        self._relays.append(relay)
        return relay

    def advance(self, seconds: float) -> None:
        """Later."""
        object.__setattr__(self.clock, "shift", self.clock.shift + seconds)

    async def close(self) -> None:
        """No thread and no connection of this test is left."""
        for relay in self._relays:
            with suppress(RuntimeError):  # it ended by itself
                relay.store.connection.close()
        for database in self._databases:
            await database.close()

    # --- what service code does ------------------------------------------------------------------

    def say(self, *words: object, key: str | None = None) -> list[UUID]:
        """Publishes these words, all in one transaction."""
        with self.eyes.begin() as connection:
            uow = UnitOfWork(connection)
            return [uow.publish(Said(word=str(word)), key=key) for word in words]

    # --- what the tables say ---------------------------------------------------------------------

    def rows(self, table: sa.Table, *order: Any) -> list[Any]:
        with self.eyes.connect() as connection:
            return list(connection.execute(sa.select(table).order_by(*order)))

    def waiting(self) -> list[str]:
        """The words in the outbox, in position order."""
        return [
            word_of(r.body) for r in self.rows(self.tables.outbox, self.tables.outbox.c.position)
        ]

    def blocked(self) -> list[Any]:
        return self.rows(self.tables.blocked_key, self.tables.blocked_key.c.position)

    def dead(self) -> list[Any]:
        return self.rows(self.tables.dead_letter, self.tables.dead_letter.c.position)

    def inbox(self) -> list[Any]:
        return self.rows(self.tables.inbox, self.tables.inbox.c.message_id)

    def set_aside(self) -> list[Any]:
        """The messages that wait for their handlers."""
        waiting = self.tables.inbox_waiting
        return self.rows(waiting, waiting.c.position)

    def notes(self) -> list[str]:
        return [row.note for row in self.rows(till, till.c.id)]

    def owners(self) -> set[UUID | None]:
        """Who holds partitions."""
        return {row.owner for row in self.rows(self.tables.partition_lease)}

    def empty(self) -> None:
        """Nothing of an earlier test is left."""
        tables = self.tables
        with self.eyes.begin() as connection:
            for table in (*tables.metadata.tables.values(), till):
                if table not in (tables.key_lock, tables.partition_lease):
                    connection.execute(sa.delete(table))
            connection.execute(
                sa.update(tables.partition_lease).values(
                    owner=None, until=None, epoch=0, revisit=None
                )
            )

    # --- what goes wrong -------------------------------------------------------------------------

    def others(self) -> list[int]:
        """The database's own numbers of every connection but the one that asks."""
        question = (
            "select pid from pg_stat_activity where datname = current_database() "
            "and pid <> pg_backend_pid()"
            if self.name.startswith("postgres")
            else "select id from information_schema.processlist "
            "where db = database() and id <> connection_id()"
        )
        with self.eyes.connect() as connection:
            return list(connection.scalars(sa.text(question)))

    def cut_connections(self) -> int:
        """The server ends every connection of others to this database; returns how many."""
        numbers = self.others()
        end = "select pg_terminate_backend({})" if self.name.startswith("postgres") else "kill {}"
        with self.eyes.connect() as connection:
            for number in numbers:
                connection.exec_driver_sql(end.format(number))
        return len(numbers)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Returns once it holds: for what another process or the server does unasked."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"never came: {what}")
            time.sleep(0.005)

    @contextmanager
    def till_locked(self) -> Iterator[None]:
        """Fails at once if anybody still holds a row, or the file, locked."""
        engine = sa.create_engine(
            self.url,
            poolclass=sa.NullPool,
            connect_args={"timeout": 0} if self.name == "sqlite" else {},
        )
        with engine.connect() as connection:
            if self.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            elif self.name == "mariadb":
                connection.exec_driver_sql("set innodb_lock_wait_timeout = 0")
                connection.exec_driver_sql(
                    "lock tables till write, outbox_saga_inbox write wait 0"
                )
            else:
                connection.exec_driver_sql(
                    "lock table till, outbox_saga_inbox in access exclusive mode nowait"
                )
            yield
            connection.rollback()


Answer = Callable[[Envelope], "Outcome | Awaitable[Outcome]"]


def accept(_: Envelope) -> Outcome:
    return ACCEPTED


class Recorder:
    """A publisher that remembers what it was handed, and answers as told.

    It also watches the relay's half of the contract: never two of one key in one call.
    """

    def __init__(self, answer: Answer = accept) -> None:
        self.answer = answer
        self.attempts: list[Envelope] = []
        self.calls: list[int] = []
        self.opened = 0
        self.closed = 0

    @property
    def words(self) -> list[str]:
        """Every attempt, in order."""
        return [word_of(envelope) for envelope in self.attempts]

    async def open(self) -> None:
        self.opened += 1

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> list[Outcome]:
        keys = [e.key for e in envelopes if e.key is not None]
        assert len(keys) == len(set(keys)), f"two of one key at once: {keys}"
        self.calls.append(len(envelopes))
        outcomes: list[Outcome] = []
        for envelope in envelopes:
            self.attempts.append(envelope)
            outcome = self.answer(envelope)
            outcomes.append(await outcome if isinstance(outcome, Awaitable) else outcome)
        return outcomes

    async def close(self) -> None:
        self.closed += 1


def names(marker: Any) -> tuple[str, ...]:
    """The databases a test runs on."""
    return tuple(marker.args) if marker else tuple(SERVERS)
