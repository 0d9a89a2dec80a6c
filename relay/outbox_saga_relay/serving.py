"""One lease's life: reading, sending and removing go on beside each other."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

from outbox_saga_relay.head_start import MANY, HeadStart
from outbox_saga_relay.lanes import Lanes
from outbox_saga_relay.outage import Outage
from outbox_saga_relay.pace import Pace
from outbox_saga_relay.sending import Sending
from outbox_saga_relay.store import Store
from outbox_saga_relay.turns import FAILURES_AT_ONCE, Turns


class Serving:
    """The database has one turn at a time, and what may be sent is sent meanwhile.

    Args:
        wake: Set when there may be something to do.
        is_stopping: Nothing more is read or sent; what is on its way is finished.
        lease: Seconds it lasts; it is renewed three times in that.
    """

    def __init__(
        self,
        store: Store,
        turns: Turns,
        lanes: Lanes,
        sending: Sending,
        outage: Outage,
        head_start: HeadStart,
        wake: asyncio.Event,
        *,
        is_stopping: Callable[[], bool],
        page_rows: int,
        lease: float,
    ) -> None:
        self._store = store
        self._turns = turns
        self._lanes = lanes
        self._sending = sending
        self._outage = outage
        self._head_start = head_start
        self._wake = wake
        self._is_stopping = is_stopping
        self._page_rows = page_rows
        self._lease = lease
        self._goes_on = False
        self._held_was_last = False
        self._page_was_last = False
        self._removal_was_last = False
        self._failures_were_last = False

    async def run(self, poll: float) -> None:
        """Publishes until it is stopped, and what was on its way has come to its end.

        Args:
            poll: Seconds between two looks at most when nothing is pending.

        Raises:
            LeaseLost, DatabaseSilent, and what else befell a turn.
        """
        pace = Pace(poll, self._lease / 3, time.monotonic())
        turn: asyncio.Task[None] | None = None
        self._goes_on = True
        try:
            while True:
                self._wake.clear()
                if turn is not None and turn.done():
                    turn.result()
                    turn = None
                stopping = self._is_stopping()
                if turn is None:
                    work = self.next_turn(pace, stopping=stopping)
                    if work is not None:
                        turn = asyncio.create_task(work)
                        turn.add_done_callback(self._turn_is_over)
                    elif stopping and not self._sending.busy:
                        return
                if self._may_send:
                    self._sending.dispatch(self._page_rows)
                await woken(self._wake, within=self._patience(pace, busy=turn is not None))
        finally:
            self._goes_on = False
            await self._sending.give_up()
            if turn is not None:
                await asyncio.gather(turn, return_exceptions=True)

    @property
    def _may_send(self) -> bool:
        lapsed = self._is_stopping() or self._store.lease.may_be_over
        return self._goes_on and not lapsed and not self._head_start.left

    def send_few(self) -> None:
        """The next of a key goes as soon as the one before it is acknowledged.

        Only few: of many the database's next statement goes first (`head_start`).
        """
        if self._lanes.ready < MANY and self._may_send:
            self._sending.dispatch(self._page_rows)

    def _turn_is_over(self, _turn: asyncio.Task[None]) -> None:
        self._head_start.end()
        self._wake.set()

    def next_turn(self, pace: Pace, *, stopping: bool) -> Coroutine[Any, Any, None] | None:
        """What the database is asked for next; None: nothing for now."""
        now, sending, turns = time.monotonic(), self._sending, self._turns
        # told once: what is due and cannot be read yet must not keep us awake
        if (now >= pace.due_at and self._store.blocked.take_due()) or turns.hinted:
            turns.hinted = False
            pace.hinted(now)
        if now >= pace.renew_at:
            pace.renews(now)
            return self._renew(pace)
        # in turn with everything else: many that fail at once keep no others waiting
        failures = bool(sending.failures) and (stopping or self._waits_no_longer(pace, now))
        if failures and not self._failures_were_last:
            self._failures_were_last = True
            return self._store_some(pace)
        self._failures_were_last = False
        if turns.hands_over:
            return turns.hand_over()
        many = len(sending.acknowledged) >= self._page_rows
        removes = bool(sending.acknowledged) and (many or stopping or now >= pace.remove_at)
        if not stopping and self._may_read:
            reading = self._next_reading(pace, now, removes=removes)
            if reading is not None:
                return reading
        if removes:
            self._removal_was_last = True
            pace.removed(now)
            return turns.remove()
        return self._store_some(pace) if failures else None

    def _next_reading(
        self, pace: Pace, now: float, *, removes: bool
    ) -> Coroutine[Any, Any, None] | None:
        """What is read next; None: nothing for now.

        Args:
            removes: What was acknowledged is to be removed; a page does that as well.
        """
        turns = self._turns
        wants = now >= pace.read_at
        reads = wants and turns.has_room
        # in turn with pages: neither a long backlog of one key nor of all others goes first. Also
        # where a page waits for room: the keys that are held would take what becomes free, and
        # what was acknowledged frees none before it is removed
        waits = (wants and self._held_was_last) or (removes and not self._removal_was_last)
        if turns.has_room_for_held and self._lanes.wanting() and not waits:
            self._held_was_last, self._removal_was_last = True, False
            return turns.read_more_of_held()
        # after a page: what was committed does not wait for what was delayed, nor for ever
        enters = now >= pace.enter_at and turns.has_room
        if enters and (self._page_was_last or not reads):
            self._page_was_last = False
            return self._enter(pace)
        if not reads:
            return None
        self._page_was_last, self._held_was_last, self._removal_was_last = True, False, True
        pace.removed(now)
        if self._lanes.ready >= MANY:
            self._head_start.begin()
        return self._read(pace)

    def _waits_no_longer(self, pace: Pace, now: float) -> bool:
        """What failed has waited for company, or is many, or is all that can fail now."""
        count = len(self._sending.failures)
        return now >= pace.store_at or count >= min(FAILURES_AT_ONCE, self._lanes.flying)

    def _patience(self, pace: Pace, *, busy: bool) -> float:
        """Seconds until something is due by itself."""
        now = time.monotonic()
        if busy:
            return self._head_start.left or min(self._lease, self._sends_again_in)
        moments = [pace.renew_at - now, self._sends_again_in]
        if (due := self._store.blocked.next_due) is not None:
            moments.append(max(due, pace.due_at - now))
        if self._sending.failures:
            moments.append(pace.store_at - now)
        if not self._is_stopping() and self._may_read and self._turns.has_room:
            moments += [pace.read_at - now, pace.enter_at - now]
        if self._sending.acknowledged:
            moments.append(pace.remove_at - now)
        return max(0.0, min(moments))

    @property
    def _may_read(self) -> bool:
        """In an outage no more than it takes to ask with another message each time."""
        return not self._outage.lasts or self._lanes.unasked < 2

    @property
    def _sends_again_in(self) -> float:
        """Seconds until something that waits for the broker's sake alone may be sent."""
        if not self._lanes.ready or self._is_stopping() or self._store.lease.may_be_over:
            return math.inf
        return self._outage.pause(self._lanes.flying)

    # --- the turns, and when the next ones are due -----------------------------------------------

    async def _read(self, pace: Pace) -> None:
        idle, begun = self._is_idle(pace), time.monotonic()
        # one statement, of one row, for as long as nothing happens
        if idle and not await self._store.anything_to_do(self._lanes.positions(-1)):
            pace.looked(begun, time.monotonic(), found=False)
            return
        if due := begun >= pace.due_at:
            pace.asked(begun)
        page = await self._turns.exchange(self._sending.take_acknowledged(), due=due)
        pace.looked(begun, time.monotonic(), found=bool(page.rows) or page.full)
        if idle:
            pace.enter_at = begun  # it may be a delayed message that the look has seen

    async def _enter(self, pace: Pace) -> None:
        entered, full = await self._turns.enter_outbox()
        now = time.monotonic()
        pace.entered(now, full=full)
        if entered:
            pace.hinted(now)

    def _is_idle(self, pace: Pace) -> bool:
        return pace.idle and not self._sending.acknowledged

    async def _store_some(self, pace: Pace) -> None:
        pace.stored(time.monotonic())
        await self._turns.store_failures()

    async def _renew(self, pace: Pace) -> None:
        looks, begun = self._is_idle(pace), time.monotonic()
        renewal = await self._turns.renew_or_lose(self._lanes.positions(-1) if looks else None)
        if renewal.waiting:
            self._turns.hinted = True
        elif looks:
            pace.looked(begun, time.monotonic(), found=False)


async def woken(wake: asyncio.Event, *, within: float) -> None:
    """Returns when it is set, or after so many seconds."""
    try:
        async with asyncio.timeout(within):
            await wake.wait()
    except TimeoutError:
        return
