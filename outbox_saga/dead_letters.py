"""Dead letters: what no broker took, in the hands of a person.

    letters = DeadLetters(database)
    decision = Decision("ada", "the stream takes 2 MiB now")

    with database.begin() as connection:                          # sync
        for letter in letters.find(connection, Matching(code="too_large")):
            print(letter.id, letter.topic, letter.error)
    letter = await database.look(letters.get, id_)                # async: the same verbs
    await database.run(letters.replay, letter, decision)
    plan = await database.look(letters.plan, Matching(code="too_large"))
    letters.replay_all(decision, plan.matching, rate=50).run()

Every action names what was seen: if it is gone, or has changed, nothing happens and `SeenChanged`
says so. Every action is on record, in its own transaction.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.decisions import Decision
from outbox_saga.errors import SeenChanged
from outbox_saga.pacing import Pace
from outbox_saga.queries import dead_letter_actions as actions
from outbox_saga.queries import dead_letters as verbs
from outbox_saga.queries.dead_letters import (
    ALL,
    DeadLetter,
    Group,
    Matching,
    ParkedKey,
    PutBack,
)

__all__ = [
    "DeadLetter",
    "DeadLetters",
    "Group",
    "Matching",
    "ParkedKey",
    "Plan",
    "PutBack",
    "Sweep",
    "Swept",
]

PAGE = 500  # letters a sweep knows ahead; without their bodies

Act = Callable[[sa.Connection, DeadLetter, Decision], object]


@dataclass(frozen=True, slots=True)
class Plan:
    """What an action on many dead letters would do; nothing has been done.

    Args:
        count: Letters.
        overtaken: Of them, those that give up their place: their key is not parked for them (any
            more), so later messages of it may have been published already.
        groups: By topic and error code.
        sample: The first ones, in the order in which they would go.
        matching: These letters: `replay_all` and `discard_all` of it leave alone what has died
            since.
    """

    count: int
    overtaken: int
    groups: list[Group]
    sample: list[DeadLetter]
    matching: Matching


class DeadLetters:
    """A service's dead letters. Each verb works in the transaction of the connection it is given.

    Args:
        database: The service's.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._tables = database.tables
        self._clock = database.clock

    # --- looking -----------------------------------------------------------------------------

    def find(
        self,
        connection: sa.Connection,
        matching: Matching = ALL,
        *,
        after: int | None = None,
        limit: int = 100,
    ) -> list[DeadLetter]:
        """Dead letters in the order of their positions, which is the order of each key.

        Args:
            after: The position of the last one of the page before.
            limit: Letters; more only if others stand at the position of the last one, as after
                the promotion of a standby.
        """
        return verbs.find_letters(connection, self._tables, matching, after=after, limit=limit)

    def groups(self, connection: sa.Connection, matching: Matching = ALL) -> list[Group]:
        """How many there are of each topic and error code."""
        return verbs.count_letters(connection, self._tables, matching)

    def get(self, connection: sa.Connection, id_: UUID) -> DeadLetter:
        """The dead letter of this message.

        Raises:
            SeenChanged: There is none.
        """
        found = verbs.find_letters(connection, self._tables, ids=[id_])
        if not found:
            raise SeenChanged(f"message {id_} is no dead letter (any more); list them again")
        return found[0]

    def body(self, connection: sa.Connection, letter: DeadLetter) -> bytes:
        """The bytes as they were committed.

        Raises:
            SeenChanged: The letter is gone.
        """
        body = verbs.read_body(connection, self._tables, letter.id)
        if body is None:
            raise SeenChanged(f"dead letter {letter.id} is gone; list them again")
        return body

    def plan(
        self, connection: sa.Connection, matching: Matching = ALL, *, sample: int = 10
    ) -> Plan:
        """What `replay_all` or `discard_all` of `Plan.matching` would act on."""
        matching = _dead_by_now(matching, self._clock.read(connection))
        groups = self.groups(connection, matching)
        return Plan(
            sum(group.count for group in groups),
            sum(group.overtaken for group in groups),
            groups,
            self.find(connection, matching, limit=sample),
            matching,
        )

    def keys(
        self, connection: sa.Connection, *, after: int | None = None, limit: int = 100
    ) -> list[ParkedKey]:
        """The keys that are parked, in the order of the positions at which they are.

        Args:
            after: The position of the last one of the page before.
            limit: Keys; one that is parked at two positions is there twice.
        """
        return verbs.parked_keys(connection, self._tables, after=after, limit=limit)

    def parked(self, connection: sa.Connection, key: str) -> list[int]:
        """The positions at which this key is parked; none when it is not."""
        return verbs.parks_of(connection, self._tables, key)

    def waiting(self, connection: sa.Connection, key: str) -> int:
        """How many messages of this key wait in the outbox; reads all of it."""
        return verbs.waiting_behind(connection, self._tables, key)

    # --- acting ------------------------------------------------------------------------------

    def replay(self, connection: sa.Connection, seen: DeadLetter, decision: Decision) -> PutBack:
        """The letter is published again, under its own id, at its own place.

        Before all later messages of its key if the key is still parked for it. A broker that
        drops repeats of an id does not take it for one; an inbox does if it has handled it.

        Raises:
            SeenChanged: It is gone, or has died again since it was seen; nothing has changed.
        """
        return actions.put_back(connection, self._tables, self._clock, seen, decision)

    def discard(
        self,
        connection: sa.Connection,
        seen: DeadLetter,
        decision: Decision,
        *,
        unpark: bool = False,
    ) -> None:
        """The letter is gone for good.

        Args:
            unpark: Later messages of its key go without it. Otherwise they go on waiting.

        Raises:
            SeenChanged: It is gone, or has died again since it was seen; nothing has changed.
        """
        actions.discard(connection, self._tables, self._clock, seen, decision, unpark=unpark)

    def unpark(
        self, connection: sa.Connection, key: str, seen: list[int], decision: Decision
    ) -> None:
        """Later messages of this key go without the dead letters they waited for.

        Args:
            seen: The positions that `parked` gave.

        Raises:
            SeenChanged: The key is not parked, or not there; nothing has changed.
        """
        actions.unpark(connection, self._tables, self._clock, key, seen, decision)

    def replay_all(
        self, decision: Decision, matching: Matching = ALL, *, rate: float | None = None
    ) -> Sweep:
        """Replays every letter that matches, in the order of positions; run what it gives back.

        Args:
            matching: Of a plan that somebody has seen; otherwise those that have died when it
                begins.
            rate: Messages a second; None is as fast as it goes.
        """
        return Sweep(self, self.replay, decision, matching, Pace(rate))

    def discard_all(
        self,
        decision: Decision,
        matching: Matching = ALL,
        *,
        unpark: bool = False,
        rate: float | None = None,
    ) -> Sweep:
        """Discards every letter that matches; run what it gives back."""

        def act(connection: sa.Connection, seen: DeadLetter, by: Decision) -> None:
            self.discard(connection, seen, by, unpark=unpark)

        return Sweep(self, act, decision, matching, Pace(rate))


