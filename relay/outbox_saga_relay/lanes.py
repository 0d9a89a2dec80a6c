"""What the relay has read and not yet removed, in lanes: one for each key. Pure, no I/O.

Of one key at most one message is on its way; the next one may go when that one was acknowledged.
Messages without a key have a lane each. A key with many rows waiting is *held*: no more of it is
read meanwhile, so that it does not fill the memory while other keys have nothing to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from outbox_saga.queries.relay import OutboxRow


@dataclass(slots=True)
class _Lane:
    waiting: deque[OutboxRow] = field(default_factory=deque)
    flying: OutboxRow | None = None


class Lanes:
    """Rows come in position order and leave one by one of each key.

    Args:
        depth: Rows of one key that are kept; what comes beyond is left in the outbox.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self.clear()

    def clear(self) -> None:
        """Nothing is known any more."""
        self._lanes: dict[str, _Lane] = {}
        self._loose: dict[int, OutboxRow] = {}  # without a key: on their way, by position
        self._ready: deque[OutboxRow] = deque()  # the heads of lanes that nothing is on its way of
        self._held: dict[str, int] = {}
        self._known: set[int] = set()
        self._flying = 0
        self._size = 0

    # --- what there is ---------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Rows in memory, on their way or waiting for it."""
        return len(self._known)

    @property
    def size(self) -> int:
        """Bytes of their bodies."""
        return self._size

    @property
    def flying(self) -> int:
        """Rows on their way."""
        return self._flying

    @property
    def has_ready(self) -> bool:
        """Whether something may be sent now."""
        return bool(self._ready)

    @property
    def has_choice(self) -> bool:
        """Whether more than one row may be sent now."""
        return len(self._ready) > 1

    @property
    def held(self) -> dict[str, int]:
        """The keys of which no more is read for now, with the position to go on behind."""
        return self._held

    def positions(self, above: int) -> list[int]:
        """Positions in memory above this one."""
        return [position for position in self._known if position > above]

    def wanting(self) -> list[str]:
        """Held keys whose lane is half empty: their next rows are wanted."""
        few = self._depth // 2
        return [
            key
            for key in self._held
            if (lane := self._lanes.get(key)) is None or len(lane.waiting) <= few
        ]

    # --- coming and going ------------------------------------------------------------------------

    def add(self, rows: Iterable[OutboxRow]) -> None:
        """Takes these in, in position order; those beyond the depth of their lane are dropped, and
        their key is held.
        """
        known, lanes, held = self._known, self._lanes, self._held
        for row in rows:
            position, key = row.position, row.key
            if position in known:
                continue
            if key is None:
                self._ready.append(row)
            else:
                if key in held:
                    continue
                lane = lanes.get(key)
                if lane is None:
                    lane = lanes[key] = _Lane()
                waiting = lane.waiting
                if len(waiting) >= self._depth:
                    held[key] = waiting[-1].position
                    continue
                if lane.flying is None and not waiting:
                    self._ready.append(row)
                waiting.append(row)
                if len(waiting) > 1 and waiting[-2].position > position:
                    # put back by an operator, in front of what we have
                    lane.waiting = deque(sorted(waiting))
            known.add(position)
            self._size += len(row.body)

    def more_of(self, key: str, rows: Sequence[OutboxRow], *, all_of_it: bool) -> None:
        """The next rows of a held key; if that is `all_of_it`, the key is held no longer."""
        behind = self._held.pop(key, None)
        if behind is None:
            return
        self.add(rows)
        if not all_of_it and key not in self._held:
            self._held[key] = rows[-1].position if rows else behind

    def take(self, limit: int) -> list[OutboxRow]:
        """At most so many rows that may be sent now, one of each key; they are on their way."""
        taken: list[OutboxRow] = []
        ready, lanes = self._ready, self._lanes
        while ready and len(taken) < limit:
            row = ready.popleft()
            if row.key is None:
                self._loose[row.position] = row
            else:
                lane = lanes[row.key]
                row = lane.flying = lane.waiting.popleft()
            taken.append(row)
        self._flying += len(taken)
        return taken

    def accepted(self, row: OutboxRow) -> None:
        """It was acknowledged: the next of its key may go. It stays known until `removed`."""
        self._size -= len(row.body)
        self._go_on(row)

    def removed(self, rows: Iterable[OutboxRow]) -> None:
        """These are in the outbox no longer."""
        self._known.difference_update([row.position for row in rows])

    def returned(self, row: OutboxRow, *, last: bool = False) -> None:
        """It did not go after all, and is the next of its key again; `last`: after other keys."""
        self._flying -= 1
        if row.key is None:
            del self._loose[row.position]
        else:
            lane = self._lanes[row.key]
            lane.flying = None
            lane.waiting.appendleft(row)
        if last:
            self._ready.append(row)
        else:
            self._ready.appendleft(row)

    def refused(self, row: OutboxRow) -> None:
        """Its key is blocked: it and all that wait behind it are left in the outbox."""
        self._flying -= 1
        self._forget([row])
        if row.key is None:
            del self._loose[row.position]
        else:
            self._forget(self._lanes.pop(row.key).waiting)
            self._held.pop(row.key, None)

    def skipped(self, row: OutboxRow) -> None:
        """It has left the outbox unpublished, and the next of its key may go."""
        self._forget([row])
        self._go_on(row)

    def leave(self, partitions: Collection[int]) -> None:
        """What waits of these partitions is left in the outbox; what is on its way stays known."""
        leaving = [row for row in self._ready if row.partition in partitions]
        self._forget(row for row in leaving if row.key is None)
        self._ready = deque(row for row in self._ready if row.partition not in partitions)
        for key, lane in list(self._lanes.items()):
            first = lane.flying or lane.waiting[0]
            if first.partition in partitions:
                self._forget(lane.waiting)
                lane.waiting = deque()
                self._held.pop(key, None)
                if lane.flying is None:
                    del self._lanes[key]

    def flying_of(self, partitions: Collection[int]) -> int:
        """How many rows of these partitions are on their way."""
        loose = sum(row.partition in partitions for row in self._loose.values())
        keyed = sum(
            lane.flying is not None and lane.flying.partition in partitions
            for lane in self._lanes.values()
        )
        return loose + keyed

    def release_held(self) -> int | None:
        """No key is held any more; the position to look behind so that none of them is missed."""
        lowest = min(self._held.values(), default=None)
        self._held.clear()
        return lowest

    def _go_on(self, row: OutboxRow) -> None:
        self._flying -= 1
        if row.key is None:
            del self._loose[row.position]
            return
        lane = self._lanes[row.key]
        lane.flying = None
        if lane.waiting:
            self._ready.append(lane.waiting[0])
        else:
            del self._lanes[row.key]

    def _forget(self, rows: Iterable[OutboxRow]) -> None:
        for row in rows:
            self._known.discard(row.position)
            self._size -= len(row.body)
