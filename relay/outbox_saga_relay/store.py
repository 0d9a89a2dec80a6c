"""The relay's side of the database.

Leases, pages, deletions and failures, on one thread of its own.

A separate thread, because the publisher's event loop must not wait for the database, and one,
because a relay needs one connection. Each of its turns has a deadline. Whatever fails leaves
nothing behind in memory: state decides, and it is in the tables.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from outbox_saga.database import READ_ONLY, Database
from outbox_saga.deadlines import limit_transaction
from outbox_saga.errors import LeaseLost
from outbox_saga.ids import new_id
from outbox_saga.queries import exchange, failures_at_once, partitions, processes
from outbox_saga.queries import failures as failed_rows
from outbox_saga.queries import relay as verbs
from outbox_saga.queries.archive import archive_published
from outbox_saga.queries.delayed import enter_outbox
from outbox_saga.queries.dialects import limit_transaction_whole
from outbox_saga.queries.exchange import Exchanged
from outbox_saga.queries.outbox import partition_of
from outbox_saga.queries.processes import Process
from outbox_saga.queries.relay import Failed, OutboxRow, Wanted
from outbox_saga.queries.schema import require_tables
from outbox_saga.tables import PARTITIONS
from outbox_saga_relay.database_thread import DatabaseThread
from outbox_saga_relay.large_bodies import is_left_out, with_bodies
from outbox_saga_relay.mark import Mark
from outbox_saga_relay.wire import Wire, lay_wires, wire_of

P = ParamSpec("P")
T = TypeVar("T")

BlockedKey = tuple[int, str, int]
_DECIDES = "another relay owns the partitions; its own attempts decide"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A blocked key as this relay knows it."""

    attempts: int
    due: float  # by this process's monotonic clock; infinite: parked


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in position order.

    Args:
        full: There may be more behind them.
        put_back: Somebody has put rows back: ask for them (`Store.put_back`), for until then no
            page has a row.
    """

    rows: list[OutboxRow]
    full: bool = False
    put_back: bool = False


@dataclass(slots=True)
class Renewal:
    """What a renewal of the leases told.

    Args:
        held: Every partition that was this relay's still is.
        share: How many partitions are this relay's due, by the relays that are alive.
        relays: Relays that are alive, this one included.
        again: Look again above this position: rows were put back, or keys unparked.
        waiting: There is something to do, if that was asked for.
    """

    held: bool
    share: int = PARTITIONS
    relays: int = 1
    gained: frozenset[int] = field(default_factory=frozenset)
    again: int | None = None
    waiting: bool = False


class Store:
    """What one relay knows of its lease and its blocked keys, and every statement it makes.

    Args:
        lease: Seconds after which another relay may take over.
        service: Whose relay it is, for those who look.
        archive: What was published is kept in the archive.
    """

    def __init__(
        self, database: Database, *, lease: float, service: str = "", archive: bool = False
    ) -> None:
        self.owner = new_id()
        self.epochs: dict[int, int] = {}
        self.leaving: frozenset[int] = frozenset()  # owned, but no more of them is read
        self.mark = Mark()
        self.removed = 0
        self.fenced = 0  # messages it had sent and may not remove: others have their partitions
        self.oldest: float | None = None  # seconds, as of the last renewal
        self.holder_pid: int | None = None
        self._process = Process(self.owner, "relay", service)
        self._lease = lease
        self._archive = archive
        self._database = database
        self._tables = database.tables
        self._clock = database.clock
        self._blocked: dict[BlockedKey, Waiting] = {}
        self._dues: list[float] = []  # a heap: when blocked keys are to be looked at again
        self._told: set[int] = set()  # the positions whose keys wait no longer, as pages take it
        self._checked = False
        self._lease_ends = 0.0
        self._before: dict[int, int] = {}  # the epochs of the lease it lost
        self._in_hand = 0  # messages it had sent and not removed by then
        self._kept: sa.Connection | None = None  # between pages, where `exchange` can be had
        self._wire: Wire | None = None  # of the connection in use, or the one used last
        self._thread = DatabaseThread(
            "outbox-saga-relay", limit=database.deadline, cut=self._cut_wire
        )

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._thread.run(lambda: work(*args, **kwargs))

    def hurry(self) -> None:
        """The relay has been asked to end: the database gets some seconds, not the deadline."""
        self._thread.hurry()

    @property
    def _engine(self) -> sa.Engine:
        engine = self._database.program_engine
        lay_wires(engine, self._on)
        return engine

    def _on(self, wire: Wire | None) -> None:
        """The connection of this wire is in use from now on."""
        self._wire = wire

    def _cut_wire(self) -> None:
        wire = self._wire
        if wire is not None:
            wire.cut()

    def _write(
        self, verb: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        self._give_back()  # so that one connection is enough
        with self._engine.begin() as connection:
            self._on(wire_of(connection))
            if self._database.pooler:
                limit_transaction(connection, self._database.deadline)
            # a relay that stands still must not lock its successor out
            limit_transaction_whole(connection, self._lease)
            return verb(connection, *args, **kwargs)

    def _look(
        self, verb: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        self._give_back()
        with self._engine.connect() as fresh:
            self._on(wire_of(fresh))
            connection = fresh.execution_options(**{READ_ONLY: True})
            with connection.begin():
                return verb(connection, *args, **kwargs)

    # --- the lease -------------------------------------------------------------------------------

    async def take_lease(self, detail: Mapping[str, object] | None = None) -> bool:
        """True when this relay owns partitions now; what it knew before is forgotten."""
        return await self._in_thread(self._take_lease, detail or {})

    def forget(self, in_hand: int) -> None:
        """It cannot count on its lease any more, whatever the reason is.

        Args:
            in_hand: Messages that it has sent and not removed.
        """
        self._in_hand += in_hand
        self._before, self.epochs = self.epochs or self._before, {}

    def _count_fenced(self, connection: sa.Connection) -> None:
        """What it had in hand is another's now, or it takes it up again itself."""
        if self._in_hand and partitions.was_passed(connection, self._tables, self._before):
            self.fenced += self._in_hand
        self._in_hand = 0

    def _take_lease(self, detail: Mapping[str, object]) -> bool:
        self.epochs, self.leaving = {}, frozenset()
        self._know_blocked({})
        self.mark.reset()
        self._give_up_kept()
        if not self._checked:
            self._look(require_tables, self._tables)
            self._checked = True
        begun = time.monotonic()

        def take(connection: sa.Connection) -> dict[int, int]:
            self._count_fenced(connection)
            share = self._beat(connection, detail)[0]
            return partitions.take_lease(
                connection, self._tables, self._clock, self.owner, self._lease, share
            )

        epochs = self._write(take)
        # the blocked keys are known before the first page can be read
        self._know_blocked(
            self._look(verbs.blocked_rows, self._tables, self._clock, list(epochs))
            if epochs
            else {}
        )
        self._lease_ends = begun + self._lease
        self.epochs = epochs
        return bool(epochs)

    async def renew_lease(
        self,
        detail: Mapping[str, object] | None = None,
        *,
        look: Collection[int] | None = None,
    ) -> Renewal:
        """Another lease for every partition, and news of what others did to them.

        Takes free partitions up to this relay's share.

        Args:
            look: Say whether there is anything to do, too (`anything_to_do`), but for these
                positions, which are known. None: do not look.
        """
        known = None if look is None else list(look)
        return await self._in_thread(self._renew_lease, detail or {}, known)

    def _renew_lease(self, detail: Mapping[str, object], look: list[int] | None = None) -> Renewal:
        begun = time.monotonic()
        before = dict(self.epochs)

        def renew(
            connection: sa.Connection,
        ) -> tuple[Renewal, dict[int, int], dict[BlockedKey, verbs.Blocked]]:
            share, relays = self._beat(connection, detail)
            partitions.renew_lease(connection, self._tables, self._clock, self.owner, self._lease)
            epochs = partitions.held(connection, self._tables, self._clock, self.owner)
            if any(epochs.get(partition) != epoch for partition, epoch in before.items()):
                return Renewal(held=False), {}, {}
            if len(epochs) < share:
                epochs = partitions.take_more(
                    connection, self._tables, self._clock, self.owner, self._lease,
                    share - len(epochs),
                )  # fmt: skip
            again = partitions.take_revisits(connection, self._tables, self.owner)
            blocked = verbs.blocked_rows(connection, self._tables, self._clock, list(epochs))
            gained = frozenset(epochs.keys() - before.keys())
            waiting = look is not None and verbs.anything_to_do(
                connection, self._tables, self._clock, self._wanted(look)
            )
            told = Renewal(
                held=True,
                share=share,
                relays=relays,
                gained=gained,
                again=again,
                waiting=waiting,
            )
            return told, epochs, blocked

        renewal, epochs, blocked = self._write(renew)
        if not renewal.held:
            return renewal
        self._lease_ends = begun + self._lease
        # what is blocked no longer, though we have not unblocked it, somebody else has
        gone = [key[2] - 1 for key in self._blocked.keys() - blocked.keys()]
        if gone:
            renewal.again = min([*gone, *(() if renewal.again is None else (renewal.again - 1,))])
        elif renewal.again is not None:
            renewal.again -= 1
        if renewal.gained:
            renewal.again = 0
        self._know_blocked(blocked)
        self.epochs = epochs
        return renewal

    def _beat(self, connection: sa.Connection, detail: Mapping[str, object]) -> tuple[int, int]:
        """This relay is alive; its share of the partitions, and how many relays there are."""
        told = {**detail, **self._detail(connection)}
        processes.beat(connection, self._tables, self._clock, self._process, self._lease, told)
        relays = max(1, processes.alive(connection, self._tables, self._clock, "relay"))
        return math.ceil(PARTITIONS / relays), relays

    def _detail(self, connection: sa.Connection) -> dict[str, object]:
        """What whoever looks at this relay's row should know; no keys and no payload."""
        mark = self.mark
        self.oldest = verbs.oldest_age(connection, self._tables, self._clock, mark.lowest)
        self.holder_pid = None
        if mark.holder is not None:
            self.holder_pid = verbs.pid_of(connection, mark.holder)
        return {
            "partitions": len(self.epochs),
            "blocked_keys": len(self._blocked),
            "removed": self.removed,
            "fenced": self.fenced,
            "oldest_pending_seconds": self.oldest,
            "mark": mark.position,
            "mark_waits_for_transaction": mark.holder,
            "mark_waits_for_pid": self.holder_pid,
        }

    def _know_blocked(self, blocked: Mapping[BlockedKey, verbs.Blocked]) -> None:
        now = time.monotonic()
        # nobody else lets a key wait longer while we have the lease; before we had it, others did
        self._told.intersection_update(
            key[2] for key, found in blocked.items() if found.wait is not None and found.wait <= 0
        )
        self._blocked = {
            key: Waiting(found.attempts, math.inf if found.wait is None else now + found.wait)
            for key, found in blocked.items()
        }
        self._dues = [w.due for w in self._blocked.values() if w.due != math.inf]
        heapq.heapify(self._dues)

    @property
    def lease_may_be_over(self) -> bool:
        """By this process's own clock: its lease has not been renewed for as long as it lasts."""
        return time.monotonic() >= self._lease_ends

    def leave_beyond(self, share: int) -> frozenset[int]:
        """The partitions that are more than this share; nothing of them is read from now on."""
        excess = len(self.epochs) - share
        leaving = frozenset(sorted(self.epochs)[-excess:]) if excess > 0 else frozenset()
        new, self.leaving = leaving - self.leaving, self.leaving | leaving
        return new

    async def release_leaving(self) -> None:
        """What was to be left is leased no longer; nothing of it may be on its way."""
        left, self.leaving = self.leaving, frozenset()
        self.epochs = {p: e for p, e in self.epochs.items() if p not in left}
        self._blocked = {k: w for k, w in self._blocked.items() if k[0] not in left}
        await self._in_thread(
            self._write, partitions.release_lease, self._tables, self.owner, left
        )

    async def release_lease(self) -> None:
        """Nothing is leased any more; a successor need not wait."""
        self.epochs, self.leaving = {}, frozenset()

        def release(connection: sa.Connection) -> None:
            partitions.release_lease(connection, self._tables, self.owner)
            processes.left(connection, self._tables, self.owner)

        await self._in_thread(self._give_up_kept)
        await self._in_thread(self._write, release)

    async def put_back(self) -> int | None:
        """The position to look behind, if somebody has put rows back; told once.

        What is blocked is then known as it is.
        """
        again = await self._in_thread(self._write, self._take_back)
        return None if again is None else again - 1

    def _take_back(self, connection: sa.Connection) -> int | None:
        again = partitions.take_revisits(connection, self._tables, self.owner)
        if again is not None:
            owned = list(self.epochs)
            self._know_blocked(verbs.blocked_rows(connection, self._tables, self._clock, owned))
        return again

    # --- pages -----------------------------------------------------------------------------------

    @property
    def next_due(self) -> float | None:
        """Seconds until a blocked key may be tried again that was not told of yet."""
        return max(0.0, self._dues[0] - time.monotonic()) if self._dues else None

    def take_due(self) -> bool:
        """Whether the time of a blocked key has come; told once, though it stays blocked until
        something has become of its attempt.
        """
        now, told = time.monotonic(), False
        while self._dues and self._dues[0] <= now:
            heapq.heappop(self._dues)
            told = True
        return told

    @property
    def blocked(self) -> int:
        """How many keys wait or are parked."""
        return len(self._blocked)

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
        return await self._in_thread(
            self._exchange, acknowledged, limit, room, list(known), list(held), again, sent, due
        )

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
        if again is not None:
            self.mark.lower(again)
        blocked = self._blocked
        marks = exchange.can_exchange(self._engine)
        if due and blocked and limit and marks:
            self._look_at_due(frozenset(known))
        lowest = self.mark.lowest
        settled = [r for r in acknowledged if _blocked_key(r) in blocked] if blocked else []
        wanted = Wanted(
            self._reading(),
            limit,
            self.owner,
            above=self.mark.position,
            unless_ended=dict(self.mark.open),
            # what is removed by the same transaction need not be told
            known=_without(known, acknowledged, lowest),
            held=held,
            look_for_blocked=bool(blocked),
            due=list(self._told) if marks else None,
            none_if_put_back=marks,
        )
        if not settled and marks:
            found = self._exchange_at_once(acknowledged, wanted, sent)
        else:
            if sent is not None:
                sent()  # nothing is sent ahead here
            rows = self._exchange_step_by_step(acknowledged, settled, wanted)
            # why an empty page is empty is asked for by another statement
            found = Exchanged(rows, put_back=bool(marks and limit and not rows))
        rows = found.rows
        page = self._whole(Page(rows, full=0 < limit == len(rows), put_back=found.put_back), room)
        if limit and marks and not (found.put_back and not rows):
            # of the page as it is taken: the mark must not pass what was cut off
            highest = page.rows[-1].position if page.rows else None
            self.mark.read(found.oldest, highest, full=page.full, in_progress=found.in_progress)
        if found.transaction is not None and found.removed < len(acknowledged):
            # what is not ours to remove any more may be there still, and the mark has passed it
            self.mark.lower(min(row.position for row in acknowledged) - 1)
        if self._blocked and limit:
            self._forget_gone(page, frozenset(known))
        return page

    def _forget_gone(self, page: Page, known: Collection[int]) -> None:
        """A key whose time has come and whose row the page should have had waits for nothing."""
        seen = {row.position for row in page.rows}.union(known)
        if exchange.can_exchange(self._engine):
            due = self._told - seen
        else:
            now = time.monotonic()
            due = {key[2] for key, waiting in self._blocked.items() if waiting.due <= now} - seen
        if not due:
            return
        reading = frozenset(self._reading())
        end = page.rows[-1].position if page.full else math.inf
        missed = [k[2] for k in self._blocked if k[2] in due and k[2] < end and k[0] in reading]
        if missed:
            gone = self._write(verbs.unblock_gone, self._tables, missed)
            self._blocked = {k: w for k, w in self._blocked.items() if k[2] not in gone}
            self._told.difference_update(gone)

    def _look_at_due(self, known: Collection[int]) -> None:
        """The mark is below every key whose time has come, until it has been read.

        Each of them is due for every page from now on, until something has become of it: a page
        that took it for waiting would leave out what stands behind it, and the mark would pass
        that.
        """
        due = verbs.due_positions(self._kept_or_new(), self._tables, self._clock, self._reading())
        self._told = set(due)
        for position in due:
            if position not in known:
                self.mark.lower(position - 1)

    def _whole(self, page: Page, room: int | None) -> Page:
        if not any(map(is_left_out, page.rows)):
            return page
        rows, full = self._look(lambda c: with_bodies(c, self._tables, page.rows, room, page.full))
        return Page(rows, full, page.put_back)

    def _exchange_step_by_step(
        self, acknowledged: Sequence[OutboxRow], settled: Sequence[OutboxRow], wanted: Wanted
    ) -> list[OutboxRow]:
        def both(connection: sa.Connection) -> list[OutboxRow]:
            if acknowledged:
                mine = {r.partition: self.epochs.get(r.partition, -1) for r in acknowledged}
                if not partitions.holds_lease(
                    connection, self._tables, self._clock, self.owner, mine
                ):
                    raise LeaseLost("another relay owns the partitions; what it sends decides")
                count = (
                    archive_published(connection, self._tables, self._clock, acknowledged)
                    if self._archive
                    else verbs.delete_published(connection, self._tables, acknowledged)
                )
                self._count_removed(len(acknowledged), count)
                failed_rows.unblock(connection, self._tables, settled)
            if not wanted.limit:
                return []
            return verbs.read_page(connection, self._tables, self._clock, wanted)

        rows = self._write(both) if acknowledged else self._look(both)
        for row in settled:
            self._blocked.pop(_blocked_key(row), None)
            self._told.discard(row.position)
        return rows

    def _exchange_at_once(
        self,
        acknowledged: Sequence[OutboxRow],
        wanted: Wanted,
        sent: Callable[[], None] | None,
    ) -> Exchanged:
        try:
            found = exchange.exchange(
                self._kept_or_new(),
                self._tables,
                self._clock,
                acknowledged,
                wanted,
                archive=self._archive,
                limit=self._database.deadline if self._database.pooler else None,
                lease=self._lease,
                sent=sent,
            )
        except BaseException:
            self._give_up_kept()  # nothing read or acknowledged survives a reconnect
            raise
        if found.transaction is not None:
            self.mark.began(found.transaction)
            self._count_removed(len(acknowledged), found.removed)
        return found

    def _count_removed(self, acknowledged: int, removed: int) -> None:
        self.removed += removed
        # an owner after us has published them too, or will
        self.fenced += max(0, acknowledged - removed)

    async def more_of(self, key: str, after: int, limit: int, *, room: int | None = None) -> Page:
        """The next rows of one key, above a position; `room` as of `exchange`."""
        return await self._in_thread(self._more_of, key, after, limit, room)

    def _more_of(self, key: str, after: int, limit: int, room: int | None) -> Page:
        wanted = Wanted(
            self._reading(),
            limit,
            self.owner,
            above=after,
            look_for_blocked=bool(self._blocked),
        )
        partition = partition_of(key, self.owner)
        rows = self._look(verbs.read_key, self._tables, self._clock, key, partition, wanted)
        full = len(rows) == limit
        return self._whole(Page(rows, full), room)

    async def enter_outbox(self, limit: int) -> int:
        """How many delayed messages whose time has come are in the outbox now; at most `limit`."""
        return await self._in_thread(self._write, enter_outbox, self._tables, self._clock, limit)

    async def anything_to_do(self, known: Collection[int]) -> bool:
        """Whether a page would have a row, or a delayed message is due: one statement."""
        return await self._in_thread(self._anything_to_do, list(known))

    def _wanted(self, known: list[int]) -> Wanted:
        return Wanted(
            self._reading(),
            1,
            self.owner,
            above=self.mark.lowest,
            known=_without(known, (), self.mark.lowest),
            look_for_blocked=bool(self._blocked),
            none_if_put_back=exchange.can_exchange(self._engine),
        )

    def _anything_to_do(self, known: list[int]) -> bool:
        wanted = self._wanted(known)
        if not exchange.can_exchange(self._engine):
            return self._look(verbs.anything_to_do, self._tables, self._clock, wanted)
        return verbs.anything_to_do(self._kept_or_new(), self._tables, self._clock, wanted)

    def _reading(self) -> tuple[int, ...]:
        return tuple(p for p in self.epochs if p not in self.leaving)

    def _kept_or_new(self) -> sa.Connection:
        if self._kept is None:
            self._kept = exchange.connect(self._engine)
            self._on(wire_of(self._kept))
        return self._kept

    async def rest(self) -> None:
        """The connection that was kept between pages is the pool's again."""
        if self._kept is not None:
            await self._in_thread(self._give_back)

    def _give_back(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def _give_up_kept(self) -> None:
        """The kept connection is ended, whatever state it is in; the next page gets a new one."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.invalidate()
            kept.close()

    # --- failures --------------------------------------------------------------------------------

    def attempts(self, row: OutboxRow) -> int:
        """Failed attempts of this row so far."""
        waiting = self._blocked.get(_blocked_key(row))
        return 0 if waiting is None else waiting.attempts

    async def store_failures(self, failures: Sequence[Failed]) -> None:
        """The keys of these rows wait, are parked with a dead letter, or go on without it.

        Raises:
            LeaseLost: Another relay owns the partitions; nothing was written.
        """
        await self._in_thread(self._store_failures, failures)

    def _store_failures(self, failures: Sequence[Failed]) -> None:
        counted = [(failed, self.attempts(failed.row) + 1) for failed in failures]
        # a row that is gone was published by an owner before us: nothing waits for it
        if not exchange.can_exchange(self._engine):
            self._know_stored(self._store_in_steps(counted))
            return
        if retried := [pair for pair in counted if pair[0].delay is not None]:
            self._know_stored(self._store_retries(retried))
        if others := [pair for pair in counted if pair[0].delay is None]:
            self._know_stored(self._store_in_steps(others))

    def _know_stored(self, stored: Sequence[Failed]) -> None:
        now = time.monotonic()  # not before: by the database's clock it is not due before that
        for failed in stored:
            key = _blocked_key(failed.row)
            self._told.discard(failed.row.position)
            if failed.blocks:
                due = math.inf if failed.delay is None else now + failed.delay
                self._blocked[key] = Waiting(self.attempts(failed.row) + 1, due)
                if failed.delay is not None:
                    heapq.heappush(self._dues, due)
            else:
                self._blocked.pop(key, None)

    def _store_in_steps(self, counted: Sequence[tuple[Failed, int]]) -> list[Failed]:
        mine = self._epochs_of(counted)

        def store(connection: sa.Connection) -> list[Failed]:
            if not partitions.holds_lease(connection, self._tables, self._clock, self.owner, mine):
                raise LeaseLost(_DECIDES)
            return failed_rows.store_failures(connection, self._tables, self._clock, counted)

        return self._write(store)

    def _store_retries(self, counted: Sequence[tuple[Failed, int]]) -> list[Failed]:
        try:
            stored = failures_at_once.store_retries(
                self._kept_or_new(),
                self._tables,
                self._clock,
                counted,
                owner=self.owner,
                epochs=self._epochs_of(counted),
                limit=self._database.deadline if self._database.pooler else None,
                lease=self._lease,
            )
        except BaseException:
            self._give_up_kept()
            raise
        if stored is None:
            raise LeaseLost(_DECIDES)
        return stored

    def _epochs_of(self, counted: Sequence[tuple[Failed, int]]) -> dict[int, int]:
        return {f.row.partition: self.epochs.get(f.row.partition, -1) for f, _ in counted}

    def close(self) -> None:
        """Gives the thread and its connection back."""
        self._thread.close(self._give_up_kept)


def _blocked_key(row: OutboxRow) -> BlockedKey:
    return (row.partition, row.key or "", row.position)


def _without(known: list[int], removed: Sequence[OutboxRow], above: int) -> list[int]:
    if not known:
        return known
    gone = {row.position for row in removed}
    return [position for position in known if position > above and position not in gone]
