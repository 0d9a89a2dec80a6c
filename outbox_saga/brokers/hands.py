"""The messages one process has in hand: what every adapter does between its broker and `handle`.

As many at once as wanted, those of a key one after another; every one ends as acknowledged,
rejected or given back, whatever its handler does and however the process is stopped. An adapter
hands over what its broker brings (`take`) and passes on the answers (`Answers`).
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterator
from itertools import count
from typing import Final, Generic, TypeVar

from outbox_saga.brokers.contract import Handle, Subscription
from outbox_saga.brokers.in_hand import Answers, InHand
from outbox_saga.brokers.lanes import Lanes
from outbox_saga.brokers.outages import Outages, until
from outbox_saga.ids import new_id
from outbox_saga.retries import Retry

logger = logging.getLogger(__name__)

Ticket = TypeVar("Ticket")

# For messages whose handler raised.
_AGAIN: Final = Retry(initial=0.5, max_delay=60.0)
# A message held back for an earlier one of its key comes at least so long after it.
_BEHIND: Final = 0.25
# Messages in hand at most, with those that wait for their key or for their next try: they cost
# memory, and a partition that settles in order goes no further than them.
MOST_IN_HAND: Final = 256
# Bytes of their bodies from which on nothing more is asked for than what can be begun.
MOST_BYTES: Final = 16 * 2**20


class Hands(Generic[Ticket]):
    """Hands deliveries to a handler, and every one of them is answered.

    Args:
        subscription: Whose.
        answers: To whom.
        grace: Seconds that handlers get to finish when the process stops.
        wake: Called when there is room for more.
        patience: Seconds after it is due that a message which the broker took back is awaited
            before later ones of its key; None where the broker takes none back with a delay: they
            wait here, and their keys behind them.
    """

    def __init__(
        self,
        subscription: Subscription,
        answers: Answers[Ticket],
        *,
        grace: float,
        wake: Callable[[], None],
        patience: float | None = None,
    ) -> None:
        self.stopping = False
        self._finishing = False
        self._consumer = subscription.consumer
        self._concurrency = subscription.concurrency
        self._most = max(MOST_IN_HAND, 4 * subscription.concurrency)
        self._answers = answers
        self._grace = grace
        self._wake = wake
        self._holds = patience is None
        self._patience = patience or 0.0
        self._lanes: Lanes[InHand[Ticket], Ticket] = Lanes(self._patience)
        self._arrivals = count(1)
        self._in_hand: dict[Hashable, InHand[Ticket]] = {}
        self._ready: deque[InHand[Ticket]] = deque()
        self._tasks: dict[asyncio.Task[None], InHand[Ticket]] = {}
        self._held: dict[InHand[Ticket], asyncio.TimerHandle] = {}
        self._handle: Handle | None = None
        self._outages = Outages(subscription.consumer)
        self._seed = str(new_id())  # processes do not come back in step

    def __iter__(self) -> Iterator[InHand[Ticket]]:
        """Those in hand that the broker waits for, so it has to be told that they are."""
        return (each for each in tuple(self._in_hand.values()) if each.is_open)

    @property
    def room(self) -> int:
        """How many more to ask for: a finished handler finds its next message here, without a
        round trip. What waits for its key or for its next try counts apart, so that a slow key
        keeps no other from hands that are idle.
        """
        here = len(self._in_hand)
        could_go_on = len(self._tasks) + len(self._ready)
        wanted = min(2 * self._concurrency - could_go_on, self._most - here)
        if wanted > 0 and here >= 2 * self._concurrency and self._bytes() >= MOST_BYTES:
            return 0
        return max(0, wanted)

    @property
    def idle(self) -> bool:
        """Whether a message that comes now would be begun at once, if its key is free."""
        return len(self._tasks) < self._concurrency

    def _bytes(self) -> int:
        return sum(len(each.body) for each in self._in_hand.values())

    async def run(
        self,
        handle: Handle,
        stop: Callable[[], Awaitable[object]],
        serve: Callable[[asyncio.Task[None]], Awaitable[None]],
    ) -> None:
        """Calls `serve` until `stop()` returns; then waits for what is in hand.

        Args:
            serve: One connection's life: returns when the task it gets is done or the connection
                is lost. Its BrokerUnavailable is waited for, ever longer.
        """
        self._handle = handle
        self.stopping = self._finishing = False
        self._lanes = Lanes(self._patience)  # keys of messages given back last time are free again
        stopped = until(stop)
        stopped.add_done_callback(lambda _: self._wake())
        try:
            await self._outages.outlive(stopped, serve)
            await self._finish(self._grace)
            stopped.result()  # an error of `stop` itself is the caller's
        finally:
            stopped.cancel()
            await self._finish(0.0)

    def is_well(self) -> None:
        """The broker answers: the next trouble is told again, and its pauses start anew."""
        self._outages.over()

    async def take(self, delivery: InHand[Ticket]) -> None:
        """Never waits for a handler, or the next delivery would wait too."""
        mark = delivery.mark
        twin = self._in_hand.get(mark)
        if twin is not None:
            # Delivered again while in hand: one of them is enough, and is answered where the
            # broker now expects it.
            twin.ticket = delivery.ticket
            return
        key = delivery.key
        if self.stopping and (key is None or key not in self._lanes):
            await self._answers.give_back(delivery.ticket, 0.0)
            return
        if delivery.place is None:
            delivery.place = next(self._arrivals)
        place, now = delivery.place, time.monotonic()
        if key is not None:
            due = self._lanes.blocked_until(key, place, now)
            if due is not None:
                delay = max(due - now, 0.0) + _BEHIND
                self._lanes.away(key, place, now + delay, delivery.ticket)
                await self._answers.give_back(delivery.ticket, delay)
                return
        delivery.answers, delivery.holds = self._answers, self._holds
        self._in_hand[mark] = delivery
        if key is None or self._lanes.enter(key, place, delivery):
            self._ready.append(delivery)
            self._begin()

    async def part_with(self, lost: Callable[[InHand[Ticket]], bool], within: float) -> None:
        """Before others get these: those not begun are dropped, those begun may end in time."""
        self._drop(lost)
        if tasks := [task for task, delivery in self._tasks.items() if lost(delivery)]:
            await asyncio.wait(tasks, timeout=within)
        self.forget(lost)

    def forget(self, lost: Callable[[InHand[Ticket]], bool] = lambda _: True) -> None:
        """The broker took these back: those not begun are dropped, the others answer nobody."""
        self._drop(lost)
        for delivery in [each for each in self._in_hand.values() if lost(each)]:
            del self._in_hand[delivery.mark]
            delivery.answers = None

    def _drop(self, lost: Callable[[InHand[Ticket]], bool]) -> None:
        begun = set(self._tasks.values())
        dropped = [d for d in self._in_hand.values() if lost(d) and d not in begun]
        for delivery in dropped:
            del self._in_hand[delivery.mark]
        for delivery in dropped:
            if (timer := self._held.pop(delivery, None)) is not None:
                timer.cancel()
            elif delivery in self._ready:
                self._ready.remove(delivery)
            else:
                continue  # it waits in its lane, which passes over what is not here
            self._leave(delivery)
        self._begin()

    def forget_overdue(self) -> None:
        """Now and then: memory does not grow with the keys ever seen."""
        self._lanes.forget_overdue(time.monotonic())

    # Handling

    def _begin(self) -> None:
        while self._ready and len(self._tasks) < self._concurrency and not self.stopping:
            delivery = self._ready.popleft()
            task = asyncio.create_task(self._work(delivery))
            self._tasks[task] = delivery
            task.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("consumer %s: %s in the adapter", self._consumer, type(error).__name__)
        self._begin()
        self._wake()

    async def _work(self, delivery: InHand[Ticket]) -> None:
        assert self._handle is not None
        try:
            await self._handle(delivery)
            if not delivery.settled:
                logger.warning("consumer %s: %s was not settled", self._consumer, delivery)
                await delivery.retry(self._again(delivery))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            ours = task is not None and task.cancelling() > 0
            # Cancelled after the grace: it goes back at once, another process begins it anew.
            await delivery.retry(0.0 if ours else self._again(delivery))
        except Exception as error:  # noqa: BLE001 - whatever a handler raises, its message comes again
            delay = self._again(delivery)
            logger.error(  # noqa: TRY400 - the text and the locals of an error may hold the payload
                "consumer %s: handling %s raised %s at %s; it comes again in %.1f s",
                self._consumer,
                delivery,
                type(error).__name__,
                _where(error),
                delay,
            )
            await delivery.retry(delay)
        finally:
            await self._ended(delivery)

    async def _ended(self, delivery: InHand[Ticket]) -> None:
        ours = self._in_hand.get(delivery.mark) is delivery
        if ours and self._holds and delivery.again_in is not None:
            if not self.stopping:
                loop = asyncio.get_running_loop()
                timer = loop.call_later(delivery.again_in, self._once_more, delivery)
                self._held[delivery] = timer
                return
            await self._answers.give_back(delivery.ticket, 0.0)
        if ours:
            del self._in_hand[delivery.mark]
        if self._finishing:
            if (ended := delivery.key) is not None:
                await self._give_back(lambda key, _: key == ended)
        elif delivery.again_in is not None and not self._holds:
            await self._send_back_behind(delivery, delivery.again_in)
        self._leave(delivery)

    def _once_more(self, delivery: InHand[Ticket]) -> None:
        del self._held[delivery]
        delivery.once_more()
        self._ready.append(delivery)
        self._begin()

    async def _send_back_behind(self, delivery: InHand[Ticket], again_in: float) -> None:
        """All of its key that are here go back behind it."""
        key, now = delivery.key, time.monotonic()
        if key is None or delivery.place is None:
            return
        delay = again_in + _BEHIND
        place, due = delivery.place, now + again_in
        for other in self._lanes.send_back(key, place, due, delivery.ticket):
            if self._is_here(other) and other.place is not None:
                del self._in_hand[other.mark]
                self._lanes.away(key, other.place, now + delay, other.ticket)
                await self._answers.give_back(other.ticket, delay)

    def _leave(self, delivery: InHand[Ticket]) -> None:
        """Lets the next of its key go on."""
        if delivery.key is None:
            return
        following = self._lanes.leave(delivery.key)
        while following is not None and not self._is_here(following):
            following = self._lanes.leave(delivery.key)  # given back, or taken back
        if following is not None:
            self._ready.append(following)

    def _is_here(self, delivery: InHand[Ticket]) -> bool:
        return self._in_hand.get(delivery.mark) is delivery

    async def _finish(self, grace: float) -> None:
        """Gives back what was not begun, waits for the rest, and makes sure the answers leave.

        What is given back comes again in the order in which it was: so the next process begins a
        key where this one left it. What stands behind a message that is being handled goes back
        after the answer to that one.
        """
        self.stopping = self._finishing = True
        self._ready.clear()
        for timer in self._held.values():
            timer.cancel()
        self._held.clear()
        begun = dict[str, int]()
        for delivery in self._tasks.values():
            if delivery.key is not None and delivery.place is not None:
                begun[delivery.key] = delivery.place
                delivery.at_once = True
        await self._give_back(
            lambda key, place: key is None or key not in begun or place < begun[key]
        )
        if self._tasks and grace:
            await asyncio.wait(self._tasks, timeout=grace)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        await self._answers.flush()

    async def _give_back(self, which: Callable[[str | None, int], bool]) -> None:
        """All of these (key, place) that were not begun, the earliest first.

        Also those that were sent back for later: until then the next process, which knows nothing
        of them, would get later ones of their keys.
        """
        begun = set(self._tasks.values())
        here = [each for each in self._in_hand.values() if each not in begun]
        going = [each for each in here if which(each.key, each.place or 0)]
        for delivery in going:
            del self._in_hand[delivery.mark]
        back = [(each.place or 0, each.ticket) for each in going]
        back += self._lanes.call_back(which, time.monotonic() - _BEHIND)
        for _, ticket in sorted(back, key=lambda entry: entry[0]):
            await self._answers.give_back(ticket, 0.0)

    def _again(self, delivery: InHand[Ticket]) -> float:
        return _AGAIN.delay(delivery.attempt, seed=f"{self._seed}:{delivery.mark}")


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
