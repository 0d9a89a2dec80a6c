"""One database, and the actors that share it: relays by the product's own store and lanes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.dead_letters import DeadLetters
from outbox_saga.decisions import Decision
from outbox_saga.errors import LeaseLost
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.relay import Failed, OutboxRow
from outbox_saga.testing.interleaving import Play, Point, Run, boundary
from outbox_saga.testing.servers import Postgres18, choose
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga_migrations import upgrade
from outbox_saga_relay.lanes import Lanes
from outbox_saga_relay.store import Store
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
    """

    never: frozenset[str] = frozenset()
    not_now: frozenset[str] = frozenset()
    accepted: list[tuple[str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def takes(self, row: OutboxRow) -> Failed | None:
        """None: accepted."""
        word = word_of(row.body)
        if word in self.refused or word not in self.never | self.not_now:
            self.accepted.append((row.key or "", word))
            return None
        self.refused.append(word)
        return Failed(row, None if word in self.never else WAIT, "no", "as the play wants it")


class RelayActor:
    """One relay: its own store, lanes and memory, run by the actor's thread pass by pass."""

    def __init__(self, stage: Stage, *, heeds_lanes: bool = True) -> None:
        self._stage = stage
        self._heeds_lanes = heeds_lanes
        self.store = Store(stage.database, lease=LEASE)
        self._acknowledged: list[OutboxRow] = []
        self._again: int | None = None

    def begins(self) -> bool:
        """Takes the lease; whether it has one."""
        self._acknowledged, self._again = [], None
        return self.store._take_lease({})

    def passes(self, count: int) -> Callable[[], None]:
        """So many pages, read, sent and removed with the next one, or until it loses its lease."""

        def work() -> None:
            try:
                for _ in range(count):
                    self.one_pass()
            except LeaseLost:
                self.store.epochs = {}

        return work

    def takes_over_and_passes(self, count: int) -> Callable[[], None]:
        """The other relay's lease has run out; then as `passes`."""

        def work() -> None:
            boundary("the lease of the other one runs out")
            self._stage.advance(2 * LEASE)
            if self.begins():
                self.passes(count)()

        return work

    def one_pass(self) -> int:
        """How many rows the page had."""
        boundary("exchange")
        page = self._exchange()
        if page.put_back:
            boundary("exchange")
            page = self._exchange()
        lanes = Lanes(PAGE)
        lanes.add(page.rows)
        failures: list[Failed] = []
        batch = page.rows if not self._heeds_lanes else lanes.take(PAGE)
        while batch:
            boundary("send")
            for row in batch:
                failed = self._stage.broker.takes(row)
                if failed is not None:
                    failures.append(failed)
                    continue
                self._acknowledged.append(row)
                if self._heeds_lanes:
                    lanes.accepted([row])
            batch = lanes.take(PAGE) if self._heeds_lanes else []
        if failures:
            boundary("store the failures")
            self.store._store_failures(failures)
        return len(page.rows)

    def _exchange(self) -> Any:
        acknowledged, self._acknowledged = self._acknowledged, []
        again, self._again = self._again, None
        page = self.store._exchange(acknowledged, PAGE, None, [], [], again)
        if page.put_back:
            told = self._stage.in_transaction(self.store._take_back)
            self._again = None if told is None else told - 1
        return page

    def drains(self) -> None:
        """Goes on alone until nothing has come twice."""
        quiet = 0
        while quiet < 2:
            self._stage.advance(2 * WAIT)
            quiet = quiet + 1 if self.one_pass() == 0 and not self._acknowledged else 0

    def close(self) -> None:
        """Its thread and connection are given back."""
        self.store.close()


class Stage:
    """The database, its clock, the broker, and who works with them in one run."""

    def __init__(self, url: str) -> None:
        self.clock = Clock()
        self.database = Database(url, clock=self.clock, hints=False)
        with self.database.begin() as connection:
            upgrade(connection)
        self.engine = self.database.engine
        self.engines = [self.engine, self.database.program_engine]  # the latter is the relays'
        self.tables = self.database.tables
        self.broker = Broker()
        self.committed: list[Words] = []
        self._relays: list[RelayActor] = []

    def fresh(self, broker: Broker | None = None) -> None:
        """Nothing of the run before is left."""
        self.close_relays()
        object.__setattr__(self.clock, "shift", 0.0)
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
        object.__setattr__(self.clock, "shift", self.clock.shift + seconds)

    def in_transaction(self, verb: Callable[[sa.Connection], Any]) -> Any:
        """The verb's answer, in a transaction of its own."""
        with self.database.begin() as connection:
            return verb(connection)

    # --- actors ---------------------------------------------------------------------------------

    def relay(self, **options: Any) -> RelayActor:
        """A relay of this run."""
        actor = RelayActor(self, **options)
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
            boundary("time")
            self.advance(seconds)

        return work

    # --- the end --------------------------------------------------------------------------------

    def play(self, actors: Mapping[str, Callable[[], object]], last: RelayActor) -> Play:
        """These actors, after which `last` goes on alone and everything is looked at."""

        def check(run: Run) -> str | None:
            if run.errors or run.deadlock:
                return f"errors: {run.errors}"
            last.drains()
            return self._wrong()

        return Play(actors, check)

    def _wrong(self) -> str | None:
        """What is lost, invented, out of order, or has gone past a parked message of its key."""
        dead = {word_of(row.body) for row in self._rows(self.tables.dead_letter)}
        left = [word_of(row.body) for row in self._rows(self.tables.outbox)]
        wanted: dict[str, list[str]] = {}
        for key, word in (pair for words in self.committed for pair in words):
            wanted.setdefault(key, []).append(word)
        for key, words in wanted.items():
            got = list(dict.fromkeys(w for k, w in self.broker.accepted if k == key))
            if got != words[: len(got)]:
                return f"of {key} committed {words}, dead {sorted(dead)}, accepted {got}"
            # behind a parked message all of its key wait; one that two relays have sent while
            # they overlapped may be parked and accepted, and is then out of nobody's way
            rest = words[len(got) :]
            if rest and rest[0] not in dead:
                return f"of {key} lost or left {rest}; accepted {got}, dead {sorted(dead)}"
            # what an overlapped relay has sent and not removed waits, too: it is sent again
            waits = [word for word in left if word in words]
            if not set(rest[1:]) <= set(waits):
                return f"of {key} these wait: {waits}; accepted {got}, dead {sorted(dead)}"
        return None

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


def least_steps(point: Point) -> bool:
    """Cuts where others could see or hold up something.

    A relay's are said by `boundary`, and the look for keys whose time has come; what it stores is
    cut at the lock and at the commit. Operators: the locks and the commit. Writers: the write and
    the commit.
    """
    if point.kind in ("effect", "commit"):
        return True
    if point.kind == "rollback":
        return False
    statement = " ".join(point.statement.split())
    if point.actor.startswith("relay"):
        if "pg_snapshot_xmin" in statement or statement.startswith(
            ("BEGIN", "COMMIT", "WITH gone")
        ):
            return False  # of the exchange, which is one round trip
        return statement.startswith("SELECT outbox_saga_blocked_key.position FROM") or (
            "FOR UPDATE" in statement
        )
    if point.actor == "operator":
        return "FOR UPDATE" in statement  # the rest is seen by nobody before the commit
    return not statement.startswith("SET")


@contextmanager
def stage() -> Iterator[Stage]:
    """On a private PostgreSQL."""
    with choose(Postgres18) as running:
        # it locks a table for a moment to give its empty end back: somebody who is in no play
        running.execute("alter system set autovacuum = off")
        running.execute("select pg_reload_conf()")
        there = Stage(running.create_database())
        try:
            yield there
        finally:
            there.close_relays()
            for engine in there.engines:
                engine.dispose()
