"""The archive: what was published, sent again by a person's decision.

    archive = Archive(database)
    wanted = Published(topic="orders", since=moment)
    with database.begin() as connection:
        plan = archive.plan(connection, wanted, inbox_window=30 * 86_400)
    archive.replay(Decision("ada", "the broker lost its last hour"), plan.wanted, rate=200).run()

For a broker that lost what it had acknowledged. A replayed message keeps its id, so inboxes drop
it if they have handled it and not forgotten it; it gives up its place in the order.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.decisions import Decision
from outbox_saga.errors import AlreadyRunning, ConfigurationError
from outbox_saga.ids import new_id
from outbox_saga.pacing import Pace
from outbox_saga.queries import archive as verbs
from outbox_saga.queries import one_runner
from outbox_saga.queries.archive import EVERYTHING, Place, Published, Stretch
from outbox_saga.queries.operators import note_action, was_done

__all__ = ["Archive", "Plan", "Published", "Replay", "Sent", "Stretch"]

BATCH = 100  # messages a transaction; the locks of their keys are held for so long
RUNNER = "archive replay"  # of the one runner
LEASE = 60.0  # seconds after which another replay may begin when this one has died


@dataclass(frozen=True, slots=True)
class Plan:
    """What a replay would send; nothing has been done.

    Args:
        count: Messages; one that was published twice counts twice, and is sent once.
        forgotten: Of them, those that were published longer ago than inboxes remember: consumers
            may handle them a second time.
        topics: By topic.
        wanted: These messages: a replay of it sends nothing that was published since.
    """

    count: int
    forgotten: int
    topics: list[Stretch]
    wanted: Published


class Archive:
    """What a service has published, as far back as its archive goes.

    Args:
        database: The service's.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def plan(
        self,
        connection: sa.Connection,
        wanted: Published = EVERYTHING,
        *,
        inbox_window: float | None = None,
    ) -> Plan:
        """What `replay` of `Plan.wanted` would send.

        Args:
            inbox_window: Seconds for which the consumers' inboxes remember what they handled;
                None is for ever.
        """
        now = self.database.clock.read(connection)
        wanted = _published_by_now(wanted, now)
        forgotten_before = None
        if inbox_window is not None:
            forgotten_before = now - dt.timedelta(seconds=inbox_window)
        topics = verbs.count_published(
            connection, self.database.tables, wanted, forgotten_before=forgotten_before
        )
        return Plan(
            sum(topic.count for topic in topics),
            sum(topic.forgotten for topic in topics),
            topics,
            wanted,
        )

    def replay(
        self,
        decision: Decision,
        wanted: Published = EVERYTHING,
        *,
        rate: float | None = None,
        batch: int = BATCH,
    ) -> Replay:
        """Sends again what matches, in the order in which it was published; run what it gives
        back.

        Args:
            wanted: Of a plan that somebody has seen; otherwise what was published when it begins.
            rate: Messages a second; None is as fast as it goes.
            batch: Messages a transaction.

        Raises:
            ConfigurationError: A batch of nothing.
        """
        return Replay(self.database, decision, wanted, Pace(rate), batch)


@dataclass(frozen=True, slots=True)
class Sent:
    """How far a replay has come.

    Args:
        messages: Put into the outbox.
        waiting: Left out, because they wait in the outbox or are dead letters.
    """

    messages: int = 0
    waiting: int = 0