@dataclass(frozen=True, slots=True)
class Swept:
    """How far a sweep has come.

    Args:
        done: Letters acted on.
        changed: Letters that somebody else had taken first; they were left alone.
    """

    done: int = 0
    changed: int = 0


class Sweep:
    """Acts on each matching letter once, one transaction each, in the order of positions.

    It may be stopped or die anywhere: what is done is done, and a new sweep does the rest. What
    dies while it runs, or dies again, is not acted on.

    Made by `DeadLetters.replay_all` and `discard_all`.
    """

    def __init__(
        self,
        letters: DeadLetters,
        act: Act,
        decision: Decision,
        matching: Matching,
        pace: Pace,
    ) -> None:
        self.swept = Swept()
        self.pace = pace
        self._letters = letters
        self._act = act
        self._decision = decision
        self._matching = matching
        self._page: deque[DeadLetter] = deque()
        self._last: int | None = None
        self._begun = False

    def run_once(self, connection: sa.Connection) -> bool:
        """Acts on the next letter, in this transaction; False when there is none.

        After an error, or a commit that failed, make a new sweep.
        """
        if not self._begun:
            now = self._letters.database.clock.read(connection)
            self._matching = _dead_by_now(self._matching, now)
            self._begun = True
        if not self._page:
            self._page.extend(
                self._letters.find(connection, self._matching, after=self._last, limit=PAGE)
            )
        if not self._page:
            return False
        letter = self._page.popleft()
        self._last = letter.position
        try:
            self._act(connection, letter, self._decision)
        except SeenChanged:
            self.swept = replace(self.swept, changed=self.swept.changed + 1)
        else:
            self.swept = replace(self.swept, done=self.swept.done + 1)
            self.pace.went(1)
        return True

    def run(
        self,
        stop: threading.Event | None = None,
        *,
        told: Callable[[Swept], None] = lambda _: None,
    ) -> Swept:
        """Acts on all of them, or until `stop` is set.

        Args:
            told: Called after each letter.
        """
        stop = stop if stop is not None else threading.Event()
        more = True
        while more and not stop.wait(self.pace.pause()):
            with self._letters.database.begin() as connection:
                more = self.run_once(connection)
            told(self.swept)
        return self.swept

    async def run_async(
        self,
        stop: asyncio.Event | None = None,
        *,
        told: Callable[[Swept], None] = lambda _: None,
    ) -> Swept:
        """As `run`, on the async engine."""
        stopped = asyncio.ensure_future((stop if stop is not None else asyncio.Event()).wait())
        try:
            more = True
            while more:
                await asyncio.wait({stopped}, timeout=self.pace.pause())
                if stopped.done():
                    break
                more = await self._letters.database.run(self.run_once)
                told(self.swept)
        finally:
            stopped.cancel()
        return self.swept


def _dead_by_now(matching: Matching, now: dt.datetime) -> Matching:
    until = now if matching.until is None else min(now, matching.until)
    return replace(matching, until=until)
