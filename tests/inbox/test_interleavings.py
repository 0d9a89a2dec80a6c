"""Every interleaving of deliveries and retries of one key, each in a process of its own.

The code under test is that of `handling` and `waiting`; only its transactions run on the
explorer's own threads, so that each statement is a step.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga import SyncHandlerContext
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.handlers import Handlers
from outbox_saga.handling import Handling
from outbox_saga.queries import waiting
from outbox_saga.testing.interleaving import Exploration, Play, Point, Run, explore
from outbox_saga.waiting import WaitingRoom
from outbox_saga.worker_threads import Threads
from tests.inbox.processes import FEW, note_in_thread, said
from tests.relay.house import House, Said, till

pytestmark = [
    pytest.mark.databases("postgres18"),
    pytest.mark.needs_a_session("the explorer asks the server who waits, by a session's number"),
]


class Inline(Threads):
    """Runs at once, in the thread that asks: the explorer knows an actor by its thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  # as an executor does
            future.set_exception(error)
        return future

    def outlived(self, work: Future[Any]) -> None:
        raise AssertionError("nothing here outlives its time")

    @property
    def all_overdue(self) -> bool:
        return False


class OneThread(Database):
    """A database whose verbs run where they are called from."""

    async def run(self, verb: Any, *args: Any, **kwargs: Any) -> Any:
        with self.engine.begin() as connection:
            return verb(connection, *args, **kwargs)

    async def look(self, verb: Any, *args: Any, **kwargs: Any) -> Any:
        return await self.run(verb, *args, **kwargs)


class Process:
    """One process of the service, with a handler that fails on these words, once each."""

    def __init__(self, house: House, *poison: str) -> None:
        self.database = OneThread(house.url, clock=house.clock, pool_size=1)
        self.poison: set[str] = set()
        self._poison = poison
        handlers = Handlers("shop")
        handlers.add(Said, self._handle, "listener", retry=FEW)
        self.handling = Handling(self.database, Inline(), handlers)
        self.room = WaitingRoom(self.handling, lease=1000.0)
        self.room._checked = True

    def begin(self) -> None:
        """A fresh start."""
        self.poison = set(self._poison)

    def _handle(self, handle: SyncHandlerContext[Said]) -> None:
        if handle.message.word in self.poison:
            self.poison.discard(handle.message.word)
            raise LookupError(handle.message.word)
        note_in_thread(handle)

    def deliver(self, *envelopes: Envelope) -> Callable[[], None]:
        """As a broker hands them over: the next when the one before is acknowledged."""

        async def work() -> None:
            for envelope in envelopes:
                await self.handling.deliver(envelope)

        return lambda: _alone(work())

    def retry(self, times: int) -> Callable[[], None]:
        """Tries what is due, so often."""

        async def work() -> None:
            for _ in range(times):
                await self.room.run_once()

        return lambda: _alone(work())


