"""One step, one transaction.

The effect, the saga's new state, its history and its messages commit together.

`Failure` and exceptions roll the step's transaction back (half a reservation must not stay); the
transition is committed in a new one.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
import logging
import math
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.calling import (
    Deadline,
    NothingRan,
    OutOfTime,
    begin_in_thread,
    call_in_time,
    place,
    refuse_coroutine,
    to_the_end,
    told,
)
from outbox_saga.database import Database
from outbox_saga.errors import LeaseLost, MessageRefused, NotDone
from outbox_saga.ids import idempotency_key
from outbox_saga.instances import ENDED, Direction, Instance
from outbox_saga.lent_session import LentSession
from outbox_saga.queries import breakers, sagas, transition
from outbox_saga.queries.delayed import Delayed
from outbox_saga.queries.dialects import is_transient, limit_idle_transaction
from outbox_saga.results import Failure, Success
from outbox_saga.saga.announcing import announce
from outbox_saga.saga.breaking import guarded, let_through, note_outcome
from outbox_saga.saga.context import StepContext, SyncStepContext, _Context
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.happened import (
    Call,
    Decision,
    Done,
    Errored,
    Flight,
    Happened,
    NotFound,
    Query,
    Refused,
    Resumed,
    Run,
    Surroundings,
    ToDo,
    Unusable,
)
from outbox_saga.saga.progress import came_late, decide
from outbox_saga.saga.remote import command_of
from outbox_saga.saga.steps import Action, Step
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga.worker_threads import Threads

logger = logging.getLogger("outbox_saga.saga")

IDLE_MARGIN = 0.5  # seconds: our own timeout comes first while this process is well
PATIENCE = 10  # times that a step's trouble with a database costs no attempt
T = TypeVar("T")


@dataclass(slots=True)
class Hand:
    """An instance in this process's hands: as last committed, and what is being carried out."""

    definition: Saga[Any]
    instance: Instance
    owner: UUID
    now: dt.datetime  # the database's time, read at `read_at`
    read_at: float
    lease: float
    lease_ends: float = (
        math.inf
    )  # by this process's monotonic clock: then somebody else may have it
    in_flight: set[Flight] = field(default_factory=set)
    untouched: bool = True  # nothing was committed since it was claimed
    lag: float = 0.0  # seconds that reading the database's time took

    def advance(self, instance: Instance) -> None:
        """Takes over what was committed.

        Of two branches that commit together, the later revision stays.
        """
        if instance.revision > self.instance.revision:
            self.untouched = False
            self.instance = instance

    def surroundings(self, reporting: Flight | None) -> Surroundings:
        """What `decide` must know.

        The database's time goes on by this process's monotonic clock.
        """
        now = self.now + dt.timedelta(seconds=time.monotonic() - self.read_at)
        in_flight = (
            frozenset(self.in_flight - {reporting}) if reporting else frozenset(self.in_flight)
        )
        return Surroundings(
            now,
            in_flight,
            self.lease,
            str(self.instance.id),
            self.instance.started_at,
            lag=self.lag,
        )


