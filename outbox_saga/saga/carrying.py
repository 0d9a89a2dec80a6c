"""One instance in hand: carried on as far as it goes, its branches side by side."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from outbox_saga.calling import place
from outbox_saga.errors import LeaseLost, MessageRefused, OutboxSagaError
from outbox_saga.instances import Instance
from outbox_saga.queries.dialects import brief
from outbox_saga.queries.passing import passes
from outbox_saga.saga.execution import Execution
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.happened import Decision, Flight, Resumed, Run, ToDo, flight_of

logger = logging.getLogger("outbox_saga.saga")

TROUBLE_PAUSE = 1.0  # seconds until an instance is taken up again that could not be carried on
HOPELESS = 5  # times in a row that it could not, for the same reason each time, as it seems

Running = dict[asyncio.Task[Decision], Flight]


class Carrying:
    """Drives instances that this process has leased.

    Args:
        execution: Carries out what is decided.
        release: Gives an instance back, due after so many seconds; None: when it was before.
    """

    def __init__(
        self,
        execution: Execution,
        release: Callable[[Instance, float | None], Awaitable[None]],
    ) -> None:
        self._execution = execution
        self._release = release
        self._hopeless: Counter[tuple[Any, int]] = Counter()

    async def on(self, hand: Hand) -> None:
        """Until it ends, waits for a moment, or another process has it."""
        running: Running = {}
        try:
            await self._drive(hand, running)
            self._hopeless.pop((hand.instance.id, hand.instance.revision), None)
        except LeaseLost as error:
            logger.warning("%s", error)
            # what they do outside has to be told, too, and a call in a thread goes on anyway
            await self._settle(running)
        except Exception as error:  # noqa: BLE001  # logged; the instance is taken up again
            if passes(error):
                logger.warning(
                    "saga %s: trouble with the database (%s)", hand.instance.id, brief(error)
                )
            else:
                # type and place only: a message may show what the saga works on
                logger.error(  # noqa: TRY400
                    "saga %s: could not be carried on (%s)", hand.instance.id, place(error)
                )
            await self._settle(running)
            await self._give_up_if_hopeless(hand, error)
            await self._release(hand.instance, TROUBLE_PAUSE)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _drive(self, hand: Hand, running: Running) -> None:
        taken_up = hand.instance
        decision = await self._execution.resume(
            hand, Resumed(taken_up.deaths if taken_up.orphaned else 0)
        )
        todos = decision.todo
        while True:
            self._begin(hand, running, todos)
            if not running:
                if not decision.busy:
                    await self._rest(hand, decision)
                    return  # ended, or released until it is due
                if hand.stopping:
                    await self._release(hand.instance, None)
                    return
                # each of two branches that ended together took the other one for still running
                decision = await self._execution.resume(hand, Resumed())
                todos = decision.todo
                continue
            ended = await self._something(hand, running, decision)
            for task in ended:
                hand.in_flight.discard(running.pop(task))
            decisions = [task.result() for task in ended]
            # Only the newest decision may say what to run: of an older one the local steps may
            # be done already. Calls whose intent is committed are made, whoever decided them,
            # and so are questions: one may have a breaker's probe, for which all others wait.
            calls = [t for d in decisions for t in d.todo if not isinstance(t, Run)]
            newest = next((d for d in decisions if d.state is hand.instance.state), None)
            if newest is None:
                newest = await self._execution.resume(hand, Resumed())
            decision = newest
            todos = (*calls, *(t for t in decision.todo if t not in calls))

    def _begin(self, hand: Hand, running: Running, todos: tuple[ToDo, ...]) -> None:
        for todo in todos:
            if hand.stopping and isinstance(todo, Run):
                continue  # nothing is on record of it; the intent of a call is
            if hand.begins(todo):
                task = asyncio.create_task(self._execution.carry_out(hand, todo))
                running[task] = flight_of(todo)

    async def _something(
        self, hand: Hand, running: Running, decision: Decision
    ) -> list[asyncio.Task[Decision]]:
        """What of it has ended; nothing, if before that something else of the instance is due, or
        somebody else has moved it.
        """
        after = None
        if decision.look_at is not None and not hand.stopping:
            now = hand.surroundings(None).now
            after = max(0.0, (decision.look_at - now).total_seconds())
        moved = hand.waiting = asyncio.get_running_loop().create_future()
        waited_for: set[asyncio.Future[Any]] = {moved, *running}
        try:
            await asyncio.wait(waited_for, timeout=after, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hand.waiting = None
        ended = [task for task in running if task.done()]
        if moved.done() and not ended:
            await self._execution.look_again(hand)
        return ended

    async def _rest(self, hand: Hand, decision: Decision) -> None:
        """The lease goes back, unless what was committed last has given it back: it was taken up
        before anything was due, or two branches that ended together took each other for running.
        """
        if decision.due is not None and hand.leased:
            now = hand.surroundings(None).now
            after = max(0.0, (decision.due - now).total_seconds())
            await self._release(hand.instance, after)

    async def _give_up_if_hopeless(self, hand: Hand, error: Exception) -> None:
        """What comes of the definition and the state comes each time. Trouble with the database,
        or around it, is none of the instance's.
        """
        if isinstance(error, (SQLAlchemyError, OSError, TimeoutError)) or (
            isinstance(error, OutboxSagaError) and not isinstance(error, MessageRefused)
        ):
            return
        key = (hand.instance.id, hand.instance.revision)
        self._hopeless[key] += 1
        if self._hopeless[key] < HOPELESS:
            return
        del self._hopeless[key]
        try:
            await self._execution.give_up(hand, place(error))
        except Exception as trouble:  # noqa: BLE001  # logged; it is taken up again
            logger.warning("saga %s was not given up (%s)", hand.instance.id, brief(trouble))

    @staticmethod
    async def _settle(running: Running) -> None:
        if running:
            await asyncio.gather(*running, return_exceptions=True)
