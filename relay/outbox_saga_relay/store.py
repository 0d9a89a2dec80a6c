"""The relay's pages: what it reads, what it removes after the ack, what becomes of a failure.

Whatever fails leaves nothing behind in memory: state decides, and it is in the tables.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from outbox_saga.database import Database
from outbox_saga.errors import LeaseLost
from outbox_saga.queries import exchange, failures_at_once
from outbox_saga.queries import failures as failed_rows
from outbox_saga.queries import relay as verbs
from outbox_saga.queries.archive import archive_published
from outbox_saga.queries.delayed import Progress, enter_outbox
from outbox_saga.queries.dialects import ran_out_of_time
from outbox_saga.queries.exchange import Exchanged
from outbox_saga.queries.outbox import partition_of
from outbox_saga.queries.relay import Failed, OutboxRow, Wanted
from outbox_saga_relay.blocked_keys import BlockedKeys
from outbox_saga_relay.far_page import FarPage
from outbox_saga_relay.large_bodies import is_left_out, with_bodies
from outbox_saga_relay.lease import Lease, Renewal
from outbox_saga_relay.mark import Mark
from outbox_saga_relay.relay_connection import RelayConnection

_DECIDES = "another relay owns the partitions; its own attempts decide"


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in position order.

    Args:
        full: There may be more behind them.
        end: Up to this position nothing else was there; None: there was nothing at all. A row of
            this position may be gone, as any whose body was read later than the page.
        put_back: Somebody has put rows back: ask for them (`Lease.put_back`), for until then no
            page has a row.
    """

    rows: list[OutboxRow]
    full: bool = False
    end: int | None = None
    put_back: bool = False