class Execution:
    """Carries out what `decide` asked for.

    Knows one database and a pool of threads for plain `def` actions.
    """

    def __init__(self, database: Database, threads: Threads) -> None:
        self.database = database
        self.threads = threads
        self.lateness = 600.0  # seconds that the answer of a call that came late is kept
        self._troubles: Counter[tuple[UUID, str, str]] = Counter()
        self._late: dict[tuple[UUID, Flight], asyncio.Future[Any]] = {}

    async def resume(self, hand: Hand, happened: Happened) -> Decision:
        """Commits the transition for what happened, in a transaction of its own."""
        if isinstance(happened, Resumed):
            # mostly there is nothing to write, and then no transaction is needed to see it
            decision = decide(
                hand.definition, hand.instance.state, happened, hand.surroundings(None)
            )
            nothing = decision.state == hand.instance.state and not decision.entries
            if nothing and not guarded(hand.definition, decision.todo):
                return decision
        decision, instance = await self.database.run(self._record_alone, hand, happened, [])
        hand.advance(instance)
        return decision

    async def carry_out(self, hand: Hand, todo: ToDo) -> Decision:
        """Runs, calls or asks; commits the outcome.

        Raises:
            LeaseLost: Another process has the instance; nothing of this attempt was committed.
        """
        if isinstance(todo, Run):
            return await self._run(hand, todo)
        if isinstance(todo, Call):
            return await self._call(hand, todo)
        return await self._query(hand, todo)

    # --- local steps -----------------------------------------------------------------------------

    async def _run(self, hand: Hand, todo: Run) -> Decision:
        step = hand.definition.steps[todo.step]
        action = _action(step, todo.direction)
        started = hand.surroundings(None).now
        try:
            if inspect.iscoroutinefunction(action):
                outcome = await self._run_async(hand, todo, step, action, started)
            else:
                outcome = await self._run_in_thread(hand, todo, step, action, started)
        except LeaseLost:
            raise
        except Exception as error:
            if is_transient(error) and self._bear(hand, todo):
                raise  # the database's trouble, not the step's: no attempt is used up
            outcome = _errored(todo, told(error), started)
        self._troubles.pop((hand.instance.id, todo.step, todo.direction), None)
        if isinstance(outcome, Decision):
            return outcome
        return await self.resume(hand, outcome)

    def _bear(self, hand: Hand, todo: Run) -> bool:
        """True a bounded number of times: a step's own trouble with some database may not end."""
        key = (hand.instance.id, todo.step, todo.direction)
        self._troubles[key] += 1
        return self._troubles[key] <= PATIENCE

    async def _run_async(
        self, hand: Hand, todo: Run, step: Step, action: Action, started: dt.datetime
    ) -> Decision | Happened:
        seconds = step.time_for(todo.direction)
        async with self.database.lend_async() as session:
            lent = session.sync_session
            assert isinstance(lent, LentSession)
            await session.run_sync(lambda _: self._open(lent, seconds))
            context = _context(StepContext, hand, todo, self._uow(hand, session))
            try:
                answer = await call_in_time(action, context, seconds)
            except TimeoutError as error:
                in_use = isinstance(error, OutOfTime) and error.task is not None
                await session.run_sync(lambda _: lent.abandon(in_use=in_use))
                late = f"timed out after {seconds} s" if not str(error) else told(error)
                return _errored(todo, late, started, code="timeout")
            happened = _answered(todo, answer, started)
            if not isinstance(happened, Done):
                await session.run_sync(lambda _: lent.undo())
                return happened
            # from here on nothing of the user's runs; a cancelled commit would leave its outcome
            # unknown
            outcome: Decision | Happened = await to_the_end(
                session.run_sync(lambda _: self._settle(lent, hand, happened))
            )
            return outcome

    async def _run_in_thread(
        self, hand: Hand, todo: Run, step: Step, action: Action, started: dt.datetime
    ) -> Decision | Happened:
        deadline = Deadline()
        seconds = step.time_for(todo.direction)

        def work() -> Decision | Happened | None:
            with self.database.lend() as session:
                self._open(session, seconds)
                context = _context(SyncStepContext, hand, todo, self._uow(hand, session))
                happened = _answered(todo, action(context), started)
                if not isinstance(happened, Done):
                    session.undo()
                    return happened
                if not deadline.claim_commit():
                    session.undo()
                    return None
                return self._settle(session, hand, happened)

        # the timed-out thread keeps its place in the pool until it ends
        future, in_time = await begin_in_thread(self.threads, work, seconds)
        if not in_time and deadline.expire():
            future.add_done_callback(_ended_late)
            return _errored(todo, f"timed out after {seconds} s", started, code="timeout")
        outcome: Decision | Happened | None = await to_the_end(future)
        assert outcome is not None
        return outcome

    def _open(self, session: LentSession, seconds: float) -> None:
        # a process that stands still must not hold row locks for longer than its step may take
        limit_idle_transaction(session.lend(), seconds + IDLE_MARGIN)

    def _uow(self, hand: Hand, session: Any) -> UnitOfWork[Any]:
        return UnitOfWork(
            session,
            schema=self.database.tables.schema,
            source=hand.instance.source,
            correlation_id=hand.instance.correlation_id,
        )

    def _settle(self, session: LentSession, hand: Hand, happened: Done) -> Decision | Happened:
        """The end of a local step's transaction.

        Messages are written by the commit itself, after the state. An effect that came too late
        to count must not stay: it is rolled back, and only its coming is recorded.
        """
        session.flush()
        decision, instance = self._record(session.taken_back(), hand, happened, [])
        if _came_too_late(decision):
            session.undo()
            return happened
        session.settle()
        hand.advance(instance)
        return decision

    # --- external steps --------------------------------------------------------------------------

    async def _call(self, hand: Hand, todo: Call) -> Decision:
        step = hand.definition.steps[todo.step]
        happened, kept = await self._outside(hand, todo, step, _action(step, todo.direction))
        return await self._report(hand, happened, kept)

    async def _query(self, hand: Hand, todo: Query) -> Decision:
        step = hand.definition.steps[todo.step]
        assert step.query is not None
        call = Call(todo.step, "do", todo.attempt)
        late = self._late.get((hand.instance.id, (todo.step, "do")))
        if late is not None:
            # our own call still goes on: nobody can believe "not found" before it has ended
            await asyncio.wait({late}, timeout=step.timeout)
            if not late.done():
                happened: Happened = _errored(
                    call, "still calling", None, unknown=True, code="timeout"
                )
            else:
                happened = _outcome(call, late)
            if isinstance(happened, Done):
                return await self._report(hand, happened, [])
            if not late.done():
                assert isinstance(happened, Errored)
                return await self._report(hand, replace(happened, attempt=todo.attempt + 1), [])
        happened, kept = await self._outside(hand, call, step, step.query, asking=True)
        if isinstance(happened, Errored):  # the question itself failed: it counts, so that it ends
            happened = replace(happened, attempt=todo.attempt + 1)
        elif isinstance(happened, Refused) or (
            isinstance(happened, Done) and happened.added is None
        ):
            happened = NotFound(todo.step, todo.attempt)
        return await self._report(hand, happened, kept)

    async def _outside(
        self, hand: Hand, todo: Call, step: Step, action: Action, *, asking: bool = False
    ) -> tuple[Happened, list[Delayed]]:
        seconds = step.time_for(todo.direction)
        started = hand.surroundings(None).now
        asynchronous = inspect.iscoroutinefunction(action)
        try:
            context: _Context[Any] = _context(
                StepContext if asynchronous else SyncStepContext, hand, todo, None
            )
        except Exception as error:  # noqa: BLE001  # users' validators
            failed = _errored(todo, f"its data does not load ({place(error)})", started)
            return replace(failed, asked=False), []

        def called() -> Any:
            if time.monotonic() >= hand.lease_ends:
                # this process stood still since the intent was committed: whoever has the instance
                # now calls under the same key
                raise LeaseLost(f"saga {hand.instance.id}: its lease ran out before the call")
            return action(context)

        try:
            if asynchronous:
                answer = await call_in_time(lambda _: called(), context, seconds)
            else:
                future, in_time = await begin_in_thread(self.threads, called, seconds)
                if not in_time and not asking:
                    self._keep_late(hand, todo, future)
                answer = future.result() if in_time else await _no_answer()
            return _answered(todo, answer, started), context.kept
        except LeaseLost:
            raise
        except TimeoutError as error:
            if isinstance(error, OutOfTime) and error.task is not None and not asking:
                self._keep_late(hand, todo, error.task)
            late = f"no answer within {seconds} s" if not str(error) else told(error)
            return _errored(todo, late, started, unknown=True, code="timeout"), []
        except NothingRan as error:
            return replace(_errored(todo, told(error), started), asked=False), []
        except NotDone as error:
            return _errored(todo, told(error), started, code="not_done"), []
        except Exception as error:  # noqa: BLE001  # users' code
            # whatever it was: the request may have arrived
            return _errored(todo, told(error), started, unknown=True), []

    def _keep_late(self, hand: Hand, todo: Call, future: asyncio.Future[Any]) -> None:
        key: tuple[UUID, Flight] = (hand.instance.id, (todo.step, todo.direction))
        self._late[key] = future

        def pop() -> None:
            if self._late.get(key) is future:  # and not of a later attempt, which is late, too
                del self._late[key]

        def forget(ended: asyncio.Future[Any]) -> None:
            _ended_late(ended)
            asyncio.get_running_loop().call_later(self.lateness, pop)

        future.add_done_callback(forget)

    async def _report(self, hand: Hand, happened: Happened, kept: list[Delayed]) -> Decision:
        try:
            return await self._report_in_time(hand, happened, kept)
        except LeaseLost:
            if isinstance(happened, Done) and happened.direction == "do":
                # what was done has to be undone, whoever did it and whoever has the instance now
                await self.database.run(self._record_late, hand, happened, kept)
            raise

    async def _report_in_time(
        self, hand: Hand, happened: Happened, kept: list[Delayed]
    ) -> Decision:
        try:
            decision, instance = await self.database.run(self._record_alone, hand, happened, kept)
        except MessageRefused as error:
            if not isinstance(happened, Done):
                raise
            # it was done, but going on without its answer would be wrong
            logger.error(  # noqa: TRY400  # a traceback shows values of the data
                "step %s of saga %s answered what does not fit: %s",
                happened.step,
                hand.instance.id,
                error,
            )
            reason = f"its answer does not fit the saga's data ({error.path})"
            decision, instance = await self.database.run(
                self._record_alone, hand, Unusable(happened.step, happened.attempt, reason), []
            )
        hand.advance(instance)
        return decision

    def _record_late(
        self, connection: sa.Connection, hand: Hand, happened: Done, kept: list[Delayed]
    ) -> None:
        """Another process has the instance: it is told, and finds it at its next transition."""
        tables, clock = self.database.tables, self.database.clock
        limit_idle_transaction(connection, hand.lease)
        current = sagas.read(connection, tables, hand.instance.id, lock=True)
        if current is None:
            return
        generation = hand.instance.state.steps[happened.step].generation
        # one of a later version has data that is not ours to write
        usable = current.shape == hand.instance.shape
        state, entries = came_late(
            hand.definition, current.state, happened, generation, usable=usable
        )
        if state == current.state:
            return  # it is known already: who was passed changes nothing
        moved = transition.record(
            connection,
            tables,
            clock,
            current,
            state,
            None if state.status in ENDED else clock.read(connection),
            entries,
            keep_lease=True,
            keep_deaths=True,
        )
        assert moved, "it is locked"
        announce(connection, tables.schema, hand.definition, current, state, entries)
        uow = UnitOfWork(connection, schema=tables.schema)
        for message in kept:
            uow.keep_sealed(*message)

    # --- the transition --------------------------------------------------------------------------

    def _record_alone(
        self, connection: sa.Connection, hand: Hand, happened: Happened, kept: list[Delayed]
    ) -> tuple[Decision, Instance]:
        # a process that stands still before the commit must not keep the row from its successor
        limit_idle_transaction(connection, hand.lease)
        return self._record(connection, hand, happened, kept)

    def _record(
        self,
        connection: sa.Connection,
        hand: Hand,
        happened: Happened,
        kept: list[Delayed],
    ) -> tuple[Decision, Instance]:
        """Compare-and-set and history, in the transaction of `connection`; the caller commits.

        A lost compare-and-set is not a lost step: another branch of the same saga moved it, so the
        row is read again, locked, and decided again. Only a lease that was taken over ends it.

        Args:
            kept: What the step published; it leaves if the step has succeeded.
        """
        tables, clock = self.database.tables, self.database.clock
        flight = None
        if isinstance(happened, Done | Refused | Errored):
            flight = (happened.step, happened.direction)
        elif isinstance(happened, NotFound | Unusable):
            flight = (happened.step, "do")
        around = hand.surroundings(flight)
        seen = hand.instance
        opened = note_outcome(connection, tables, clock, hand.definition, happened)
        probes: frozenset[str] = frozenset()
        for locked in (False, True):
            if locked:
                # the first decision's; left there they would hold back the calls of this one
                breakers.give_back(connection, tables, clock, probes)
                current = sagas.read(connection, tables, seen.id, lock=True)
                if current is None or current.epoch != seen.epoch:
                    raise LeaseLost(f"saga {seen.id} was taken over; this attempt was rolled back")
                seen = current
            state = seen.state
            decision, probes = let_through(
                connection,
                tables,
                clock,
                hand.definition,
                lambda gates, state=state: decide(  # type: ignore[misc]
                    hand.definition, state, happened, replace(around, gates=gates)
                ),
                hand.lease,
            )
            if opened is not None:
                decision = replace(decision, entries=(*decision.entries, opened))
            if decision.state == seen.state and not decision.entries:
                return decision, seen  # nothing to write: an instance taken up to run a local step
            if transition.record(
                connection,
                tables,
                clock,
                seen,
                decision.state,
                decision.due,
                decision.entries,
                keep_lease=decision.busy,
                keep_deaths=isinstance(happened, Resumed),
            ):
                break
        else:
            raise LeaseLost(f"saga {seen.id} was taken over; this attempt was rolled back")
        announce(
            connection, tables.schema, hand.definition, seen, decision.state, decision.entries
        )
        uow = UnitOfWork(connection, schema=tables.schema)
        if isinstance(happened, Done) and not _came_too_late(decision):
            for message in kept:
                uow.keep_sealed(*message)
        for send in decision.sends:
            uow.keep_sealed(command_of(hand.definition, seen, send))
        deaths = seen.deaths if isinstance(happened, Resumed) else 0
        moved = replace(seen, revision=seen.revision + 1, state=decision.state, deaths=deaths)
        return decision, moved


