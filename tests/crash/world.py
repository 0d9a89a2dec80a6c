"""Everything that outlives the process: the database, the broker's log, the provider's ledger.

And a look at all of it.
"""

from __future__ import annotations

import base64
import gc
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import event

from outbox_saga.database import Database
from outbox_saga.queries import archive_partitions
from outbox_saga.queries import sagas as saga_verbs
from outbox_saga.queries.clock import Clock
from outbox_saga.testing.invariants import Change, Delivered, Effect, HistoryRow, Request, SagaRow
from outbox_saga_migrations import upgrade
from tests.crash import tables
from tests.crash.append_log import AppendLog
from tests.crash.message_facts import MessageFacts, look_at_messages, resolved
from tests.crash.shop import ANSWERING
from tests.crash.tables import OURS


@dataclass(frozen=True)
class Facts:
    """What the tables and the other sides' logs say, at one moment."""

    committed: dict[str, bytes]
    commits: list[tuple[str, str | None]]
    pending: dict[str, bytes]
    dead: dict[str, bytes]
    delivered: list[Delivered]
    inbox: list[tuple[str, str]]
    handled: list[tuple[str, str]]
    orders: list[str]
    sagas: list[SagaRow]
    history: list[HistoryRow]
    changes: list[Change]
    effects: list[Effect]
    ledger: list[Effect]
    requests: list[Request]
    provider_cents: dict[str, int]
    balances: dict[str, int]
    said: set[str]  # ids of committed messages that have handlers
    waiting: list[tuple[str, str, int]]  # consumer, message id and attempts
    claims: list[tuple[str, str]]
    questions: list[tuple[str, str, str]]  # consumer, message id and key
    messages: MessageFacts


def connect_without_certificates(*engines: sa.Engine) -> None:
    """PyMySQL loads all certificates of the machine for each connection that may be encrypted.

    It takes longer than all that is sent, and here every process connects anew.
    """
    for engine in engines:
        if engine.driver == "pymysql":
            event.listen(engine, "do_connect", _unencrypted)


def _unencrypted(*told: Any) -> None:
    told[-1]["ssl_disabled"] = True


