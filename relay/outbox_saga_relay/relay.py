"""The relay.

Reads what transactions committed, publishes it outside any transaction, removes it after the ack.

A row is removed only after its own ack; the next message of a key is sent only after the one
before was acknowledged. So two relays may overlap for a moment: they publish duplicates with the
same id, and first deliveries stay in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence

from outbox_saga.brokers import Accepted, Outcome, Publisher, Refused
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import (
    BrokerDown,
    BrokerUnavailable,
    ConfigurationError,
    LeaseLost,
    PublishUnconfirmed,
    Unpublishable,
)
from outbox_saga.queries.dialects import brief, is_transient
from outbox_saga.queries.relay import Failed, OutboxRow
from outbox_saga.retries import Retry
from outbox_saga_relay.store import Store

logger = logging.getLogger("outbox_saga.relay")

MESSAGE_RETRY = Retry(max_attempts=1_000_000, initial=0.2, max_delay=60.0)
OUTAGE_RETRY = Retry(max_attempts=1_000_000, initial=0.2, max_delay=5.0)
MAX_PAGE = 5000  # rows; SQLite allows 32,766 parameters a statement
FIRST_PAGE = 100  # rows, before the size of the bodies is known


class Relay:
    """Every committed message is published at least once, of each key in the order of commits.

    Any number may run; one works, the others wait for its lease.

    Args:
        database: Whose outbox.
        publisher: To which broker.
        page_rows: Rows read at once.
        page_bytes: Bytes of bodies read at once, about.
        lease: Seconds after which another relay takes over from one that stopped renewing.
        poll: Seconds between two looks when nothing is pending.
        retry: Backoff of a message the broker did not take; attempts are not limited, only a
            broker's definite no ends them.
        outage: Backoff while the broker takes nothing at all; no attempt is counted then.
    """

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        *,
        page_rows: int = 500,
        page_bytes: int = 16 * 1024 * 1024,
        lease: float = 10.0,
        poll: float = 0.25,
        retry: Retry = MESSAGE_RETRY,
        outage: Retry = OUTAGE_RETRY,
    ) -> None:
        if not 1 <= page_rows <= MAX_PAGE:
            raise ConfigurationError(f"page_rows is {page_rows}; give 1 to {MAX_PAGE}")
        self.publisher = publisher
        self.store = Store(database, lease=lease)
        self.poll = poll
        self._lease = lease
        self._page_rows = page_rows
        self._page_bytes = page_bytes
        self._limit = min(FIRST_PAGE, page_rows)
        self._retry = retry
        self._outage = outage
        self._outages = 0
        self._acknowledged: list[OutboxRow] = []
        self._published = 0
        self._stop: asyncio.Event | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Publishes until `stop` is set.

        Then finishes what is in flight and gives the lease back.
        """
        self._stop = stop
        stopped = asyncio.create_task(stop.wait())
        renewing: asyncio.Task[None] | None = None
        pause = self.poll / 16
        try:
            while not stop.is_set():
                try:
                    if not self.store.epochs:
                        if not await self._begin():
                            await _pause(stopped, self.poll)
                            continue
                        renewing = asyncio.create_task(self._renew())
                    count = await self._publish_page()
                    self._outages = 0
                    pause = self.poll / 16 if count else min(self.poll, pause * 2)
                    if not count:
                        await _pause(stopped, pause)
                except (LeaseLost, BrokerUnavailable) as error:
                    await self._start_over(renewing)
                    logger.warning("%s", error)
                    await self._wait_out(stopped)
                except Exception as error:
                    if not is_transient(error):
                        raise
                    await self._start_over(renewing)
                    logger.warning("trouble with the database (%s)", brief(error))
                    await self._wait_out(stopped)
        finally:
            stopped.cancel()
            if renewing is not None:
                renewing.cancel()
                await asyncio.gather(renewing, return_exceptions=True)
            await self._end()

    async def run_once(self) -> int:
        """Publishes one page; returns how many messages were acknowledged.

        Raises:
            LeaseLost: Another relay took over; what was acknowledged may be published again, under
            the same ids. BrokerUnavailable: The broker takes nothing now.
        """
        if (
            self.store.epochs
            and self.store.lease_may_be_over
            and not await self.store.renew_lease()
        ):
            self.store.epochs = {}
        try:
            return await self._publish_page()
        finally:
            await self.store.rest()

    async def _publish_page(self) -> int:
        if not self.store.epochs and not await self._begin():
            return 0
        acknowledged, self._acknowledged = self._acknowledged, []
        page = await self.store.exchange(acknowledged, self._limit)
        if not page:
            return 0
        self._fit(page)
        failures: list[Failed] = []
        try:
            for wave in _waves(page):
                if self._stop is not None and self._stop.is_set():
                    break  # a page of one key may be as many waves as it has rows
                await self._publish_wave(wave.rows, wave.refused_keys, failures)
        finally:
            if failures:
                await self.store.store_failures(failures)
        count = len(self._acknowledged)
        self._published += count
        if count and (len(page) < self._limit or failures):
            # nothing more waits: do not leave the acknowledged rows until the next look
            done, self._acknowledged = self._acknowledged, []
            await self.store.exchange(done, 1)
        logger.debug("published %s messages", count)
        return count

    async def _begin(self) -> bool:
        self._acknowledged = []  # of a lease before: published again, under the same ids
        if not await self.store.take_lease():
            return False
        await self.publisher.open()
        logger.info("relay %s owns %s partitions", self.store.owner, len(self.store.epochs))
        return True

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            try:
                if self.store.epochs and not await self.store.renew_lease():
                    logger.warning("another relay took partitions over; taking stock")
                    self.store.epochs = {}
                    return  # the next lease has a renewal of its own
            except Exception as error:  # noqa: BLE001  # logged, and tried again
                # the next renewal is a third of a lease away; an overlap costs duplicates, never
                # order
                logger.warning("the lease was not renewed (%s)", brief(error))

    async def _start_over(self, renewing: asyncio.Task[None] | None) -> None:
        """Nothing that was read or acknowledged survives.

        It is read again, and published again under the same ids.
        """
        self._acknowledged = []
        self.store.epochs = {}
        if renewing is not None:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _wait_out(self, stopped: asyncio.Task[bool]) -> None:
        self._outages += 1
        await _pause(stopped, self._outage.delay(self._outages, seed=str(self.store.owner)))

    async def _end(self) -> None:
        try:
            if self._acknowledged:
                await self.store.exchange(self._acknowledged, 1)
            await self.store.release_lease()
        except Exception as error:  # noqa: BLE001  # logged
            # acknowledged rows are published again, under the same ids; the lease ends by itself
            logger.warning("the relay could not tidy up (%s)", brief(error))
        await self.publisher.close()
        self.store.close()

    # --- one wave --------------------------------------------------------------------------------

    async def _publish_wave(
        self, rows: Sequence[OutboxRow], refused_keys: set[str], failures: list[Failed]
    ) -> None:
        envelopes: list[Envelope] = []
        sent: list[OutboxRow] = []
        for row in rows:
            try:
                envelopes.append(row.envelope())
                sent.append(row)
            except Exception as error:  # noqa: BLE001  # an unreadable row stops no other
                self._note(
                    row,
                    Refused(Unpublishable(str(error), code="unreadable")),
                    refused_keys,
                    failures,
                )
        if not sent:
            return
        outcomes = await self.publisher.publish(envelopes)
        if len(outcomes) == len(sent) and all(type(o) is Accepted for o in outcomes):
            self._acknowledged += sent
            return
        down = [
            o.error for o in outcomes if isinstance(o, Refused) and isinstance(o.error, BrokerDown)
        ]
        for row, outcome in zip(sent, outcomes, strict=True):
            if isinstance(outcome, Accepted) or not isinstance(outcome.error, BrokerDown):
                self._note(row, outcome, refused_keys, failures)
        if down:
            # what was acknowledged is removed first; no attempt is counted for the rest
            acknowledged, self._acknowledged = self._acknowledged, []
            if acknowledged:
                await self.store.exchange(acknowledged, 1)
            raise down[0]

    def _note(
        self, row: OutboxRow, outcome: Outcome, refused_keys: set[str], failures: list[Failed]
    ) -> None:
        if isinstance(outcome, Accepted):
            self._acknowledged.append(row)
            return
        error = outcome.error
        if row.key is not None:
            refused_keys.add(row.key)
        if isinstance(error, Unpublishable):
            delay = None
            logger.error("message %s is a dead letter (%s); its key is parked", row.id, error.code)
        else:
            delay = self._retry.delay(self.store.attempts(row) + 1, seed=str(row.id))
            kind = "unconfirmed" if isinstance(error, PublishUnconfirmed) else "refused"
            logger.warning(
                "message %s was %s (%s); again in %.1f s", row.id, kind, error.code, delay
            )
        failures.append(Failed(row, delay, error.code, str(error)))

    def _fit(self, page: Sequence[OutboxRow]) -> None:
        """The next page has about `page_bytes`: bodies of 256 KiB must not fill the memory."""
        average = sum(len(row.body) for row in page) / len(page) + 1
        self._limit = max(1, min(self._page_rows, int(self._page_bytes / average)))


class _Wave:
    """Rows that may be published at the same time: at most one of each key."""

    def __init__(self, rows: Sequence[OutboxRow], refused_keys: set[str]) -> None:
        self.rows = rows
        self.refused_keys = refused_keys


def _waves(page: Sequence[OutboxRow]) -> Iterator[_Wave]:
    """The page in waves; what follows a refused message of its key is left in the outbox."""
    refused_keys: set[str] = set()
    rest: Sequence[OutboxRow] = page
    while rest:
        wave: list[OutboxRow] = []
        later: list[OutboxRow] = []
        keys: set[str] = set()
        for row in rest:
            if row.key is None:
                wave.append(row)
            elif row.key in refused_keys:
                continue
            elif row.key in keys:
                later.append(row)
            else:
                keys.add(row.key)
                wave.append(row)
        if wave:
            yield _Wave(wave, refused_keys)
        rest = later


async def _pause(stopped: asyncio.Task[bool], seconds: float) -> None:
    await asyncio.wait({stopped}, timeout=seconds)
