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
from collections.abc import Callable, Collection, Sequence

import sqlalchemy as sa

from outbox_saga.brokers import Publisher
from outbox_saga.calling import until_ended
from outbox_saga.database import Database
from outbox_saga.database_urls import split_pooler, sync_url
from outbox_saga.errors import (
    BrokerDown,
    BrokerUnavailable,
    ConfigurationError,
    DatabaseSilent,
    LeaseLost,
)
from outbox_saga.hints import listening
from outbox_saga.queries.dialects import brief
from outbox_saga.queries.passing import passes
from outbox_saga.queries.relay import OutboxRow
from outbox_saga.retries import Retry
from outbox_saga_relay.counters import Counters
from outbox_saga_relay.head_start import HeadStart
from outbox_saga_relay.lanes import Lanes
from outbox_saga_relay.listening import Listener
from outbox_saga_relay.outage import Outage
from outbox_saga_relay.sending import Sending
from outbox_saga_relay.serving import Serving, woken
from outbox_saga_relay.store import Page, Store
from outbox_saga_relay.turns import Turns

logger = logging.getLogger("outbox_saga.relay")

MESSAGE_RETRY = Retry(max_attempts=1_000_000, initial=0.2, max_delay=60.0)
OUTAGE_RETRY = Retry(max_attempts=1_000_000, initial=0.2, max_delay=5.0)
MAX_PAGE = 5000  # rows; SQLite allows 32,766 parameters a statement


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
            if split_pooler(listen)[1]:
                raise ConfigurationError(
                    "through a pooler nothing is heard; listen at a direct URL"
                )
            self._listen_url = sync_url(listen)
            if not Listener.can_listen(self._listen_url):
                raise ConfigurationError(
                    "only PostgreSQL has LISTEN; listen at a direct URL of it, or leave it out"
                )
        self.poll = poll
        self._page_rows = page_rows
        self._trouble = outage
        self._wake = asyncio.Event()
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
        head_start = HeadStart(self._wake.set)
        self._turns = Turns(
            self.store,
            self._lanes,
            self._sending,
            head_start,
            self.counters,
            page_rows=page_rows,
            page_bytes=page_bytes,
        )
        self._serving = Serving(
            self.store,
            self._turns,
            self._lanes,
            self._sending,
            self._outage,
            head_start,
            self._wake,
            is_stopping=self._is_stopping,
            page_rows=page_rows,
            lease=lease,
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
        self._turns.hinted = True
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
                await until_ended({ear})
            stopped.cancel()
            await self._end()

    def _send_few(self) -> None:
        self._serving.send_few()

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
                if not self._turns.owns_any and not await self._begin():
                    await asyncio.wait({stopped}, timeout=self.poll)
                    continue
                await self._serving.run(self.poll)
            except (LeaseLost, BrokerUnavailable, DatabaseSilent) as error:
                await self._start_over()
                logger.warning("%s", error)
                await self._wait_out(stopped)
            except Exception as error:
                if not passes(error):
                    raise
                await self._start_over()
                logger.warning("trouble with the database (%s)", brief(error))
                await self._wait_out(stopped)

    async def run_until_empty(self, stop: asyncio.Event | None = None) -> int:
        """Publishes what can be published now, then gives the lease back; returns how many.

        What waits for its retry or for its time, or is parked, stays. `stop` ends it earlier.

        Raises:
            LeaseLost: As `run_once`. BrokerUnavailable: The broker takes nothing now.
        """
        self._stop = stop
        stopped: asyncio.Task[bool] = asyncio.create_task((stop or asyncio.Event()).wait())
        stopped.add_done_callback(self._asked_to_stop)
        try:
            while not self._is_stopping():
                page = await self._publish_page()
                more = page is not None and (
                    page.rows or page.full or page.put_back or self._lanes.rows
                )
                if not more and self._turns.again is None and not self._more_is_due:
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
        if self._turns.owns_any and self.store.lease.may_be_over:
            await self._turns.renew_or_lose(raising=False)
        try:
            await self._publish_page()
        finally:
            await self.store.connection.rest()
        return self.counters.published - before

    # --- page by page ----------------------------------------------------------------------------

    async def _publish_page(self) -> Page | None:
        """One page to its end; None without a lease."""
        self._more_is_due = False
        if not self._turns.owns_any and not await self._begin():
            return None
        try:
            await self._renew_if_due()
            # one page of them: of all that may be due the lease would not wait for the end
            _, full = await self._turns.enter_outbox()
            self._more_is_due = full or self.store.more_may_be_due
            page = await self._turns.exchange(self._sending.take_acknowledged())
            if page.put_back:
                page = await self._turns.exchange([])
            self._sending.down = None
            failed = False
            try:
                # a page of one key may be as many rounds as it has rows
                while not self._is_stopping() and self._sending.down is None:
                    await self._renew_if_due()
                    allowed = 1 if self._outage.lasts else self._outage.allowance(0)
                    if not allowed and self._lanes.ready:
                        self._wake.clear()
                        pause = min(self._outage.pause(0), self.store.lease.renew_in)
                        await woken(self._wake, within=pause)
                        continue
                    rows = self._lanes.take(min(self._page_rows, allowed))
                    if rows:
                        self._outage.sent(len(rows))
                        await self._send_under_lease(rows)
                    elif self._sending.failures:
                        failed = True  # a key may go on without a dead letter
                        await self._turns.store_all_failures()
                    else:
                        break
            finally:
                failed |= bool(self._sending.failures)
                await self._turns.store_all_failures()
            if self._sending.acknowledged and (not page.full or failed or self._sending.down):
                # nothing more waits: do not leave the acknowledged rows until the next look
                await self._turns.remove_all()
            self._turns.release_held()
        except (LeaseLost, DatabaseSilent):
            self._turns.forget()
            raise
        if self._sending.down is not None:
            down = self._sending.down
            raise BrokerDown(str(down), code=down.code)
        return page

    async def _send_under_lease(self, rows: Sequence[OutboxRow]) -> None:
        """Sends these, and renews the lease while they are on their way."""
        call = asyncio.create_task(self._sending.send(rows))
        try:
            while not call.done():
                await asyncio.wait({call}, timeout=self.store.lease.renew_in)
                await self._renew_if_due()
        finally:
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        call.result()

    async def _renew_if_due(self) -> None:
        if self.store.lease.renew_in <= 0:
            await self._turns.renew_or_lose()
        if self._turns.hands_over:
            await self._turns.hand_over()

    # --- beginning and ending --------------------------------------------------------------------

    async def _begin(self) -> bool:
        if not await self._turns.take_lease():
            return False
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
        self._turns.forget()

    async def _wait_out(self, stopped: asyncio.Task[bool]) -> None:
        self._turns.troubles += 1
        delay = self._trouble.delay(self._turns.troubles, seed=str(self.store.lease.owner))
        await asyncio.wait({stopped}, timeout=delay)

    async def _end(self) -> None:
        await self._sending.give_up()
        last = [self.store.lease.release]
        if self._turns.owns_any:
            last = [self._turns.store_all_failures, self._turns.remove_all, *last]
        for each in last:
            try:
                await each()
            except Exception as error:  # noqa: BLE001  # logged
                # acknowledged rows are published again, under the same ids; the lease ends by
                # itself, but nobody shall have to wait for that
                logger.warning("the relay could not tidy up (%s)", brief(error))
                if isinstance(error, DatabaseSilent):
                    break  # nor shall who ends it wait for each of them
        await self.publisher.close()
        self.store.connection.close()

    def _is_stopping(self) -> bool:
        return self._stop is not None and self._stop.is_set()


def _hear(loop: asyncio.AbstractEventLoop, hint: Callable[[], None]) -> None:
    """From any thread."""
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(hint)
