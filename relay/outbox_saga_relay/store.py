"""The relay's side of the database.

Leases, pages, deletions and failures, on one thread of its own.

A separate thread, because the publisher's event loop must not wait for the database, and one,
because a relay needs one connection. Whatever fails leaves nothing behind in memory: state
decides, and it is in the tables.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from outbox_saga.database import READ_ONLY, Database
from outbox_saga.errors import LeaseLost
from outbox_saga.ids import new_id
from outbox_saga.queries import exchange
from outbox_saga.queries import relay as verbs
from outbox_saga.queries.dialects import limit_idle_transaction
from outbox_saga.queries.relay import Failed, OutboxRow
from outbox_saga.queries.schema import require_tables

P = ParamSpec("P")
T = TypeVar("T")

BlockedKey = tuple[int, str, int]


class Store:
    """What one relay knows of its lease and its blocked keys, and every statement it makes.

    Args:
        lease: Seconds after which another relay may take over.
    """

    def __init__(self, database: Database, *, lease: float) -> None:
        self.owner = new_id()
        self.epochs: dict[int, int] = {}
        self._lease = lease
        self._database = database
        self._tables = database.tables
        self._clock = database.clock
        self._blocked: dict[BlockedKey, int] = {}
        self._checked = False
        self._lease_ends = 0.0
        self._kept: sa.Connection | None = None  # between pages, where `exchange` can be had
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox-saga-relay")

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: work(*args, **kwargs)
        )

    def _write(
        self, verb: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with self._database.begin() as connection:
            # a relay that stands still must not lock its successor out
            limit_idle_transaction(connection, self._lease)
            return verb(connection, *args, **kwargs)

    def _look(
        self, verb: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with self._database.engine.connect() as fresh:
            connection = fresh.execution_options(**{READ_ONLY: True})
            with connection.begin():
                return verb(connection, *args, **kwargs)

    # --- the lease -------------------------------------------------------------------------------

    async def take_lease(self) -> bool:
        """True when this relay owns partitions now; what it knew before is forgotten."""
        return await self._in_thread(self._take_lease)

    def _take_lease(self) -> bool:
        self.epochs = {}
        self._give_up_kept()
        if not self._checked:
            self._look(require_tables, self._tables)
            self._checked = True
        begun = time.monotonic()
        epochs = self._write(verbs.take_lease, self._tables, self._clock, self.owner, self._lease)
        # the blocked keys are known before the first page can be read
        self._blocked = (
            self._look(verbs.blocked_rows, self._tables, list(epochs)) if epochs else {}
        )
        self._lease_ends = begun + self._lease
        self.epochs = epochs
        return bool(epochs)

    async def renew_lease(self) -> bool:
        """True when every partition is still this relay's, for another lease."""
        begun = time.monotonic()
        held = await self._in_thread(
            self._write, verbs.renew_lease, self._tables, self._clock, self.owner, self._lease
        )
        self._lease_ends = begun + self._lease
        return held == len(self.epochs)

    @property
    def lease_may_be_over(self) -> bool:
        """By this process's own clock: its lease has not been renewed for as long as it lasts."""
        return time.monotonic() >= self._lease_ends

    async def release_lease(self) -> None:
        """Nothing is leased any more; a successor need not wait."""
        self.epochs = {}
        await self._in_thread(self._give_up_kept)
        await self._in_thread(self._write, verbs.release_lease, self._tables, self.owner)

    # --- pages -----------------------------------------------------------------------------------

    async def exchange(self, acknowledged: Sequence[OutboxRow], limit: int) -> list[OutboxRow]:
        """Removes what was acknowledged and reads the next page, in one transaction."""
        return await self._in_thread(self._exchange, acknowledged, limit)

    def _exchange(self, acknowledged: Sequence[OutboxRow], limit: int) -> list[OutboxRow]:
        blocked = self._blocked
        settled = [r for r in acknowledged if _blocked_key(r) in blocked] if blocked else []
        if not settled and exchange.can_exchange(self._database.engine):
            return self._exchange_at_once(acknowledged, limit)

        def both(connection: sa.Connection) -> list[OutboxRow]:
            if acknowledged:
                verbs.delete_published(connection, self._tables, acknowledged)
                for row in settled:
                    verbs.unblock(connection, self._tables, row)
            return verbs.read_page(
                connection,
                self._tables,
                self._clock,
                list(self.epochs),
                limit,
                look_for_blocked=bool(self._blocked),
                owner=self.owner,
            )

        page = self._write(both) if acknowledged else self._look(both)
        for row in settled:
            self._blocked.pop(_blocked_key(row), None)
        return page

    def _exchange_at_once(self, acknowledged: Sequence[OutboxRow], limit: int) -> list[OutboxRow]:
        if self._kept is None:
            self._kept = exchange.connect(self._database.engine)
        try:
            return exchange.exchange(
                self._kept,
                self._tables,
                self._clock,
                acknowledged,
                list(self.epochs),
                limit,
                look_for_blocked=bool(self._blocked),
                owner=self.owner,
            )
        except BaseException:
            self._give_up_kept()  # nothing read or acknowledged survives a reconnect
            raise

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
        return self._blocked.get(_blocked_key(row), 0)

    async def store_failures(self, failures: Sequence[Failed]) -> None:
        """The keys of these rows wait, or are parked with a dead letter.

        Raises:
            LeaseLost: Another relay owns the partitions; nothing was written.
        """
        await self._in_thread(self._store_failures, failures)

    def _store_failures(self, failures: Sequence[Failed]) -> None:
        mine = {f.row.partition: self.epochs.get(f.row.partition, -1) for f in failures}
        with self._database.begin() as connection:
            limit_idle_transaction(connection, self._lease)
            if not verbs.holds_lease(connection, self._tables, self._clock, self.owner, mine):
                raise LeaseLost("another relay owns the partitions; its own attempts decide")
            # a row that is gone was published by an owner before us: nothing waits for it
            failures = [
                failed
                for failed in failures
                if verbs.still_there(connection, self._tables, failed.row)
            ]
            for failed in failures:
                attempts = self.attempts(failed.row) + 1
                dead = failed.delay is None
                if dead:
                    verbs.bury(connection, self._tables, self._clock, failed, attempts)
                if not dead or failed.row.key is not None:
                    # the key of a dead letter is parked: later ones would overtake it
                    verbs.block(
                        connection, self._tables, self._clock, failed, attempts, parked=dead
                    )
        for failed in failures:
            if failed.delay is not None or failed.row.key is not None:
                self._blocked[_blocked_key(failed.row)] = self.attempts(failed.row) + 1

    def close(self) -> None:
        """Gives the thread and its connection back."""
        self._thread.submit(self._give_up_kept)
        self._thread.shutdown(wait=True)


def _blocked_key(row: OutboxRow) -> BlockedKey:
    return (row.partition, row.key or "", row.position)