def _came_too_late(decision: Decision) -> bool:
    return any(entry.transition == "IGNORED" for entry in decision.entries)


def _action(step: Step, direction: Direction) -> Action:
    if direction == "do":
        return step.action
    assert callable(step.compensation)
    return step.compensation


def _context(kind: type[Any], hand: Hand, todo: Run | Call, uow: UnitOfWork[Any] | None) -> Any:
    instance = hand.instance
    state = instance.state.steps[todo.step]
    data = (
        state.input if isinstance(todo, Call) and state.input is not None else instance.state.data
    )
    return kind(
        saga_id=instance.id,
        saga=instance.name,
        step=todo.step,
        direction=todo.direction,
        attempt=todo.attempt,
        key=idempotency_key(instance.id, todo.step, todo.direction, state.generation),
        data=hand.definition.load(data),
        source=instance.source,
        correlation_id=instance.correlation_id,
        uow=uow,
    )


def _answered(todo: Run | Call, answer: object, started: dt.datetime | None) -> Happened:
    refuse_coroutine(answer)
    if isinstance(answer, Failure):
        return Refused(todo.step, todo.direction, todo.attempt, str(answer.error), started)
    added = answer.value if isinstance(answer, Success) else answer
    if todo.direction == "undo":
        added = None
    return Done(todo.step, todo.direction, todo.attempt, added, started)


def _errored(
    todo: Run | Call,
    error: str,
    started: dt.datetime | None,
    *,
    unknown: bool = False,
    code: str = "error",
) -> Errored:
    step, direction, attempt = todo.step, todo.direction, todo.attempt
    return Errored(step, direction, attempt, error, unknown, started, code=code)


def _outcome(todo: Call, ended: asyncio.Future[Any]) -> Happened:
    """What a call said that ended after its time."""
    if ended.cancelled() or ended.exception() is not None:
        return _errored(todo, "ended late, with an error", None, unknown=True)
    try:
        return _answered(todo, ended.result(), None)
    except NothingRan as error:
        return _errored(todo, told(error), None)


def _ended_late(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        logger.info("a step that had timed out ended with %s", type(error).__name__)


async def _no_answer() -> NoReturn:
    raise TimeoutError
