"""What a relay asks its database for, one turn at a time, and what it keeps in memory of that."""

from __future__ import annotations

import logging
from collections.abc import Collection

from outbox_saga.errors import LeaseLost
from outbox_saga.queries.relay import OutboxRow
from outbox_saga_relay.counters import Counters
from outbox_saga_relay.head_start import HeadStart
from outbox_saga_relay.lanes import Lanes
from outbox_saga_relay.lease import Renewal
from outbox_saga_relay.sending import Sending
from outbox_saga_relay.store import Page, Store

logger = logging.getLogger("outbox_saga.relay")

FIRST_PAGE = 100  # rows, before the size of the bodies is known
FAILURES_AT_ONCE = 200  # stored in one transaction
PAGES_AT_ONCE = 4  # in memory, on their way or waiting


class Turns:
    """Rows come from the store into the lanes; what was sent, or failed, goes back to the store.

    Args:
        page_rows: Rows read at once; four times as many may be in memory.
        page_bytes: Bytes of bodies read at once, about; twice as many may be in memory, and a page
            more.
    """

    def __init__(
        self,
        store: Store,
        lanes: Lanes,
        sending: Sending,
        head_start: HeadStart,
        counters: Counters,
        *,
        page_rows: int,
        page_bytes: int,
    ) -> None:
        self.troubles = 0  # one after another, with the database or with all of the broker
        self.hinted = False  # there is something: look at once
        self.again: int | None = None  # the next page is read from above this position
        self._store = store
        self._lanes = lanes
        self._sending = sending
        self._head_start = head_start
        self._counters = counters
        self._page_rows = page_rows
        self._page_bytes = page_bytes
        self._portion = max(16, page_rows // 8)  # rows of a key that is held, read at once
        self._limit = min(FIRST_PAGE, page_rows)
        self._lost = False  # whatever the store says it owns: a call that was left behind may

    # --- partitions ------------------------------------------------------------------------------

    @property
    def owns_any(self) -> bool:
        """Whether it has partitions, as far as it may believe that."""
        return bool(self._store.lease.epochs) and not self._lost

    async def take_lease(self) -> bool:
        """Whether it has partitions now; of a lease before nothing is known any more."""
        self.forget()  # what it had in hand is published again, under the same ids
        if not await self._store.lease.take(self._counters.as_dict()):
            return False
        self._lost = False
        return True

    def forget(self) -> None:
        """Nothing that was read or acknowledged survives; it is read again."""
        self._sending.forget()
        self._store.lease.forget(self._lanes.sent)
        self._lanes.clear()
        self.again = None
        self._lost = True

    async def renew_or_lose(
        self, look: Collection[int] | None = None, *, raising: bool = True
    ) -> Renewal:
        """Another lease, and what others did to its partitions is heeded.

        Args:
            look: As of `Store.renew_lease`.

        Raises:
            LeaseLost: If `raising`, another relay has taken partitions over.
        """
        renewal = await self._store.renew_lease(self._counters.as_dict(), look=look)
        if not renewal.held:
            self.forget()
            if raising:
                raise LeaseLost("another relay took partitions over; taking stock")
            return renewal
        self._over()
        if renewal.again is not None:
            self._look_again(renewal.again)
            self.release_held()
            self.hinted = True
        if leaving := self._store.lease.leave_beyond(renewal.share):
            logger.info("%s relays: handing %s partitions over", renewal.relays, len(leaving))
            self._lanes.leave(leaving)
        return renewal

    @property
    def hands_over(self) -> bool:
        """Whether partitions are to be left, and nothing of them is on its way."""
        leaving = self._store.lease.leaving
        return bool(leaving) and not self._lanes.flying_of(leaving)

    async def hand_over(self) -> None:
        """The partitions that are to be left are free for another relay."""
        await self.remove_all()
        leaving = self._store.lease.leaving
        await self._store.lease.release_leaving()
        self._lanes.left(leaving)

    # --- rows ------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """For another page."""
        rows = self._lanes.rows + max(1, self._page_rows // 2)
        return rows <= self._page_rows * PAGES_AT_ONCE and self.has_room_for_bytes

    @property
    def has_room_for_held(self) -> bool:
        """For the next rows of a key that is held."""
        rows = self._lanes.rows + min(self._portion, max(1, self._page_rows // 2))
        return rows <= self._page_rows * PAGES_AT_ONCE and self.has_room_for_bytes

    @property
    def has_room_for_bytes(self) -> bool:
        """For more bodies."""
        return self._lanes.size + self._sending.kept <= 2 * self._page_bytes

    async def exchange(self, acknowledged: list[OutboxRow], *, due: bool = True) -> Page:
        """Removes these and reads the next page into the lanes; `due` as of the store's."""
        lanes = self._lanes
        again, self.again = self.again, None
        page = await self._store.exchange(
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

    async def remove(self) -> None:
        """What was acknowledged, as much as one statement may, and reads nothing."""
        acknowledged = self._sending.take_acknowledged()
        await self._store.exchange(acknowledged, 0)
        self._over(acknowledged)
        self._lanes.removed(acknowledged)

    async def remove_all(self) -> None:
        """Until nothing is acknowledged that stands in the outbox."""
        while self._sending.acknowledged:
            await self.remove()

    async def read_more_of_held(self) -> None:
        """The next rows of a key that had too many for the memory."""
        key = self._lanes.wanting()[0]
        room = max(1, self._page_rows * PAGES_AT_ONCE - self._lanes.rows)
        limit = min(self._portion, room)
        page = await self._store.more_of(key, self._lanes.held[key], limit, room=self._page_bytes)
        self._lanes.more_of(key, page.rows, all_of_it=not page.full)

    async def enter_outbox(self) -> tuple[int, bool]:
        """How many delayed messages are in the outbox now, and whether more of them may be due."""
        entered = await self._store.enter_outbox(self._page_rows)
        return entered, entered == self._page_rows

    async def store_failures(self) -> None:
        """Some of them, in one transaction."""
        failures = self._sending.take_failures(FAILURES_AT_ONCE)
        stored = {failed.row.position for failed in await self._store.store_failures(failures)}
        for failed in failures:
            if not failed.blocks:
                self._lanes.skipped(failed.row)
                continue
            self._lanes.refused(failed.row)
            if failed.row.position not in stored:
                # no blocked key will lower the mark for what stands behind it and is forgotten
                self._look_again(failed.row.position - 1)
                self.hinted = True

    async def store_all_failures(self) -> None:
        """Until there are none."""
        while self._sending.failures:
            await self.store_failures()

    def release_held(self) -> None:
        """Keys that are held for the memory's sake are read with all others again."""
        self._look_again(self._lanes.release_held())

    def _look_again(self, position: int | None) -> None:
        """The next page is read from above this position, if the low-water mark is beyond it."""
        if position is not None:
            self.again = position if self.again is None else min(self.again, position)

    async def _look_for_what_is_back(self) -> None:
        again = await self._store.lease.put_back()
        if again is not None:
            self._look_again(again)
            self.release_held()
            self.hinted = True

    def _over(self, removed: Collection[OutboxRow] | None = None) -> None:
        """What troubled the relay is over once it can remove what it publishes, or renew.

        Not when it can read: it would publish the same page without a pause, again and again,
        where nothing can be removed.
        """
        if removed is None or removed:
            self.troubles = 0

    def _fit(self, page: Page) -> None:
        """The next page has about `page_bytes`: bodies of 256 KiB must not fill the memory."""
        if page.rows:
            average = sum([len(row.body) for row in page.rows]) / len(page.rows) + 1
            self._limit = max(1, min(self._page_rows, int(self._page_bytes / average)))
