"""One database, and the actors that share it: relays by the product's own store and lanes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.dead_letters import DeadLetters
from outbox_saga.decisions import Decision
from outbox_saga.errors import LeaseLost
from outbox_saga.queries.relay import Failed, OutboxRow
from outbox_saga.testing.interleaving import Play, Run, boundary
from outbox_saga.testing.servers import DatabaseServer, Postgres18, choose
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga_migrations import upgrade
from outbox_saga_relay.lanes import Lanes
from outbox_saga_relay.store import Store
from proofs.interleaved import clock
from proofs.interleaved.reach import Reaches
from proofs.interleaved.verdict import Ended, what_is_wrong
from tests.write_path.contest import Words
from tests.write_path.shop import Said

LEASE = 1_000_000.0  # seconds: it ends only when a play lets the time pass
ADA = Decision("ada", "the interleavings")
PAGE = 10  # rows
WAIT = 30.0  # seconds a refused message waits


@dataclass
class Broker:
    """What was accepted, in order; refuses some words, each once.

    Args:
        never: Words that get a definite no, the first time.
        not_now: Words that are refused for now, the first time.
        once: Words that are taken the first time, and then get a definite no.
    """

    never: frozenset[str] = frozenset()
    not_now: frozenset[str] = frozenset()
    once: frozenset[str] = frozenset()
    accepted: list[tuple[str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def takes(self, row: OutboxRow) -> Failed | None:
        """None: accepted."""
        word, sent = word_of(row.body), (row.key or "", word_of(row.body))
        if word in self.once and sent in self.accepted:
            self.refused.append(word)
            return Failed(row, None, "no", "as the play wants it")
        if word in self.refused or word not in self.never | self.not_now:
            self.accepted.append(sent)
            return None
        self.refused.append(word)
        return Failed(row, None if word in self.never else WAIT, "no", "as the play wants it")


class RelayActor:
    """One relay: its own store, lanes and memory, run by the actor's thread pass by pass."""

    heeds_lanes = True  # of a key, what comes behind a message is sent after its ack

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.store = Store(stage.database, lease=LEASE)
        self._acknowledged: list[OutboxRow] = []
        self._again: int | None = None

    def begins(self) -> bool:
        """Takes the lease; whether it has one."""
        self._acknowledged, self._again = [], None
        return self.store.lease._take({})

    def passes(self, count: int, *, renewing: bool = False) -> Callable[[], None]:
        """So many pages, read, sent and removed with the next one, or until it loses its lease.

        Args:
            renewing: Between two it renews its lease.
        """

        def work() -> None:
            try:
                for number in range(count):
                    if renewing and number:
                        self.renews()
                    self.one_pass()
            except LeaseLost:
                self.store.lease.epochs = {}

        return work

    def takes_over_and_passes(self, count: int) -> Callable[[], None]:
        """The other relay's lease has run out; then as `passes`."""

        def work() -> None:
            self._stage.advance(2 * LEASE)
            if self.begins():
                self.passes(count)()

        return work

    def one_pass(self) -> int:
        """How many rows the page had."""
        page = self._exchange()
        if page.put_back:
            page = self._exchange()
        lanes = Lanes(PAGE)
        lanes.add(page.rows)
        failures: list[Failed] = []
        batch = page.rows if not self.heeds_lanes else lanes.take(PAGE)
        while batch:
            boundary("send")
            for row in batch:
                failed = self._stage.broker.takes(row)
                if failed is not None:
                    failures.append(failed)
                    continue
                self._acknowledged.append(row)
                if self.heeds_lanes:
                    lanes.accepted([row])
            batch = lanes.take(PAGE) if self.heeds_lanes else []
        if failures:
            self.store._store_failures(failures)
        return len(page.rows)

    def _exchange(self) -> Any:
        acknowledged, self._acknowledged = self._acknowledged, []
        again, self._again = self._again, None
        page = self.store._exchange(acknowledged, PAGE, None, [], [], again)
        if page.put_back:
            told = self._stage.in_transaction(self.store.lease._take_back)
            self._again = None if told is None else told - 1
        return page

    def drains(self) -> None:
        """Goes on alone, and renews its lease, until nothing has come twice."""
        quiet = 0
        while quiet < 2:
            self._stage.advance(2 * WAIT)
            self.renews()
            quiet = quiet + 1 if self.one_pass() == 0 and not self._acknowledged else 0

    def renews(self) -> None:
        """Renews its lease, and hears what others did to its keys."""
        renewal = self.store.lease._renew({})
        if not renewal.held:
            raise LeaseLost("another relay has taken over")
        if renewal.again is not None:
            self._again = min(renewal.again, self._again or renewal.again)

    def close(self) -> None:
        """Its connection is given back; the actor's own thread has worked for it."""
        self.store.connection.give_back()


class Drains(Protocol):
    """Somebody who goes on when a play is over."""

    def drains(self) -> None:
        """Alone, until all is out."""


