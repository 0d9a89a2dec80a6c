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
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn, TypeVar
from uuid import UUID

from sqlalchemy.exc import TimeoutError as PoolTimeout

from outbox_saga.calling import (
    Deadline,
    NothingRan,
    OutOfTime,
    begin_in_thread,
    call_in_time,
    place,
    to_the_end,
    told,
)
from outbox_saga.database import Database
from outbox_saga.errors import LeaseLost, MessageRefused, NotDone
from outbox_saga.instances import Instance
from outbox_saga.lent_session import LentSession
from outbox_saga.queries import sagas
from outbox_saga.queries.delayed import Delayed
from outbox_saga.queries.dialects import is_transient, limit_idle_transaction
from outbox_saga.results import Failure
from outbox_saga.saga.attempts import (
    action_of,
    answered,
    context_of,
    errored,
    found,
    has_ended,
    note_late_end,
    outcome_of,
)
from outbox_saga.saga.breaking import guarded
from outbox_saga.saga.context import StepContext, SyncStepContext, _Context
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.happened import (
    Call,
    Decision,
    Done,
    Errored,
    Flight,
    Happened,
    Query,
    Resumed,
    Run,
    ToDo,
    Unusable,
)
from outbox_saga.saga.progress import decide
from outbox_saga.saga.recording import Recording, came_too_late
from outbox_saga.saga.steps import Action, Step
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga.worker_threads import Threads

logger = logging.getLogger("outbox_saga.saga")

IDLE_MARGIN = 0.5  # seconds: our own timeout comes first while this process is well
PATIENCE = 10  # times that a step's trouble with a database costs no attempt
T = TypeVar("T")