class Replay:
    """Sends each matching message once; one replay of an archive at a time, among all processes.

    It may be stopped or die anywhere: what was sent is sent. A new one begins at the beginning;
    `reached` says where this one was.

    Made by `Archive.replay`.
    """

    def __init__(
        self, database: Database, decision: Decision, wanted: Published, pace: Pace, batch: int
    ) -> None:
        if batch < 1:
            raise ConfigurationError(f"batch is {batch}; give 1 message or more")
        self.sent = Sent()
        self.reached: Place | None = None
        self.pace = pace
        self._database = database
        self._decision = decision
        self._wanted = wanted
        # a batch goes at once: of a slow replay, no more than a second's worth
        self._batch = batch if pace.rate is None else max(1, min(batch, int(pace.rate)))
        self._owner = new_id()
        self._begun = False
        self._copies = True

    def run_once(self, connection: sa.Connection) -> bool:
        """Sends the next batch, in this transaction; False when nothing is left.

        After an error, or a commit that failed, make a new replay.

        Raises:
            AlreadyRunning: Another replay of this archive is under way.
        """
        tables, clock = self._database.tables, self._database.clock
        if not one_runner.hold(connection, tables, clock, RUNNER, self._owner, self._lease):
            who = one_runner.holder(connection, tables, RUNNER)
            raise AlreadyRunning(
                f"another replay of this archive runs ({who}); wait for its end, or for "
                f"{LEASE:g} s if it has died"
            )
        if not self._begun:
            self._begin(connection)
        batch = verbs.send_again(
            connection,
            tables,
            self._wanted,
            after=self.reached,
            limit=self._batch,
            copies=self._copies,
        )
        if batch.last is None:
            self._note(connection, "archive.replay.ended", asdict(self.sent))
            one_runner.let_go(connection, tables, clock, RUNNER, self._owner)
            return False
        self.reached = batch.last
        self.sent = Sent(self.sent.messages + batch.sent, self.sent.waiting + batch.waiting)
        self.pace.went(batch.sent)
        return True

    @property
    def _lease(self) -> float:
        return LEASE + (self._batch / self.pace.rate if self.pace.rate is not None else 0.0)

    def _begin(self, connection: sa.Connection) -> None:
        # what leaves again comes back into the archive: it must not be sent for ever
        self._wanted = _published_by_now(self._wanted, self._database.clock.read(connection))
        # one id matches twice only if a copy does, which a replay has made, it may be long ago: it
        # leaves, and comes here, when the relay gets to it
        tables, since = self._database.tables, self._wanted.since
        self._copies = was_done(connection, tables, "archive.replay", since) or verbs.has_copies(
            connection, tables, self._wanted
        )
        self._note(connection, "archive.replay", asdict(self._wanted))
        self._begun = True

    def _note(self, connection: sa.Connection, action: str, detail: dict[str, Any]) -> None:
        tables, clock = self._database.tables, self._database.clock
        note_action(
            connection,
            tables,
            clock,
            self._decision,
            action,
            f"replay {self._owner}",
            detail,
        )

    def _give_up(self, connection: sa.Connection) -> None:
        self._note(connection, "archive.replay.stopped", asdict(self.sent))
        one_runner.let_go(
            connection, self._database.tables, self._database.clock, RUNNER, self._owner
        )

    def run(
        self,
        stop: threading.Event | None = None,
        *,
        told: Callable[[Sent], None] = lambda _: None,
    ) -> Sent:
        """Sends all of them, or until `stop` is set.

        Args:
            told: Called after each batch.

        Raises:
            AlreadyRunning: Another replay of this archive is under way.
        """
        stop = stop if stop is not None else threading.Event()
        more = True
        while more and not stop.wait(self.pace.pause()):
            with self._database.begin() as connection:
                more = self.run_once(connection)
            told(self.sent)
        if more and self._begun:
            with self._database.begin() as connection:
                self._give_up(connection)
        return self.sent

    async def run_async(
        self,
        stop: asyncio.Event | None = None,
        *,
        told: Callable[[Sent], None] = lambda _: None,
    ) -> Sent:
        """As `run`, on the async engine."""
        stopped = asyncio.ensure_future((stop if stop is not None else asyncio.Event()).wait())
        more = True
        try:
            while more:
                await asyncio.wait({stopped}, timeout=self.pace.pause())
                if stopped.done():
                    break
                more = await self._database.run(self.run_once)
                told(self.sent)
        finally:
            stopped.cancel()
        if more and self._begun:
            await self._database.run(self._give_up)
        return self.sent


def _published_by_now(wanted: Published, now: dt.datetime) -> Published:
    until = now if wanted.until is None else min(now, wanted.until)
    return replace(wanted, until=until)
