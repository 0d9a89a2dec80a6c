"""A relay's lease: which partitions are its own, since which epoch, and for how long."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.errors import LeaseLost
from outbox_saga.ids import new_id
from outbox_saga.queries import partitions, processes
from outbox_saga.queries import relay as verbs
from outbox_saga.queries.processes import Process
from outbox_saga.queries.relay import OutboxRow, Wanted
from outbox_saga.queries.schema import require_tables
from outbox_saga.tables import PARTITIONS
from outbox_saga_relay.blocked_keys import BlockedKey, BlockedKeys
from outbox_saga_relay.mark import Mark
from outbox_saga_relay.relay_connection import RelayConnection


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


class Lease:
    """The partitions of one relay, and what whoever looks at its row is told.

    Whatever is taken, renewed or lost, what is known of its blocked keys and its mark goes along.

    Args:
        seconds: After which another relay may take over.
        service: Whose relay it is, for those who look.
    """

    def __init__(
        self,
        database: Database,
        connection: RelayConnection,
        *,
        seconds: float,
        service: str,
        mark: Mark,
        blocked: BlockedKeys,
    ) -> None:
        self.owner = new_id()
        self.epochs: dict[int, int] = {}
        self.leaving: frozenset[int] = frozenset()  # owned, but no more of them is read
        self.removed = 0  # messages, after their acknowledgement
        self.fenced = 0  # messages it had sent and may not remove: others have their partitions
        self.oldest: float | None = None  # seconds, as of the last renewal
        self.holder_pid: int | None = None
        self._seconds = seconds
        self._process = Process(self.owner, "relay", service)
        self._tables = database.tables
        self._clock = database.clock
        self._connection = connection
        self._mark = mark
        self._blocked = blocked
        self._checked = False
        self._ends = 0.0
        self._told: Mapping[str, object] = {}  # about the relay, when its row was last written
        self._before: dict[int, int] = {}  # the epochs of the lease it lost
        self._in_hand = 0  # messages it had sent and not removed by then

    @property
    def may_be_over(self) -> bool:
        """By this process's own clock: its lease has not been renewed for as long as it lasts."""
        return time.monotonic() >= self._ends

    @property
    def renew_in(self) -> float:
        """Seconds until it is to be renewed, three times in as long as it lasts."""
        return max(0.0, self._ends - self._seconds * 2 / 3 - time.monotonic())

    @property
    def reading(self) -> tuple[int, ...]:
        """The partitions of which pages are read."""
        return tuple(p for p in self.epochs if p not in self.leaving)

    def epochs_of(self, rows: Collection[OutboxRow]) -> dict[int, int]:
        """The partitions of these rows, and since which epoch they are this relay's."""
        return {row.partition: self.epochs.get(row.partition, -1) for row in rows}

    def is_held(self, connection: sa.Connection, rows: Collection[OutboxRow]) -> bool:
        """Whether the partitions of these rows are this relay's to the end of the transaction."""
        mine = self.epochs_of(rows)
        return partitions.holds_lease(connection, self._tables, self._clock, self.owner, mine)

    def count_removed(self, acknowledged: int, removed: int) -> None:
        """So many of those that were acknowledged could be removed."""
        self.removed += removed
        # an owner after us has published them too, or will
        self.fenced += max(0, acknowledged - removed)

    async def take(self, detail: Mapping[str, object] | None = None) -> bool:
        """True when this relay owns partitions now; what it knew before is forgotten.

        Args:
            detail: Counters, for whoever looks at its row.
        """
        return await self._connection.run(self._take, detail or {})

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

    def _take(self, detail: Mapping[str, object]) -> bool:
        self.epochs, self.leaving = {}, frozenset()
        self._blocked.know({})
        self._mark.reset()
        self._connection.give_up()
        if not self._checked:
            self._connection.look(require_tables, self._tables)
            self._checked = True
        begun = time.monotonic()

        def take(connection: sa.Connection) -> dict[int, int]:
            self._count_fenced(connection)
            share = self._beat(connection, detail)[0]
            return partitions.take_lease(
                connection, self._tables, self._clock, self.owner, self._seconds, share
            )

        epochs = self._connection.write(take)
        # the blocked keys are known before the first page can be read
        self._blocked.know(
            self._connection.look(verbs.blocked_rows, self._tables, self._clock, list(epochs))
            if epochs
            else {}
        )
        self._ends = begun + self._seconds
        self.epochs = epochs
        return bool(epochs)

    async def renew(
        self,
        detail: Mapping[str, object] | None = None,
        *,
        look: Callable[[], Wanted] | None = None,
    ) -> Renewal:
        """Another lease for every partition, and news of what others did to them.

        Takes free partitions up to this relay's share.

        Args:
            detail: As of `take`.
            look: Say whether there is anything to do, too: what a page would ask for, called on
                the connection's thread. None: do not look.
        """
        return await self._connection.run(self._renew, detail or {}, look)

    async def extend(self) -> None:
        """Another lease for what it has, and nothing else: in the middle of a long look.

        Raises:
            LeaseLost: It has not held all of it until now.
        """
        await self._connection.run(self._extend)

    def _extend(self) -> None:
        begun, before = time.monotonic(), dict(self.epochs)

        def extend(connection: sa.Connection) -> bool:
            self._beat(connection, self._told)
            partitions.renew_lease(
                connection, self._tables, self._clock, self.owner, self._seconds
            )
            epochs = partitions.held(connection, self._tables, self._clock, self.owner)
            return all(epochs.get(p) == epoch for p, epoch in before.items())

        if not self._connection.write(extend):
            raise LeaseLost("another relay took partitions over; taking stock")
        self._ends = begun + self._seconds

    def _renew(
        self, detail: Mapping[str, object], look: Callable[[], Wanted] | None = None
    ) -> Renewal:
        begun = time.monotonic()
        before = dict(self.epochs)

        def renew(
            connection: sa.Connection,
        ) -> tuple[Renewal, dict[int, int], dict[BlockedKey, verbs.Blocked]]:
            share, relays = self._beat(connection, detail)
            partitions.renew_lease(
                connection, self._tables, self._clock, self.owner, self._seconds
            )
            epochs = partitions.held(connection, self._tables, self._clock, self.owner)
            if any(epochs.get(partition) != epoch for partition, epoch in before.items()):
                return Renewal(held=False), {}, {}
            if len(epochs) < share:
                epochs = partitions.take_more(
                    connection, self._tables, self._clock, self.owner, self._seconds,
                    share - len(epochs),
                )  # fmt: skip
            again = partitions.take_revisits(connection, self._tables, self.owner)
            blocked = verbs.blocked_rows(connection, self._tables, self._clock, list(epochs))
            gained = frozenset(epochs.keys() - before.keys())
            waiting = look is not None and verbs.anything_to_do(
                connection, self._tables, self._clock, look()
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

        renewal, epochs, blocked = self._connection.write(renew)
        if not renewal.held:
            return renewal
        self._ends = begun + self._seconds
        # what is blocked no longer, though we have not unblocked it, somebody else has
        gone = [position - 1 for position in self._blocked.gone(blocked)]
        if gone:
            renewal.again = min([*gone, *(() if renewal.again is None else (renewal.again - 1,))])
        elif renewal.again is not None:
            renewal.again -= 1
        if renewal.gained:
            renewal.again = 0
        self._blocked.know(blocked)
        self.epochs = epochs
        return renewal

    def _beat(self, connection: sa.Connection, detail: Mapping[str, object]) -> tuple[int, int]:
        """This relay is alive; its share of the partitions, and how many relays there are."""
        self._told = detail
        told = {**detail, **self._detail(connection)}
        processes.beat(connection, self._tables, self._clock, self._process, self._seconds, told)
        relays = max(1, processes.alive(connection, self._tables, self._clock, "relay"))
        return math.ceil(PARTITIONS / relays), relays

    def _detail(self, connection: sa.Connection) -> dict[str, object]:
        """What whoever looks at this relay's row should know; no keys and no payload."""
        mark = self._mark
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
        self._blocked.leave(left)
        await self._connection.run(
            self._connection.write, partitions.release_lease, self._tables, self.owner, left
        )

    async def release(self) -> None:
        """Nothing is leased any more; a successor need not wait."""
        self.epochs, self.leaving = {}, frozenset()

        def release(connection: sa.Connection) -> None:
            partitions.release_lease(connection, self._tables, self.owner)
            processes.left(connection, self._tables, self.owner)

        await self._connection.run(self._connection.give_up)
        await self._connection.run(self._connection.write, release)

    async def put_back(self) -> int | None:
        """The position to look behind, if somebody has put rows back; told once.

        What is blocked is then known as it is.
        """
        again = await self._connection.run(self._connection.write, self._take_back)
        return None if again is None else again - 1

    def _take_back(self, connection: sa.Connection) -> int | None:
        again = partitions.take_revisits(connection, self._tables, self.owner)
        if again is not None:
            owned = list(self.epochs)
            self._blocked.know(verbs.blocked_rows(connection, self._tables, self._clock, owned))
        return again
