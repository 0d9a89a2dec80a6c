"""How much of what waits is leased next: of a handler's messages no more than it has places.

A message that is leased and finds no place has to be given back, which is a transaction each; and
where thousands wait for one place, the next ones would be leased at once.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.handler_room import Room
from outbox_saga.handlers import Handlers
from outbox_saga.queries import waiting
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.waiting import Kind, Leased
from outbox_saga.tables import Tables

# Of the time at most that looks for what is not there take: a look passes over all that is due
# and not looked for, however much that is.
_LOOKING = 1 / 10


@dataclass(slots=True)
class Share:
    """The messages of one kind, or all but those of some.

    Args:
        consumers: Whose.
        only: Of this kind; None: of any.
        but: Of none of these.
        room: Where its handler's places are; None: as many as come.
    """

    consumers: tuple[str, ...]
    only: Kind | None = None
    but: tuple[Kind, ...] = ()
    room: Room | None = None
    quiet_until: float = field(default=0.0, init=False)  # nothing of it was due

    @property
    def is_all(self) -> bool:
        """Whether there is no other."""
        return self.only is None and not self.but


class Shares:
    """Every handler with so many places has a share of its own, and all else is one more.

    Args:
        handlers: Of the service.
        poll: Seconds for which a share that had nothing due is left alone, if none of its own
            messages ends meanwhile.
    """

    def __init__(self, handlers: Handlers, poll: float) -> None:
        self.consumers = tuple(sorted(handlers.consumers()))
        self._poll = poll
        self._turn = 0
        limited = [
            Share((h.consumer,), Kind(h.consumer, h.topic, h.message_class.type_name), room=h.room)
            for h in handlers.limited()
        ]
        but = tuple(share.only for share in limited if share.only is not None)
        self._shares = [Share(self.consumers, but=but), *limited]

    def open(self) -> list[Share]:
        """Those of which something may be leased now; each time another one comes first."""
        self._turn += 1
        now = time.monotonic()
        found = [
            share
            for share in self._shares
            if share.quiet_until <= now and (share.room is None or share.room.left > 0)
        ]
        first = self._turn % max(1, len(found))
        return found[first:] + found[:first]

    def look_again(self) -> None:
        """None is left alone any more."""
        for share in self._shares:
            share.quiet_until = 0.0

    def lease(
        self,
        connection: sa.Connection,
        tables: Tables,
        clock: Clock,
        shares: list[Share],
        limit: int,
        *,
        owner: UUID,
        seconds: float,
        in_hand: Collection[int],
    ) -> list[tuple[Leased, Share]]:
        """Due messages of these shares, now leased to `owner` for so many seconds, but for those
        that it is at.
        """
        found: list[tuple[Leased, Share]] = []
        for share in shares:
            wanted = limit - len(found)
            if share.room is not None:
                wanted = min(wanted, share.room.left)
            if wanted > 0 and (share.is_all or self._any_due(connection, tables, clock, share)):
                leased = waiting.lease_due(
                    connection,
                    tables,
                    clock,
                    owner,
                    seconds,
                    share.consumers,
                    wanted,
                    in_hand,
                    only=share.only,
                    but=share.but,
                )
                found += [(each, share) for each in leased]
        return found

    def _any_due(
        self, connection: sa.Connection, tables: Tables, clock: Clock, share: Share
    ) -> bool:
        """A look first: leasing locks what it passes over (MariaDB)."""
        begun = time.monotonic()
        if waiting.any_due(
            connection, tables, clock, share.consumers, only=share.only, but=share.but
        ):
            return True
        now = time.monotonic()
        share.quiet_until = now + max(self._poll, (now - begun) / _LOOKING)
        return False