class Store:
    """One relay's pages, by its own `connection`, under its `lease`.

    Args:
        lease: Seconds after which another relay may take over.
        service: Whose relay it is, for those who look.
        archive: What was published is kept in the archive.
    """

    def __init__(
        self, database: Database, *, lease: float, service: str = "", archive: bool = False
    ) -> None:
        self.mark = Mark()
        self.blocked = BlockedKeys()
        self.connection = RelayConnection(database, lease=lease)
        self.lease = Lease(
            database,
            self.connection,
            seconds=lease,
            service=service,
            mark=self.mark,
            blocked=self.blocked,
        )
        self._entering = Progress()
        self._far = FarPage(
            database, self.connection, self.lease, lambda: self.connection.can_exchange
        )
        self._lease_seconds = lease
        self._archive = archive
        self._database = database
        self._tables = database.tables
        self._clock = database.clock

    # --- pages -----------------------------------------------------------------------------------

    async def exchange(
        self,
        acknowledged: Sequence[OutboxRow],
        limit: int,
        *,
        room: int | None = None,
        known: Collection[int] = (),
        held: Collection[str] = (),
        again: int | None = None,
        sent: Callable[[], None] | None = None,
        due: bool = True,
    ) -> Page:
        """Removes what was acknowledged and reads the next page, in one transaction.

        Args:
            limit: Rows of the page; 0: only remove.
            room: Bytes of bodies the page may have; one row it has at least. None: any.
            known: Positions in memory, which are not read again.
            held: Keys of which nothing is read.
            again: Look again above this position.
            sent: Called by another thread when the server is at work.
            due: Look for blocked keys whose time has come. If not, those are due of which a look
                before has told; any other waits for the next one.
        """
        if not (limit and self._far.is_far):
            try:
                return await self.connection.run(
                    self._exchange,
                    acknowledged,
                    limit,
                    room,
                    list(known),
                    list(held),
                    again,
                    sent,
                    due,
                )
            except DBAPIError as error:
                if not limit or not ran_out_of_time(error):
                    raise
                self._far.is_far = True
                if acknowledged:  # whether they were removed is not known everywhere
                    raise
        elif acknowledged:
            await self.connection.run(self._exchange, acknowledged, 0, None, [], [], None, sent)
        elif sent is not None:
            sent()
        wanted = await self.connection.run(
            self._page_wanted, limit, list(known), list(held), again, due
        )
        found = await self._far.read(wanted)
        exchanged = Exchanged(found.rows, None, 0, found.oldest, found.in_progress, found.put_back)
        return await self.connection.run(self._came, exchanged, limit, room, list(known))

    def _exchange(
        self,
        acknowledged: Sequence[OutboxRow],
        limit: int,
        room: int | None,
        known: list[int],
        held: list[str],
        again: int | None,
        sent: Callable[[], None] | None = None,
        due: bool = True,  # noqa: FBT001, FBT002 - as `exchange` hands it over
    ) -> Page:
        begun, blocked = time.monotonic(), self.blocked
        marks = self.connection.can_exchange
        wanted = self._page_wanted(limit, known, held, again, due, acknowledged)
        settled = [row for row in acknowledged if row in blocked] if blocked else []
        if not settled and marks:
            found = self._exchange_at_once(acknowledged, wanted, sent)
        else:
            if sent is not None:
                sent()  # nothing is sent ahead here
            rows = self._exchange_step_by_step(acknowledged, settled, wanted)
            # why an empty page is empty is asked for by another statement
            found = Exchanged(rows, put_back=bool(marks and limit and not rows))
        if limit:
            self._far.took(time.monotonic() - begun)
        page = self._came(found, limit, room, known)
        if found.transaction is not None and found.removed < len(acknowledged):
            # what is not ours to remove any more may be there still, and the mark has passed it
            self.mark.lower(min(row.position for row in acknowledged) - 1)
        return page

    def _page_wanted(
        self,
        limit: int,
        known: list[int],
        held: list[str],
        again: int | None,
        due: bool,  # noqa: FBT001 - as `exchange` hands it over
        acknowledged: Sequence[OutboxRow] = (),
    ) -> Wanted:
        if again is not None:
            self.mark.lower(again)
        blocked, marks = self.blocked, self.connection.can_exchange
        if due and blocked and limit and marks:
            self._look_at_due(frozenset(known))
        return Wanted(
            self.lease.reading,
            limit,
            self.lease.owner,
            above=self.mark.position,
            unless_ended=dict(self.mark.open),
            # what is removed by the same transaction need not be told
            known=_without(known, acknowledged, self.mark.lowest),
            held=held,
            look_for_blocked=bool(blocked),
            due=list(blocked.told) if marks else None,
            none_if_put_back=marks,
        )

    def _came(self, found: Exchanged, limit: int, room: int | None, known: list[int]) -> Page:
        """The page that was found, and what is known by it."""
        rows, marks = found.rows, self.connection.can_exchange
        page = Page(rows, full=0 < limit == len(rows), end=_end(rows), put_back=found.put_back)
        page = self._whole(page, room)
        if limit and marks and not (found.put_back and not rows):
            # of the page as it is taken: the mark must not pass what was cut off
            self.mark.read(found.oldest, page.end, full=page.full, in_progress=found.in_progress)
        if self.blocked and limit:
            self._forget_gone(page, frozenset(known))
        return page

    def _forget_gone(self, page: Page, known: Collection[int]) -> None:
        """A key whose time has come and whose row the page should have had waits for nothing."""
        seen = {row.position for row in page.rows}.union(known)
        due = (self.blocked.told if self.connection.can_exchange else self.blocked.due()) - seen
        if not due:
            return
        end = math.inf if page.end is None or not page.full else page.end
        missed = self.blocked.among(due, frozenset(self.lease.reading), below=end)
        if missed:
            self.blocked.unblocked(self.connection.write(verbs.unblock_gone, self._tables, missed))

    def _look_at_due(self, known: Collection[int]) -> None:
        """The mark is below every key whose time has come, until it has been read.

        Each of them is due for every page from now on, until something has become of it: a page
        that took it for waiting would leave out what stands behind it, and the mark would pass
        that.
        """
        due = verbs.due_positions(
            self.connection.kept(), self._tables, self._clock, self.lease.reading
        )
        self.blocked.told = set(due)
        for position in due:
            if position not in known:
                self.mark.lower(position - 1)

    def _whole(self, page: Page, room: int | None) -> Page:
        if not any(map(is_left_out, page.rows)):
            return page
        rows, full, end = self.connection.look(
            lambda c: with_bodies(c, self._tables, page.rows, room, page.full)
        )
        return Page(rows, full, end, page.put_back)

    def _exchange_step_by_step(
        self, acknowledged: Sequence[OutboxRow], settled: Sequence[OutboxRow], wanted: Wanted
    ) -> list[OutboxRow]:
        def both(connection: sa.Connection) -> list[OutboxRow]:
            if acknowledged:
                if not self.lease.is_held(connection, acknowledged):
                    raise LeaseLost("another relay owns the partitions; what it sends decides")
                count = (
                    archive_published(connection, self._tables, self._clock, acknowledged)
                    if self._archive
                    else verbs.delete_published(connection, self._tables, acknowledged)
                )
                self.lease.count_removed(len(acknowledged), count)
                failed_rows.unblock(connection, self._tables, settled)
            if not wanted.limit:
                return []
            return verbs.read_page(connection, self._tables, self._clock, wanted)

        rows = self.connection.write(both) if acknowledged else self.connection.look(both)
        self.blocked.settled(settled)
        return rows

    def _exchange_at_once(
        self,
        acknowledged: Sequence[OutboxRow],
        wanted: Wanted,
        sent: Callable[[], None] | None,
    ) -> Exchanged:
        try:
            found = exchange.exchange(
                self.connection.kept(),
                self._tables,
                self._clock,
                acknowledged,
                wanted,
                archive=self._archive,
                limit=self._deadline,
                lease=self._lease_seconds,
                sent=sent,
            )
        except BaseException:
            self.connection.give_up()  # nothing read or acknowledged survives a reconnect
            raise
        if found.transaction is not None:
            self.mark.began(found.transaction)
            self.lease.count_removed(len(acknowledged), found.removed)
        return found

    @property
    def _deadline(self) -> float | None:
        """Seconds, where a pooler leaves no limit in its connections."""
        return self._database.deadline if self._database.pooler else None

    async def more_of(self, key: str, after: int, limit: int, *, room: int | None = None) -> Page:
        """The next rows of one key, above a position; `room` as of `exchange`."""
        return await self.connection.run(self._more_of, key, after, limit, room)

    def _more_of(self, key: str, after: int, limit: int, room: int | None) -> Page:
        wanted = Wanted(
            self.lease.reading,
            limit,
            self.lease.owner,
            above=after,
            look_for_blocked=bool(self.blocked),
        )
        partition = partition_of(key, self.lease.owner)
        rows = self.connection.look(
            verbs.read_key, self._tables, self._clock, key, partition, wanted
        )
        full = len(rows) == limit
        return self._whole(Page(rows, full, _end(rows)), room)

    async def enter_outbox(self, limit: int) -> int:
        """How many delayed messages whose time has come are in the outbox now; at most `limit`."""
        return await self.connection.run(self._enter_outbox, limit)

    @property
    def more_may_be_due(self) -> bool:
        """Whether the last look at what is delayed has not come to the end."""
        return self._entering.last is not None

    def _enter_outbox(self, limit: int) -> int:
        progress = self._entering.copy()  # of a transaction that fails nothing was passed
        entered = self.connection.write(enter_outbox, self._tables, self._clock, limit, progress)
        self._entering = progress
        return entered

    # --- whether there is anything to do ---------------------------------------------------------

    async def renew_lease(
        self,
        detail: Mapping[str, object] | None = None,
        *,
        look: Collection[int] | None = None,
    ) -> Renewal:
        """As `Lease.renew`.

        Args:
            look: Say whether there is anything to do, too (`anything_to_do`), but for these
                positions, which are known. None: do not look.
        """
        if look is None or self._far.is_far:
            return await self.lease.renew(detail)
        known = list(look)
        return await self.lease.renew(detail, look=lambda: self._wanted(known))

    async def anything_to_do(self, known: Collection[int]) -> bool:
        """Whether a page would have a row, or a delayed message is due: one statement."""
        if self._far.is_far:  # to look for a page takes as long, and never longer than it may
            return not self._far.rests
        return await self.connection.run(self._anything_to_do, list(known))

    def _anything_to_do(self, known: list[int]) -> bool:
        wanted = self._wanted(known)
        if not self.connection.can_exchange:
            return self.connection.look(verbs.anything_to_do, self._tables, self._clock, wanted)
        return verbs.anything_to_do(self.connection.kept(), self._tables, self._clock, wanted)

    def _wanted(self, known: list[int]) -> Wanted:
        return Wanted(
            self.lease.reading,
            1,
            self.lease.owner,
            above=self.mark.lowest,
            known=_without(known, (), self.mark.lowest),
            look_for_blocked=bool(self.blocked),
            none_if_put_back=self.connection.can_exchange,
        )

    # --- failures --------------------------------------------------------------------------------

    async def store_failures(self, failures: Sequence[Failed]) -> list[Failed]:
        """The keys of these rows wait, are parked with a dead letter, or go on without it.

        Returns those that were stored: of one that is in the outbox no more nothing tells that
        what stands behind it waits.

        Raises:
            LeaseLost: Another relay owns the partitions; nothing was written.
        """
        return await self.connection.run(self._store_failures, failures)

    def _store_failures(self, failures: Sequence[Failed]) -> list[Failed]:
        counted = [(failed, self.blocked.attempts(failed.row) + 1) for failed in failures]
        # a row that is gone was published by an owner before us: nothing waits for it
        if not self.connection.can_exchange:
            stored = self._store_in_steps(counted)
            self.blocked.stored(stored)
            return stored
        stored = []
        if retried := [pair for pair in counted if pair[0].delay is not None]:
            stored += self._store_retries(retried)
            self.blocked.stored(stored)
        if others := [pair for pair in counted if pair[0].delay is None]:
            buried = self._store_in_steps(others)
            self.blocked.stored(buried)
            stored += buried
        return stored

    def _store_in_steps(self, counted: Sequence[tuple[Failed, int]]) -> list[Failed]:
        rows = [failed.row for failed, _ in counted]

        def store(connection: sa.Connection) -> list[Failed]:
            if not self.lease.is_held(connection, rows):
                raise LeaseLost(_DECIDES)
            return failed_rows.store_failures(connection, self._tables, self._clock, counted)

        return self.connection.write(store)

    def _store_retries(self, counted: Sequence[tuple[Failed, int]]) -> list[Failed]:
        try:
            stored = failures_at_once.store_retries(
                self.connection.kept(),
                self._tables,
                self._clock,
                counted,
                owner=self.lease.owner,
                epochs=self.lease.epochs_of([failed.row for failed, _ in counted]),
                limit=self._deadline,
                lease=self._lease_seconds,
            )
        except BaseException:
            self.connection.give_up()
            raise
        if stored is None:
            raise LeaseLost(_DECIDES)
        return stored


def _end(rows: Sequence[OutboxRow]) -> int | None:
    return rows[-1].position if rows else None


def _without(known: list[int], removed: Sequence[OutboxRow], above: int) -> list[int]:
    if not known:
        return known
    gone = {row.position for row in removed}
    return [position for position in known if position > above and position not in gone]
