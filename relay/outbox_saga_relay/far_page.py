"""A page that is found far behind rows that wait: looked for in pieces, as of one snapshot.

Behind a parked key a million rows may stand, and a page that is read from the bottom passes all of
them. One statement that does so may take longer than any statement is allowed to, and would be
ended, and begun again, for ever. In pieces it comes to its end, however long that takes; and since
all of them see what the first one saw, together they are that one statement: of no key is a later
row found without an earlier one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.errors import LeaseLost
from outbox_saga.queries import partitions
from outbox_saga.queries import relay as verbs
from outbox_saga.queries.dialects import limit_idle_transaction
from outbox_saga.queries.relay import OutboxRow, Wanted
from outbox_saga_relay.lease import Lease
from outbox_saga_relay.relay_connection import RelayConnection

PIECE, LEAST = 20_000, 100  # rows that one statement passes
SHARE = 1 / 8  # of the deadline: a page for which one statement takes longer is far


@dataclass(slots=True)
class Found:
    """What is known once the end of the page was found.

    Args:
        oldest, in_progress: As of `queries.exchange.Exchanged`; of the snapshot.
        put_back: Likewise.
        due: The positions whose keys wait no longer.
    """

    rows: list[OutboxRow]
    due: Sequence[int] = ()
    oldest: int | None = None
    in_progress: frozenset[int] = frozenset()
    put_back: bool = False


class FarPage:
    """Pages are looked for in pieces while `is_far`, and the relay keeps its lease meanwhile.

    Args:
        marks: Whether pages tell the low-water mark what they have seen (PostgreSQL).
    """

    def __init__(
        self,
        database: Database,
        connection: RelayConnection,
        lease: Lease,
        marks: Callable[[], bool],
    ) -> None:
        self.is_far = False
        self._connection = connection
        self._lease = lease
        self._marks = marks
        self._tables = database.tables
        self._clock = database.clock
        self._slow = database.deadline * SHARE
        # between two pieces the lease may be extended, which has a deadline of its own
        self._idle = 2 * database.deadline
        self._piece = PIECE
        self._rests_until = 0.0

    @property
    def rests(self) -> bool:
        """A look that found nothing took long: the database gets as long to itself."""
        return self.is_far and time.monotonic() < self._rests_until

    def took(self, seconds: float) -> None:
        """A page was found, or none, in so many seconds."""
        self.is_far = seconds > self._slow

    async def read(self, wanted: Wanted) -> Found:
        """As `queries.relay.read_page`, with what the mark is told.

        Raises:
            LeaseLost: The leases were not held all the time.
        """
        begun = time.monotonic()
        run, lease = self._connection.run, self._lease
        snapshot = await run(self._connection.snapshot)
        try:
            found = await run(self._begin, snapshot, wanted)
            # by one moment for all pieces: who waits in one of them waits in the next
            wanted = replace(wanted, due=found.due)
            above: int | None = None if found.put_back else wanted.lowest
            while above is not None and len(found.rows) < wanted.limit:
                some, above = await run(
                    self._next, snapshot, wanted, above, wanted.limit - len(found.rows)
                )
                found.rows += some
                if self._connection.hurries:
                    return Found([])  # nobody will send it, nor wait for the end of it
                if above is not None and lease.renew_in <= 0:
                    await lease.extend()
        finally:
            await run(self._connection.end_snapshot, snapshot)
        # held as it began, and now, of the same epochs: nobody else has parked keys meanwhile
        await lease.extend()
        took = time.monotonic() - begun
        self.took(took)
        self._rests_until = 0.0 if found.rows else time.monotonic() + took
        return found

    def _begin(self, snapshot: sa.Connection, wanted: Wanted) -> Found:
        self._connection.resume(snapshot)
        # of a process that stands still it would hold back vacuum for as long as that lasts
        limit_idle_transaction(snapshot, self._idle)
        found = Found([], () if wanted.due is None else wanted.due)
        if wanted.due is None:
            found.due = verbs.due_positions(snapshot, self._tables, self._clock, wanted.partitions)
        if self._marks():
            told = snapshot.scalar(sa.text("SELECT pg_current_snapshot()::text"))
            oldest, _, ids = str(told).split(":")
            found.oldest = int(oldest)
            found.in_progress = frozenset(map(int, ids.split(",") if ids else ()))
        owner = self._lease.owner
        held = partitions.held(snapshot, self._tables, self._clock, owner)
        if any(held.get(p) != self._lease.epochs.get(p) for p in wanted.partitions):
            raise LeaseLost("another relay owns the partitions; what it reads decides")
        if wanted.none_if_put_back:
            lease = self._tables.partition_lease
            noted = sa.exists().where(lease.c.owner == owner, lease.c.revisit.is_not(None))
            found.put_back = bool(snapshot.scalar(sa.select(noted)))
        return found

    def _next(
        self, snapshot: sa.Connection, wanted: Wanted, above: int, limit: int
    ) -> tuple[list[OutboxRow], int | None]:
        """The rows of one piece, and where the next one begins; None: there is none."""
        self._connection.resume(snapshot)
        begun, outbox = time.monotonic(), self._tables.outbox
        try:
            end: int | None = snapshot.scalar(
                sa.select(outbox.c.position)
                .where(outbox.c.position > above)
                .order_by(outbox.c.position)
                .offset(self._piece)
                .limit(1)
            )
            piece = replace(
                wanted,
                limit=limit,
                above=above,
                upto=end,
                owner=None,  # as of the snapshot the lease may be over by now
                none_if_put_back=False,
                unless_ended={},
            )
            rows = verbs.read_page(snapshot, self._tables, self._clock, piece)
        finally:
            if time.monotonic() - begun > self._slow:
                self._piece = max(LEAST, self._piece // 2)
        return rows, end