class World:
    """One database and one folder, prepared once and emptied before each run."""

    def __init__(self, name: str, url: str, folder: Path, bare: str | None = None) -> None:
        self.name = name
        self.url = url
        self.bare = bare or f"sqlite:///{folder / 'bare.db'}"  # a database without our tables
        self.folder = folder
        self.observer = sa.create_engine(url, poolclass=sa.pool.SingletonThreadPool)
        self.bare_observer = sa.create_engine(self.bare, poolclass=sa.NullPool)
        self._engines = Database(url, pool_size=5)
        connect_without_certificates(
            self.bare_observer, self._engines.engine, self._engines.program_engine
        )
        self.broker = AppendLog(folder / "broker.jsonl")
        self.ledger = AppendLog(folder / "ledger.jsonl")
        self.arrivals = AppendLog(folder / "arrivals.jsonl")  # what a broker has for our handlers
        self.acknowledged = AppendLog(folder / "acknowledged.jsonl")
        self.questions = AppendLog(folder / "questions.jsonl")  # what handlers asked outside
        self.refused = AppendLog(folder / "refused.jsonl")  # what the broker did not take
        self.mended = AppendLog(folder / "mended.jsonl")  # anything here: nothing is refused now
        self.reports = AppendLog(folder / "reports.jsonl")  # what callers were told of a commit
        self.logs = [log for log in vars(self).values() if isinstance(log, AppendLog)]

    def database(self, later: float) -> Database:
        """A new process's database, `later` seconds from now, without any connection.

        Its engines are used again, for what they have compiled; making them takes longer than most
        runs.
        """
        database = Database(self.url, clock=Clock(later))
        ours = self._engines
        for engine in (ours.engine, ours.program_engine):
            engine.dispose(close=False)
        for asynchronous in (ours.async_engine, ours.lease_engine):
            asynchronous.sync_engine.dispose(close=False)
        database._sync, database._async = ours.engine, ours.async_engine
        database._programs, database._leases = ours.program_engine, ours.lease_engine
        return database

    def logged(self) -> tuple[int, ...]:
        """How much each log has: what can be seen outside, beside the database."""
        return tuple(log.size for log in self.logs)

    def prepare(self) -> None:
        """Our tables, the shop's tables and the triggers."""
        with self.observer.begin() as connection:
            upgrade(connection)
        with self.observer.begin() as connection:
            tables.create(connection)

    def let_go(self) -> None:
        """Nothing that nobody has in hand any more keeps SQLite's file locked.

        A cursor that was not read to its end does, though its connection is closed, and the error
        of a dead process, or what a planted bug leaves behind, may keep the cursor in a circle.
        """
        if self.name != "sqlite":
            return
        connection = sqlite3.connect(str(self.observer.url.database), timeout=0)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            gc.collect()  # only then: it takes longer than a run
        finally:
            connection.close()

    def empty(self) -> None:
        """Nothing of an earlier run is left."""
        self.let_go()
        with self.observer.begin() as connection:
            tables.empty(connection)
            if connection.dialect.name == "postgresql":
                for day in archive_partitions.partition_days(connection, OURS):
                    archive_partitions.drop_day(connection, OURS, day)
        for log in self.logs:
            log.empty()

    def close(self) -> None:
        """Disconnects."""
        self.observer.dispose()

    def pending(self) -> int:
        """Messages that are to leave: in the outbox and not parked, or waiting for their time."""
        outbox, blocked, delayed = OURS.outbox, OURS.blocked_key, OURS.delayed
        parked = sa.exists().where(
            blocked.c.partition == outbox.c.partition,
            blocked.c.key == outbox.c.key,
            blocked.c.position <= outbox.c.position,
            blocked.c.until.is_(None),
        )
        free = sa.select(sa.func.count()).select_from(outbox).where(~parked)
        late = sa.select(sa.func.count()).select_from(delayed)
        with self.observer.connect() as connection:
            counts = (connection.execute(count).scalar_one() for count in (free, late))
            return sum(counts)

    def undecided(self) -> int:
        """Dead letters, parked keys and dead messages of consumers: a person decides."""
        blocked, waiting = OURS.blocked_key, OURS.inbox_waiting
        counts = (
            sa.select(sa.func.count()).select_from(OURS.dead_letter),
            sa.select(sa.func.count()).select_from(blocked).where(blocked.c.until.is_(None)),
            sa.select(sa.func.count()).select_from(waiting).where(waiting.c.until.is_(None)),
        )
        with self.observer.connect() as connection:
            return sum(connection.execute(count).scalar_one() for count in counts)

    def parked(self) -> list[str]:
        """Keys that are parked."""
        blocked = OURS.blocked_key
        parked = sa.select(blocked.c.key).where(blocked.c.until.is_(None), blocked.c.key != "")
        with self.observer.connect() as connection:
            return sorted(set(connection.scalars(parked)))

    def dead_for(self) -> list[tuple[int, str, str]]:
        """Place, consumer and reason of messages that consumers have given up."""
        waiting = OURS.inbox_waiting
        dead = sa.select(waiting).where(waiting.c.until.is_(None))
        with self.observer.connect() as connection:
            return [(r.position, r.consumer, r.error_code) for r in connection.execute(dead)]

    def waiting(self) -> int:
        """Messages that wait for their handlers and get further attempts."""
        waiting = OURS.inbox_waiting
        first = waiting.alias("first")
        held_up = sa.exists().where(
            first.c.consumer == waiting.c.consumer,
            first.c.key == waiting.c.key,
            first.c.position < waiting.c.position,
            first.c.until.is_(None),
        )
        with self.observer.connect() as connection:
            count = (
                sa.select(sa.func.count())
                .select_from(waiting)
                .where(waiting.c.until.is_not(None), ~held_up)
            )
            return connection.execute(count).scalar_one()

    def unfinished(self) -> int:
        """Sagas that have not ended."""
        with self.observer.connect() as connection:
            return saga_verbs.unfinished(connection, OURS)

    def facts(self) -> Facts:
        """All there is to see."""
        with self.observer.connect() as connection:
            return self._facts(connection)

    def history(self) -> list[HistoryRow]:
        """What sagas have written of themselves so far."""
        with self.observer.connect() as connection:
            return _history(connection)

    def _facts(self, connection: sa.Connection) -> Facts:
        def rows(table: sa.Table, *order: Any) -> list[Any]:
            return list(connection.execute(sa.select(table).order_by(*order)))

        entries = rows(tables.entry, tables.entry.c.number)
        intents = resolved(rows(tables.intent, tables.intent.c.number), entries)
        ledger = self.ledger.read()
        cents: dict[str, int] = {}
        for line in ledger:
            if line["effective"]:
                cents[line["saga_id"]] = cents.get(line["saga_id"], 0) + line["cents"]
        return Facts(
            committed={r.message_id: r.body for r in intents},
            commits=[(r.message_id, r.key) for r in intents],
            said={r.message_id for r in intents if _is_said(r.body)},
            pending={str(r.id): r.body for r in rows(OURS.outbox, OURS.outbox.c.position)},
            dead={str(r.id): r.body for r in rows(OURS.dead_letter)},
            delivered=[
                Delivered(line["id"], line["key"], base64.b64decode(line["body"]))
                for line in self.broker.read()
            ],
            inbox=[(r.consumer, str(r.message_id)) for r in rows(OURS.inbox)],
            handled=[
                (r.consumer, r.message_id) for r in rows(tables.handled, tables.handled.c.number)
            ],
            orders=[r.saga_id for r in rows(tables.order, tables.order.c.number)],
            sagas=[
                SagaRow(
                    str(r.id),
                    r.name,
                    r.state,
                    r.revision,
                    {n: s["phase"] for n, s in json.loads(r.progress)["steps"].items()},
                )
                for r in rows(OURS.saga)
            ],
            history=_history(connection),
            changes=[
                Change(
                    str(UUID(r.saga_id)),
                    r.old_revision,
                    r.new_revision,
                    r.old_state,
                    r.new_state,
                    r.changed,
                )
                for r in rows(tables.audit, tables.audit.c.number)
            ],
            effects=[
                Effect(r.saga_id, r.step, r.direction)
                for r in rows(tables.effect, tables.effect.c.number)
            ],
            ledger=[
                Effect(line["saga_id"], line["step"], line["direction"])
                for line in ledger
                if line["effective"]
            ],
            requests=[
                Request(
                    line["saga_id"], line["step"], line["direction"], line["key"], line["request"]
                )
                for line in ledger
            ],
            provider_cents=cents,
            balances={r.name: r.cents for r in rows(tables.account)},
            waiting=[
                (r.consumer, str(r.message_id), r.attempts) for r in rows(OURS.inbox_waiting)
            ],
            claims=[(r.consumer, str(r.message_id)) for r in rows(OURS.inbox_claim)],
            questions=[
                (line["consumer"], line["id"], line["key"]) for line in self.questions.read()
            ],
            messages=look_at_messages(
                connection, entries, self.broker.read(), self.reports.read()
            ),
        )


def _history(connection: sa.Connection) -> list[HistoryRow]:
    history = OURS.saga_history
    rows = connection.execute(sa.select(history).order_by(history.c.saga_id, history.c.number))
    return [
        HistoryRow(str(r.saga_id), r.number, r.revision, r.transition, r.step, r.attempt, r.detail)
        for r in rows
    ]


def _is_said(body: bytes) -> bool:
    word: str = json.loads(body)["word"]
    return word.partition(" ")[0] not in ANSWERING  # those are the handlers' answers