class Execution:
    """Carries out what `decide` asked for.

    Knows one database and a pool of threads for plain `def` actions.
    """

    def __init__(self, database: Database, threads: Threads) -> None:
        self.database = database
        self.threads = threads
        self.recording = Recording(database)
        self.lateness = 600.0  # seconds that the answer of a call that came late is kept
        self._troubles: Counter[tuple[UUID, str, str]] = Counter()
        # by key, too: under another one it is the call for another effect; with what it published
        self._late: dict[tuple[UUID, Flight, int], tuple[asyncio.Future[Any], list[Delayed]]] = {}
        self._overdue: dict[tuple[UUID, Flight], asyncio.Future[Any]] = {}

    async def resume(self, hand: Hand, happened: Happened) -> Decision:
        """Commits the transition for what happened, in a transaction of its own."""
        if isinstance(happened, Resumed):
            # mostly there is nothing to write, and then no transaction is needed to see it
            state = hand.instance.state
            decision = decide(hand.definition, state, happened, hand.deciding(state, None))
            nothing = decision.state == state and not decision.entries
            if nothing and not guarded(hand.definition, decision.todo):
                hand.will_begin(None, decision.todo)
                return decision
        decision, instance = await self._record(hand, happened)
        hand.advance(instance, leased=decision.busy)
        return decision

    async def look_again(self, hand: Hand) -> None:
        """An answer or an event has moved the instance, which is ours all the same.

        Raises LeaseLost when it is not any more.
        """
        seen = await self.database.look(sagas.read, self.database.tables, hand.instance.id)
        if seen is None or seen.epoch != hand.instance.epoch:
            raise LeaseLost(f"saga {hand.instance.id} was taken over")
        hand.advance(seen, leased=hand.leased)

    async def give_up(self, hand: Hand, why: str) -> None:
        """A person has to look at it: what keeps it from being carried on does so each time."""
        await self.database.run(self.recording.give_up, hand, why)

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

    async def _record(
        self, hand: Hand, happened: Happened, kept: Sequence[Delayed] = ()
    ) -> tuple[Decision, Instance]:
        return await self.database.run(self.recording.record_alone, hand, happened, kept)

    # --- local steps -----------------------------------------------------------------------------

    async def _run(self, hand: Hand, todo: Run) -> Decision:
        step = hand.definition.steps[todo.step]
        action = action_of(step, todo.direction)
        started = hand.surroundings(None).now
        try:
            if inspect.iscoroutinefunction(action):
                outcome = await self._run_async(hand, todo, step, action, started)
            else:
                outcome = await self._run_in_thread(hand, todo, step, action, started)
        except LeaseLost:
            raise
        except Exception as error:
            # that no connection was free says nothing about the step, however often
            full = isinstance(error, PoolTimeout)
            if full or (is_transient(error) and self._bear(hand, todo)):
                raise  # the database's trouble, not the step's: no attempt is used up
            outcome = errored(todo, told(error), started)
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
            context = context_of(StepContext, hand, todo, self._uow(hand, session))
            try:
                answer = await call_in_time(_flushed(action, session), context, seconds)
            except TimeoutError as error:
                in_use = isinstance(error, OutOfTime) and error.task is not None
                await session.run_sync(lambda _: lent.abandon(in_use=in_use))
                late = f"timed out after {seconds} s" if not str(error) else told(error)
                return errored(todo, late, started, code="timeout")
            happened = answered(todo, answer, started)
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
                context = context_of(SyncStepContext, hand, todo, self._uow(hand, session))
                happened = answered(todo, action(context), started)
                if not isinstance(happened, Done):
                    session.undo()
                    return happened
                session.flush()  # within its time: it may wait for others' locks
                if not deadline.claim_commit():
                    session.undo()
                    return None
                return self._settle(session, hand, happened)

        key: tuple[UUID, Flight] = (hand.instance.id, (todo.step, todo.direction))
        if (earlier := self._overdue.get(key)) is not None:
            # its transaction holds rows that this attempt needs: it would wait there until its
            # own time is over, and so for every attempt that the policy grants
            await has_ended(earlier, within=seconds)
        # the timed-out thread keeps its place in the pool until it ends
        future, in_time = await begin_in_thread(self.threads, work, seconds)
        if not in_time and deadline.expire():
            self._keep_overdue(key, future)
            return errored(todo, f"timed out after {seconds} s", started, code="timeout")
        outcome: Decision | Happened | None = await to_the_end(future)
        assert outcome is not None
        return outcome

    def _keep_overdue(self, key: tuple[UUID, Flight], future: asyncio.Future[Any]) -> None:
        self._overdue[key] = future

        def forget(ended: asyncio.Future[Any]) -> None:
            note_late_end(ended)
            if self._overdue.get(key) is ended:  # and not a later attempt, which is overdue, too
                del self._overdue[key]

        future.add_done_callback(forget)

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
        decision, instance = self.recording.record(session.taken_back(), hand, happened, [])
        if came_too_late(decision):
            session.undo()
            # by the time its coming is on record it might seem to have come in time
            return replace(happened, kept=False)
        session.settle()
        hand.advance(instance, leased=decision.busy)
        return decision

    # --- external steps --------------------------------------------------------------------------

    async def _call(self, hand: Hand, todo: Call) -> Decision:
        step = hand.definition.steps[todo.step]
        happened, kept = await self._outside(hand, todo, step, action_of(step, todo.direction))
        return await self._report(hand, happened, kept)

    async def _query(self, hand: Hand, todo: Query) -> Decision:
        step = hand.definition.steps[todo.step]
        assert step.query is not None
        call = Call(todo.step, "do", todo.attempt)
        number = hand.instance.state.steps[todo.step].key_number("do")
        late, kept = self._late.get((hand.instance.id, (todo.step, "do"), number), (None, []))
        if late is not None:
            # our own call still goes on: nobody can believe "not found" before it has ended
            await asyncio.wait({late}, timeout=step.timeout)
            if not late.done():
                happened: Happened = replace(
                    errored(call, "still calling", None, unknown=True, code="timeout"),
                    asked=False,
                )
            else:
                happened = outcome_of(call, late)
            if isinstance(happened, Done):
                return await self._report(hand, happened, kept)
            if not late.done():
                assert isinstance(happened, Errored)
                return await self._report(hand, replace(happened, attempt=todo.attempt + 1), [])
        happened, kept = await self._outside(hand, call, step, step.query, asking=True)
        if isinstance(happened, Errored):  # the question itself failed: it counts, so that it ends
            happened = replace(happened, attempt=todo.attempt + 1)
        return await self._report(hand, happened, kept)

    async def _outside(
        self, hand: Hand, todo: Call, step: Step, action: Action, *, asking: bool = False
    ) -> tuple[Happened, list[Delayed]]:
        seconds = step.time_for(todo.direction)
        started = hand.surroundings(None).now
        asynchronous = inspect.iscoroutinefunction(action)
        asked_from = hand.instance.state.steps[todo.step].due
        try:
            context: _Context[Any] = context_of(
                StepContext if asynchronous else SyncStepContext, hand, todo, None
            )
        except Exception as error:  # noqa: BLE001  # users' validators
            failed = errored(todo, f"its data does not load ({place(error)})", started)
            return replace(failed, asked=False), []

        def called() -> Any:
            if time.monotonic() >= hand.lease_ends:
                # this process stood still since the intent was committed: whoever has the instance
                # now calls under the same key
                raise LeaseLost(f"saga {hand.instance.id}: its lease ran out before the call")
            if (
                not asking
                and asked_from is not None
                and hand.surroundings(None).after(seconds) > asked_from
            ):
                # whoever has the instance then would ask, and be told no, while it is on its way
                raise NothingRan("no thread was free in time; it was not called")
            return action(context)

        try:
            if asynchronous:
                answer = await call_in_time(lambda _: called(), context, seconds)
            else:
                future, in_time = await begin_in_thread(self.threads, called, seconds)
                if not in_time and not asking:
                    self._keep_late(hand, todo, future, context.kept)
                answer = future.result() if in_time else await _no_answer()
            say = found if asking else answered
            return say(todo, answer, started), context.kept
        except LeaseLost:
            raise
        except TimeoutError as error:
            if isinstance(error, OutOfTime) and error.task is not None and not asking:
                self._keep_late(hand, todo, error.task, context.kept)
            late = f"no answer within {seconds} s" if not str(error) else told(error)
            return errored(todo, late, started, unknown=True, code="timeout"), []
        except NothingRan as error:
            return replace(errored(todo, told(error), started), asked=False), []
        except NotDone as error:
            return errored(todo, told(error), started, code="not_done"), []
        except Exception as error:  # noqa: BLE001  # users' code
            # whatever it was: the request may have arrived
            return errored(todo, told(error), started, unknown=True), []

    def _keep_late(
        self, hand: Hand, todo: Call, future: asyncio.Future[Any], kept: list[Delayed]
    ) -> None:
        number = hand.instance.state.steps[todo.step].key_number(todo.direction)
        key: tuple[UUID, Flight, int] = (
            hand.instance.id,
            (todo.step, todo.direction),
            number,
        )
        late = self._late[key] = (future, kept)

        def pop() -> None:
            if self._late.get(key) is late:  # and not of a later attempt, which is late, too
                del self._late[key]

        def forget(ended: asyncio.Future[Any]) -> None:
            note_late_end(ended)
            asyncio.get_running_loop().call_later(self.lateness, pop)

        future.add_done_callback(forget)

    async def _report(self, hand: Hand, happened: Happened, kept: list[Delayed]) -> Decision:
        try:
            return await self._report_in_time(hand, happened, kept)
        except LeaseLost:
            if isinstance(happened, Done) and happened.direction == "do":
                # what was done has to be undone, whoever did it and whoever has the instance now
                await self.database.run(self.recording.record_late, hand, happened, kept)
            raise

    async def _report_in_time(
        self, hand: Hand, happened: Happened, kept: list[Delayed]
    ) -> Decision:
        try:
            decision, instance = await self._record(hand, happened, kept)
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
            unusable = Unusable(happened.step, happened.attempt, reason)
            decision, instance = await self._record(hand, unusable)
        hand.advance(instance, leased=decision.busy)
        return decision


async def _no_answer() -> NoReturn:
    raise TimeoutError


def _flushed(action: Action, session: Any) -> Action:
    """The action, and the flush of what it leaves in its session: that may wait for others' locks,
    and has to end within the same time.
    """

    async def act(context: Any) -> Any:
        answer = await action(context)
        if not isinstance(answer, Failure) and (session.new or session.dirty or session.deleted):
            await session.flush()
        return answer

    return act