class Stage:
    """The database, its clock, the broker, and who works with them in one run."""

    def __init__(self, url: str) -> None:
        self.database = Database(url, clock=clock.PlayClock(), hints=False)
        with self.database.begin() as connection:
            upgrade(connection)
            clock.create(connection)
        self.engine = self.database.engine
        self.engines = [self.engine, self.database.program_engine]  # the latter is the relays'
        self.tables = self.database.tables
        self.broker = Broker()
        self.committed: list[Words] = []
        self.reaches = Reaches()
        self._relays: list[RelayActor] = []
        self._keys: dict[Callable[[], object], set[str]] = {}  # of each writer

    def fresh(self, broker: Broker | None = None) -> None:
        """Nothing of the run before is left."""
        self.close_relays()
        self._keys = {}
        clock.advance(self.engine, None)
        t = self.tables
        with self.database.begin() as connection:
            for table in (t.outbox, t.blocked_key, t.dead_letter, t.operator_action, t.process):
                connection.execute(sa.delete(table))
            connection.execute(
                sa.update(t.partition_lease).values(owner=None, until=None, revisit=None)
            )
        self.broker, self.committed = broker or Broker(), []

    def advance(self, seconds: float) -> None:
        """Later, for everybody."""
        clock.advance(self.engine, seconds)

    def in_transaction(self, verb: Callable[[sa.Connection], Any]) -> Any:
        """The verb's answer, in a transaction of its own."""
        with self.database.begin() as connection:
            return verb(connection)

    # --- actors ---------------------------------------------------------------------------------

    def relay(self) -> RelayActor:
        """A relay of this run."""
        actor = RelayActor(self)
        self._relays.append(actor)
        return actor

    def writer(self, *words: tuple[str, str]) -> Callable[[], None]:
        """One transaction that publishes these (key, word)s."""

        def work() -> None:
            with self.engine.connect() as connection, connection.begin() as transaction:
                uow = UnitOfWork(connection)
                for key, word in words:
                    uow.publish(Said(word=word), key=key)
                transaction.commit()
                self.committed.append(words)  # in the same step

        self._keys[work] = {key for key, _ in words}
        return work

    def operator(self) -> Callable[[], None]:
        """Replays every dead letter there is."""
        letters = DeadLetters(self.database)

        def work() -> None:
            with self.database.begin() as connection:
                for letter in letters.find(connection):
                    letters.replay(connection, letter, ADA)

        return work

    def time(self, seconds: float) -> Callable[[], None]:
        """So many seconds pass, at once."""

        def work() -> None:
            self.advance(seconds)

        return work

    # --- the end --------------------------------------------------------------------------------

    def play(self, actors: Mapping[str, Callable[[], object]], last: Drains) -> Play:
        """These actors, after which `last` goes on alone and everything is looked at."""

        def check(run: Run) -> str | None:
            if run.errors or run.deadlock:
                return f"errors: {run.errors}"
            last.drains()
            return what_is_wrong(self.ended())

        keys = {name: self._keys.get(actor, set[str]()) for name, actor in actors.items()}
        self.reaches.begin(keys)
        return Play(actors, check)

    def ended(self) -> Ended:
        """How things stand."""
        t, letters = self.tables, self._rows(self.tables.dead_letter)
        return Ended(
            committed=[pair for words in self.committed for pair in words],
            accepted=self.broker.accepted,
            refused_for_good=(self.broker.never | self.broker.once).intersection(
                self.broker.refused
            ),
            removed=sum(relay.store.lease.removed for relay in self._relays),
            left=[word_of(row.body) for row in self._rows(t.outbox)],
            dead={row.position: word_of(row.body) for row in letters},
            blocked=self._rows(t.blocked_key),
            relays=len(self._relays),
        )

    def _rows(self, table: sa.Table) -> Sequence[Any]:
        with self.engine.connect() as connection:
            return connection.execute(sa.select(table).order_by(table.c.position)).all()

    def close_relays(self) -> None:
        """No relay of the run before holds a connection."""
        for relay in self._relays:
            relay.close()
        self._relays = []


def word_of(body: bytes) -> str:
    """What was said."""
    word: str = json.loads(body)["word"]
    return word


@contextmanager
def stage() -> Iterator[Stage]:
    """On a private PostgreSQL."""
    with choose(Postgres18) as running, stage_on(running) as there:
        yield there


@contextmanager
def stage_on(server: DatabaseServer) -> Iterator[Stage]:
    """On this PostgreSQL, which nobody else uses meanwhile."""
    # it locks a table for a moment to give its empty end back: somebody who is in no play
    server.execute("alter system set autovacuum = off")
    server.execute("select pg_reload_conf()")
    there = Stage(server.create_database())
    try:
        yield there
    finally:
        there.close_relays()
        for engine in there.engines:
            engine.dispose()