def _alone(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner() as runner:
        runner.run(work)


class Stage:
    """The processes of a play, and what must be true at its end."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.n, self.next = said("n", key="k"), said("n+1", key="k")
        self.made: list[Process] = []
        self._last = Process(house)

    def process(self, *poison: str) -> Process:
        process = Process(self.house, *poison)
        self.made.append(process)
        return process

    def explore(
        self,
        actors: dict[str, Callable[[], object]],
        *,
        before: Callable[[], object] = lambda: None,
        check: Callable[[Run], str | None] | None = None,
        preemptions: int | None = 2,
    ) -> Exploration:
        def play() -> Play:
            self.empty()
            for process in self.made:
                process.begin()
            before()
            return Play(actors, check or self.check)

        engines = [process.database.engine for process in self.made]
        return explore(play, engines, steps=least_steps, preemptions=preemptions)

    def check(self, run: Run) -> str | None:
        """What is lost, doubled or out of order."""
        if run.errors:
            return f"errors: {run.errors}"
        left = self.come_to_rest()
        notes = self.notes()
        return None if (notes, left) == (["n", "n+1"], 0) else f"handled {notes}, {left} left"

    def come_to_rest(self) -> int:
        """Time passes, and one more process tries what still waits; returns how many are left."""
        shift = self.house.clock.shift
        left = self.count()
        for _ in range(4 if left else 0):
            self.house.advance(61)
            self._last.retry(1)()
            left = self.count()
        self.house.advance(shift - self.house.clock.shift)  # each run begins at the same moment
        return left

    def count(self) -> int:
        """How many messages wait."""
        table = self.house.tables.inbox_waiting
        with self._last.database.begin() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()

    def notes(self) -> list[str]:
        """What was handled, in its order."""
        with self._last.database.begin() as connection:
            return list(connection.scalars(sa.select(till.c.note).order_by(till.c.id)))

    def empty(self) -> None:
        """As when the test began."""
        tables = self.house.tables
        with self._last.database.begin() as connection:
            for table in (tables.inbox, tables.inbox_waiting, till):
                connection.execute(sa.delete(table))

    def make_due(self) -> None:
        """What failed is due now."""
        table = self.house.tables.inbox_waiting
        with self._last.database.begin() as connection:
            connection.execute(
                sa.update(table)
                .where(table.c.failed_at.is_not(None))
                .values(until=self.house.clock.now())
            )

    def close(self) -> None:
        """No connection is left."""
        for process in (self._last, *self.made):
            process.database.engine.dispose()


def least_steps(point: Point) -> bool:
    """What others wait for, or see: locks, what is written of ours, and commits.

    What is read, and the note in the till, belong to the step before.
    """
    statement = point.statement
    return point.kind == "commit" or (
        point.kind == "execute"
        and ("outbox_saga_inbox" in statement or "pg_advisory" in statement)
        and (
            not statement.startswith("SELECT") or "FOR UPDATE" in statement or "pg_a" in statement
        )
    )


@pytest.fixture
async def stage(house: House) -> AsyncIterator[Stage]:
    stage = Stage(house)
    yield stage
    stage.close()


def failing_then_next_elsewhere(stage: Stage) -> Exploration:
    """n failed; while it is tried again, a broker hands n+1 to another process."""
    first, second, third = stage.process("n"), stage.process(), stage.process()

    def n_waits_and_is_due() -> None:
        first.deliver(stage.n)()
        stage.make_due()

    return stage.explore(
        {"second": second.deliver(stage.next), "third": third.retry(2)},
        before=n_waits_and_is_due,
    )


async def test_n_plus_one_never_runs_before_n_which_is_being_tried_again(stage: Stage) -> None:
    found = await asyncio.to_thread(failing_then_next_elsewhere, stage)
    assert not found.problems, found.report()
    assert found.exhausted
    assert found.with_waits > 0, "no schedule ever waited for the lock: it was not tried"
    assert found.deadlocks == 0


async def test_without_the_lock_the_explorer_finds_the_message_that_nobody_wakes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "lock_key", lambda *_: None)
    found = await asyncio.to_thread(failing_then_next_elsewhere, stage)
    assert found.problems, found.report()


async def test_n_that_fails_here_and_is_delivered_again_there_comes_before_n_plus_one(
    stage: Stage,
) -> None:
    first, second = stage.process("n"), stage.process()
    found = await asyncio.to_thread(
        stage.explore,
        {
            "first": first.deliver(stage.n),
            "second": second.deliver(stage.n, stage.next),
        },
    )
    assert not found.problems, found.report()
    assert found.exhausted
    assert found.with_waits > 0


async def test_two_processes_that_try_what_waits_try_it_once_and_in_order(stage: Stage) -> None:
    first, second, third = stage.process("n"), stage.process(), stage.process()

    def both_wait() -> None:
        first.deliver(stage.n, stage.next)()
        stage.make_due()

    found = await asyncio.to_thread(
        stage.explore,
        {"second": second.retry(2), "third": third.retry(2)},
        before=both_wait,
        preemptions=1,
    )
    assert not found.problems, found.report()
    assert found.exhausted


async def test_handed_over_at_the_same_time_n_plus_one_runs_first_only_until_n_is_stored(
    stage: Stage,
) -> None:
    """What a broker without order across processes may do; never more than that."""
    first, second = stage.process("n"), stage.process()
    overtaken = 0

    def check(run: Run) -> str | None:
        nonlocal overtaken
        if run.errors:
            return f"errors: {run.errors}"
        if left := stage.come_to_rest():
            return f"{left} left"
        if stage.notes() == ["n", "n+1"]:
            return None
        overtaken += 1
        looked = _step(run, "second: execute INSERT INTO outbox_saga_inbox ")
        stored = _step(
            run, "first: commit", _step(run, "first: execute INSERT INTO outbox_saga_inbox_w")
        )
        return None if looked < stored else "n+1 looked after n was stored, and ran all the same"

    found = await asyncio.to_thread(
        stage.explore,
        {"first": first.deliver(stage.n), "second": second.deliver(stage.next)},
        check=check,
    )
    assert not found.problems, found.report()
    assert found.exhausted
    assert 0 < overtaken < found.schedules


def _step(run: Run, beginning: str, after: int = 0) -> int:
    return next(
        index
        for index, step in enumerate(run.trace)
        if index >= after and step.startswith(beginning)
    )
