"""The relay.

Reads what transactions committed, publishes it outside any transaction, removes it after the ack.

A row is removed only after its own ack; the next message of a key is sent only after the one
before was acknowledged. So two relays may overlap for a moment: they publish duplicates with the
same id, and first deliveries stay in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any

import sqlalchemy as sa

from outbox_saga.brokers import Publisher
from outbox_saga.database import Database
from outbox_saga.database_urls import split_pooler
from outbox_saga.errors import (
    BrokerDown,
    BrokerUnavailable,
    ConfigurationError,
    DatabaseSilent,
    LeaseLost,
)
from outbox_saga.hints import listening
from outbox_saga.queries.dialects import brief, is_transient, ran_out_of_time
from outbox_saga.queries.relay import OutboxRow
from outbox_saga.retries import Retry
from outbox_saga_relay.counters import Counters
from outbox_saga_relay.head_start import MANY, HeadStart
from outbox_saga_relay.lanes import Lanes
from outbox_saga_relay.lease import Renewal
from outbox_saga_relay.listening import Listener
from outbox_saga_relay.outage import Outage
from outbox_saga_relay.pace import Pace
from outbox_saga_relay.sending import Sending
from outbox_saga_relay.store import Page, Store

logger = logging.getLogger("outbox_saga.relay")

MESSAGE_RETRY = Retry(max_attempts=1_000_000, initial=0.2, max_delay=60.0)
OUTAGE_RETRY = Retry(max_attempts=1_000_000, initial=0.2, max_delay=5.0)
MAX_PAGE = 5000  # rows; SQLite allows 32,766 parameters a statement
FIRST_PAGE = 100  # rows, before the size of the bodies is known
FAILURES_AT_ONCE = 200  # stored in one transaction
PAGES_AT_ONCE = 4  # in memory, on their way or waiting


class Relay:
    """Every committed message is published at least once, of each key in the order of commits.

    Any number may run: they share the partitions, and take over from one that dies. A database
    that does not answer within its `deadline` is a connection lost: what was read or acknowledged
    is read again, and published again under the same ids.

    Args:
        database: Whose outbox.
        publisher: To which broker.
        page_rows: Rows read at once; four times as many may be in memory.
        page_bytes: Bytes of bodies read at once, about; twice as many may be in memory, and a page
            more.
        lease: Seconds after which another relay takes over from one that stopped renewing.
        poll: Seconds between two looks at most when nothing is pending; renewing the lease is one,
            too.
        retry: Backoff of a message the broker did not take; attempts are not limited, only a
            broker's definite no ends them.
        outage: Backoff while the broker takes nothing at all; no attempt is counted then.
        max_rate: Messages sent in a second at most, for a broker that others need, too.
        skip_poison: Topics whose keys go on when a message of theirs becomes a dead letter. The
            key of any other topic is parked, which keeps its order.
        service: Whose relay it is, for those who look.
        archive: What was published is kept in the archive, from where it can be sent again; prune
            it (`Housekeeping`), it grows for ever otherwise.
        listen: LISTEN for commits on a connection of its own (PostgreSQL), at the database's
            `listen_url` or else its URL, unless that leads through a pooler. A URL: there. False:
            only by polling.
    """

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        *,
        page_rows: int = 500,
        page_bytes: int = 8 * 1024 * 1024,
        lease: float = 10.0,
        poll: float = 0.25,
        retry: Retry = MESSAGE_RETRY,
        outage: Retry = OUTAGE_RETRY,
        max_rate: float | None = None,
        skip_poison: Collection[str] = (),
        service: str = "",
        archive: bool = False,
        listen: bool | str = True,
    ) -> None:
        if not 1 <= page_rows <= MAX_PAGE:
            raise ConfigurationError(f"page_rows is {page_rows}; give 1 to {MAX_PAGE}")
        if max_rate is not None and not 0 < max_rate < float("inf"):
            raise ConfigurationError(f"max_rate is {max_rate}; give messages a second")
        if isinstance(skip_poison, str):
            raise ConfigurationError("skip_poison is one string; give a collection of topics")
        self.store = Store(database, lease=lease, service=service, archive=archive)
        self.counters = Counters()
        self._database = database
        self._listen = bool(listen)
        self._listen_url: sa.URL | None = None
        if isinstance(listen, str):
            self._listen_url, pooled = split_pooler(listen)
            if pooled:
                raise ConfigurationError(
                    "through a pooler nothing is heard; listen at a direct URL"
                )
        self.poll = poll
        self._lease = lease
        self._page_rows = page_rows
        self._page_bytes = page_bytes
        self._limit = min(FIRST_PAGE, page_rows)
        self._trouble = outage
        self._troubles = 0
        self._serving = False
        self._lost = False  # whatever the store says it owns: a call that was left behind may
        self._wake = asyncio.Event()
        self._head_start = HeadStart(self._wake.set)
        self._hinted = False
        self._held_was_last = False
        self._page_was_last = False
        self._failures_were_last = False
        self._again: int | None = None
        self._more_is_due = False
        self._stop: asyncio.Event | None = None
        self._outage = Outage(outage, seed=str(self.store.lease.owner), most=max_rate)
        self._lanes = Lanes(max(16, page_rows // 8))
        self._sending = Sending(
            publisher,
            self._lanes,
            self._outage,
            retry=retry,
            skip=skip_poison,
            attempts=self.store.blocked.attempts,
            counters=self.counters,
            wake=self._wake.set,
            go_on=self._send_few,
        )

    @property
    def publisher(self) -> Publisher:
        """To which broker; another one may be put in its place between two pages."""
        return self._sending.publisher

    @publisher.setter
    def publisher(self, publisher: Publisher) -> None:
        self._sending.publisher = publisher

    def hint(self) -> None:
        """Something was committed: look at once. To be called from the relay's own event loop."""
        self._hinted = True
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Publishes until `stop` is set.

        Then finishes what is in flight and gives the lease back.
        """
        self._stop = stop
        stopped = asyncio.create_task(stop.wait())
        stopped.add_done_callback(self._asked_to_stop)
        loop, schema = asyncio.get_running_loop(), self._database.tables.schema
        ear = self._ear()
        try:
            with listening(self._database.url, schema, lambda: _hear(loop, self.hint)):
                await self._work(stop, stopped)
        finally:
            if ear is not None:
                ear.cancel()
                await asyncio.gather(ear, return_exceptions=True)
            stopped.cancel()
            await self._end()

    def _asked_to_stop(self, stopped: asyncio.Task[bool]) -> None:
        if not stopped.cancelled():
            self.store.connection.hurry()
            self._wake.set()

    def _ear(self) -> asyncio.Task[None] | None:
        url = self._listen_url or self._database.listen_url or self._database.url
        if not self._listen or not Listener.can_listen(url):
            return None
        if url is self._database.url and self._database.pooler:
            logger.warning(
                "through a pooler LISTEN hears nothing: give a direct URL for it (listen_url); "
                "the relay looks by itself, every %s s",
                self.poll,
            )
            return None
        listener = Listener(url, self._database.tables.schema, self.hint)
        return asyncio.create_task(listener.run())

    async def _work(self, stop: asyncio.Event, stopped: asyncio.Task[bool]) -> None:
        while not stop.is_set():
            try:
                if not self._owns_any and not await self._begin():
                    await asyncio.wait({stopped}, timeout=self.poll)
                    continue
                await self._serve()
            except (LeaseLost, BrokerUnavailable, DatabaseSilent) as error:
                await self._start_over()
                logger.warning("%s", error)
                await self._wait_out(stopped)
            except Exception as error:
                if not (is_transient(error) or ran_out_of_time(error)):
                    raise
                await self._start_over()
                logger.warning("trouble with the database (%s)", brief(error))
                await self._wait_out(stopped)

    async def run_until_empty(self, stop: asyncio.Event | None = None) -> int:
        """Publishes what can be published now, then gives the lease back; returns how many.

        What waits for its retry or for its time, or is parked, stays. `stop` ends it earlier.

        Raises:
            BrokerUnavailable: The broker takes nothing now.
        """
        self._stop = stop
        stopped: asyncio.Task[bool] = asyncio.create_task((stop or asyncio.Event()).wait())
        stopped.add_done_callback(self._asked_to_stop)
        try:
            while not self._is_stopping():
                page = await self._publish_page()
                more = page is not None and (page.rows or page.put_back or self._lanes.rows)
                if not more and self._again is None and not self._more_is_due:
                    break
        finally:
            stopped.cancel()
            await self._end()
        return self.counters.published

    async def run_once(self) -> int:
        """Publishes one page; returns how many messages were acknowledged.

        Raises:
            LeaseLost: Another relay took over; what was acknowledged may be published again, under
            the same ids. BrokerUnavailable: The broker takes nothing now.
        """
        before = self.counters.published
        if self._owns_any and self.store.lease.may_be_over:
            await self._renew_or_lose(raising=False)
        try:
            await self._publish_page()
        finally:
            await self.store.connection.rest()
        return self.counters.published - before

    # --- page by page ----------------------------------------------------------------------------

    async def _publish_page(self) -> Page | None:
        """One page to its end; None without a lease."""
        self._more_is_due = False
        if not self._owns_any and not await self._begin():
            return None
        try:
            # one page of them: of all that may be due the lease would not wait for the end
            entered = await self.store.enter_outbox(self._page_rows)
            self._more_is_due = entered == self._page_rows
            page = await self._exchange(self._sending.take_acknowledged())
            if page.put_back:
                page = await self._exchange([])
            self._sending.down = None
            failed = False
            try:
                # a page of one key may be as many rounds as it has rows
                while not self._is_stopping() and self._sending.down is None:
                    allowed = 1 if self._outage.lasts else self._outage.allowance(0)
                    if not allowed and self._lanes.ready:
                        self._wake.clear()
                        await self._woken(self._outage.pause(0))
                        continue
                    rows = self._lanes.take(min(self._page_rows, allowed))
                    if rows:
                        self._outage.sent(len(rows))
                        await self._sending.send(rows)
                    elif self._sending.failures:
                        failed = True
                        await self._store_all_failures()  # a key may go on without a dead letter
                    else:
                        break
            finally:
                failed |= bool(self._sending.failures)
                await self._store_all_failures()
            if self._sending.acknowledged and (not page.full or failed or self._sending.down):
                # nothing more waits: do not leave the acknowledged rows until the next look
                await self._remove()
            self._look_again(self._lanes.release_held())
        except (LeaseLost, DatabaseSilent):
            self._forget()
            raise
        if self._sending.down is not None:
            down = self._sending.down
            raise BrokerDown(str(down), code=down.code)
        return page

    # --- one lease's life ------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Publishes until stopped: reading, sending and removing go on beside each other.

        The database has one turn at a time.
        """
        pace = Pace(self.poll, self._lease / 3, time.monotonic())
        turn: asyncio.Task[None] | None = None
        self._serving = True
        try:
            while True:
                self._wake.clear()
                if turn is not None and turn.done():
                    turn.result()
                    turn = None
                stopping = self._is_stopping()
                if turn is None:
                    work = self._next_turn(pace, stopping=stopping)
                    if work is not None:
                        turn = asyncio.create_task(work)
                        turn.add_done_callback(self._turn_is_over)
                    elif stopping and not self._sending.busy:
                        return
                if self._may_send:
                    self._sending.dispatch(self._page_rows)
                await self._woken(self._patience(pace, busy=turn is not None))
        finally:
            self._serving = False
            await self._sending.give_up()
            if turn is not None:
                await asyncio.gather(turn, return_exceptions=True)

    @property
    def _may_send(self) -> bool:
        lapsed = self._is_stopping() or self.store.lease.may_be_over
        return self._serving and not lapsed and not self._head_start.left

    def _send_few(self) -> None:
        """The next of a key goes as soon as the one before it is acknowledged.

        Only few: of many the database's next statement goes first (`head_start`).
        """
        if self._lanes.ready < MANY and self._may_send:
            self._sending.dispatch(self._page_rows)

    def _turn_is_over(self, _turn: asyncio.Task[None]) -> None:
        self._head_start.end()
        self._wake.set()

    def _next_turn(self, pace: Pace, *, stopping: bool) -> Coroutine[Any, Any, None] | None:
        """What the database is asked for next; None: nothing for now."""
        now, sending = time.monotonic(), self._sending
        # told once: what is due and cannot be read yet must not keep us awake
        if (now >= pace.due_at and self.store.blocked.take_due()) or self._hinted:
            self._hinted = False
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
        if self.store.lease.leaving and not self._lanes.flying_of(self.store.lease.leaving):
            return self._hand_over()
        if not stopping and self._may_read:
            reads = now >= pace.read_at and self._has_room()
            # in turn with pages: neither a long backlog of one key nor of all others goes first
            more = self._has_room_for_bytes and self._lanes.wanting()
            if more and not (reads and self._held_was_last):
                self._held_was_last = True
                return self._read_more_of_held()
            # after a page: what was committed does not wait for what was delayed, nor for ever
            enters = now >= pace.enter_at and self._has_room()
            if enters and (self._page_was_last or not reads):
                self._page_was_last = False
                return self._enter(pace)
            if reads:
                self._page_was_last, self._held_was_last = True, False
                pace.removed(now)
                if self._lanes.ready >= MANY:
                    self._head_start.begin()
                return self._read(pace)
        many = len(sending.acknowledged) >= self._page_rows
        if sending.acknowledged and (many or stopping or now >= pace.remove_at):
            pace.removed(now)
            return self._remove()
        return self._store_some(pace) if failures else None

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
        if (due := self.store.blocked.next_due) is not None:
            moments.append(max(due, pace.due_at - now))
        if self._sending.failures:
            moments.append(pace.store_at - now)
        if not self._is_stopping() and self._may_read and self._has_room():
            moments += [pace.read_at - now, pace.enter_at - now]
        if self._sending.acknowledged:
            moments.append(pace.remove_at - now)
        return max(0.0, min(moments))

    @property
    def _may_read(self) -> bool:
        """In an outage no more than it takes to ask with another message each time."""
        return not self._outage.lasts or self._lanes.ready < 2

    @property
    def _sends_again_in(self) -> float:
        """Seconds until something that waits for the broker's sake alone may be sent."""
        if not self._lanes.ready or self._is_stopping() or self.store.lease.may_be_over:
            return math.inf
        return self._outage.pause(self._lanes.flying)

    async def _woken(self, within: float) -> None:
        try:
            async with asyncio.timeout(within):
                await self._wake.wait()
        except TimeoutError:
            return

    def _has_room(self) -> bool:
        rows = self._lanes.rows + max(1, self._page_rows // 2)
        return rows <= self._page_rows * PAGES_AT_ONCE and self._has_room_for_bytes

    @property
    def _has_room_for_bytes(self) -> bool:
        return self._lanes.size + self._sending.kept <= 2 * self._page_bytes

    # --- the database's turns --------------------------------------------------------------------

    async def _read(self, pace: Pace) -> None:
        idle, begun = self._is_idle(pace), time.monotonic()
        # one statement, of one row, for as long as nothing happens
        if idle and not await self.store.anything_to_do(self._lanes.positions(-1)):
            pace.looked(begun, time.monotonic(), found=False)
            return
        if due := begun >= pace.due_at:
            pace.asked(begun)
        page = await self._exchange(self._sending.take_acknowledged(), due=due)
        pace.looked(begun, time.monotonic(), found=bool(page.rows))
        if idle:
            pace.enter_at = begun  # it may be a delayed message that the look has seen

    async def _enter(self, pace: Pace) -> None:
        entered = await self.store.enter_outbox(self._page_rows)
        now = time.monotonic()
        pace.entered(now, full=entered == self._page_rows)
        if entered:
            pace.hinted(now)

    def _is_idle(self, pace: Pace) -> bool:
        return pace.idle and not self._sending.acknowledged

    async def _exchange(self, acknowledged: list[OutboxRow], *, due: bool = True) -> Page:
        """Removes these and reads the next page into the lanes; `due` as of the store's."""
        lanes = self._lanes
        again, self._again = self._again, None
        page = await self.store.exchange(
            acknowledged,
            min(self._limit, max(1, self._page_rows * PAGES_AT_ONCE - lanes.rows)),
            room=self._page_bytes,
            known=lanes.positions(-1),
            held=lanes.held,
            again=again,
            sent=self._head_start.teller() if self._head_start.left else None,
            due=due,
        )
        self._over(acknowledged)
        lanes.removed(acknowledged)
        lanes.add(page.rows)
        self._fit(page)
        if page.put_back:
            await self._look_for_what_is_back()
        return page

    async def _look_for_what_is_back(self) -> None:
        again = await self.store.lease.put_back()
        if again is not None:
            self._look_again(again)
            self._look_again(self._lanes.release_held())
            self._hinted = True

    async def _remove(self) -> None:
        acknowledged = self._sending.take_acknowledged()
        await self.store.exchange(acknowledged, 0)
        self._over(acknowledged)
        self._lanes.removed(acknowledged)

    def _over(self, removed: Collection[OutboxRow] | None = None) -> None:
        """What troubled the relay is over once it can remove what it publishes, or renew.

        Not when it can read: it would publish the same page without a pause, again and again,
        where nothing can be removed.
        """
        if removed is None or removed:
            self._troubles = 0

    async def _read_more_of_held(self) -> None:
        key = self._lanes.wanting()[0]
        limit = max(16, self._page_rows // 8)
        page = await self.store.more_of(key, self._lanes.held[key], limit, room=self._page_bytes)
        self._lanes.more_of(key, page.rows, all_of_it=not page.full)

    async def _store_some(self, pace: Pace) -> None:
        pace.stored(time.monotonic())
        await self._store_failures()

    async def _store_all_failures(self) -> None:
        while self._sending.failures:
            await self._store_failures()

    async def _store_failures(self) -> None:
        failures = self._sending.take_failures(FAILURES_AT_ONCE)
        await self.store.store_failures(failures)
        for failed in failures:
            if failed.blocks:
                self._lanes.refused(failed.row)
            else:
                self._lanes.skipped(failed.row)

    async def _renew(self, pace: Pace) -> None:
        looks, begun = self._is_idle(pace), time.monotonic()
        renewal = await self._renew_or_lose(self._lanes.positions(-1) if looks else None)
        if renewal.waiting:
            self._hinted = True
        elif looks:
            pace.looked(begun, time.monotonic(), found=False)

    async def _renew_or_lose(
        self, look: Collection[int] | None = None, *, raising: bool = True
    ) -> Renewal:
        renewal = await self.store.renew_lease(self.counters.as_dict(), look=look)
        if not renewal.held:
            self._forget()
            if raising:
                raise LeaseLost("another relay took partitions over; taking stock")
            return renewal
        self._over()
        if renewal.again is not None:
            self._look_again(renewal.again)
            self._look_again(self._lanes.release_held())
            self._hinted = True
        if leaving := self.store.lease.leave_beyond(renewal.share):
            logger.info("%s relays: handing %s partitions over", renewal.relays, len(leaving))
            self._lanes.leave(leaving)
        return renewal

    async def _hand_over(self) -> None:
        await self._remove()
        await self.store.lease.release_leaving()

    def _look_again(self, position: int | None) -> None:
        """The next page is read from above this position, if the low-water mark is beyond it."""
        if position is not None:
            self._again = position if self._again is None else min(self._again, position)

    # --- beginning and ending --------------------------------------------------------------------

    @property
    def _owns_any(self) -> bool:
        """Whether it has partitions, as far as it may believe that."""
        return bool(self.store.lease.epochs) and not self._lost

    async def _begin(self) -> bool:
        self._forget()  # of a lease before: published again, under the same ids
        if not await self.store.lease.take(self.counters.as_dict()):
            return False
        self._lost = False
        await self.publisher.open()
        logger.info(
            "relay %s owns %s partitions", self.store.lease.owner, len(self.store.lease.epochs)
        )
        return True

    async def _start_over(self) -> None:
        """Nothing that was read or acknowledged survives.

        It is read again, and published again under the same ids.
        """
        await self._sending.give_up()
        self._forget()

    def _forget(self) -> None:
        self._sending.forget()
        self.store.lease.forget(self._lanes.sent)
        self._lanes.clear()
        self._again = None
        self._lost = True

    async def _wait_out(self, stopped: asyncio.Task[bool]) -> None:
        self._troubles += 1
        delay = self._trouble.delay(self._troubles, seed=str(self.store.lease.owner))
        await asyncio.wait({stopped}, timeout=delay)

    async def _end(self) -> None:
        try:
            await self._sending.give_up()
            if self._owns_any:
                await self._store_all_failures()
                await self._remove()
            await self.store.lease.release()
        except Exception as error:  # noqa: BLE001  # logged
            # acknowledged rows are published again, under the same ids; the lease ends by itself
            logger.warning("the relay could not tidy up (%s)", brief(error))
        await self.publisher.close()
        self.store.connection.close()

    def _is_stopping(self) -> bool:
        return self._stop is not None and self._stop.is_set()

    def _fit(self, page: Page) -> None:
        """The next page has about `page_bytes`: bodies of 256 KiB must not fill the memory."""
        if page.rows:
            average = sum([len(row.body) for row in page.rows]) / len(page.rows) + 1
            self._limit = max(1, min(self._page_rows, int(self._page_bytes / average)))


def _hear(loop: asyncio.AbstractEventLoop, hint: Callable[[], None]) -> None:
    """From any thread."""
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(hint)
