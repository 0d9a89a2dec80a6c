"""What the relay has read and not yet removed, in lanes: one for each key. Pure, no I/O.

Of one key at most one message is on its way; the next one may go when that one was acknowledged.
Messages without a key have a lane each. A key with many rows waiting is *held*: no more of it is
read meanwhile, so that it does not fill the memory while other keys have nothing to do.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Collection, Iterable, Sequence

from outbox_saga.queries.relay import OutboxRow


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
        # most keys have one row here: what stands behind it has a place only if there is any
        self._heads: dict[str, OutboxRow] = {}  # the first of each key, waiting or on its way
        self._behind: dict[str, deque[OutboxRow]] = {}  # the others, in order; never empty
        self._ready: deque[OutboxRow] = deque()  # may go; of a key its head, by any row of it
        self._flying: dict[int, OutboxRow] = {}  # on their way, by position
        self._held: dict[str, int] = {}
        self._asked: set[int] = set()  # waiting, and in vain by themselves since one was accepted
        self._known: set[int] = set()
        self._leaving: set[int] = set()  # partitions
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
        return len(self._flying)

    @property
    def sent(self) -> int:
        """Rows on their way, or acknowledged and not yet removed."""
        waiting = sum(map(len, self._behind.values()))
        waiting += sum(head.position not in self._flying for head in self._heads.values())
        waiting += sum(row.key is None for row in self._ready)
        return len(self._known) - waiting

    @property
    def ready(self) -> int:
        """Rows that may be sent now."""
        return len(self._ready)

    @property
    def unasked(self) -> int:
        """Of these, those with which nobody has asked in vain whether the broker is there."""
        return len(self._ready) - len(self._asked)

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
        return [key for key in self._held if self._waiting(key) <= few]

    def _waiting(self, key: str) -> int:
        head = self._heads.get(key)
        if head is None:
            return 0
        return (head.position not in self._flying) + len(self._behind.get(key, ()))

    # --- coming and going ------------------------------------------------------------------------

    def add(self, rows: Iterable[OutboxRow]) -> None:
        """Takes these in, in position order; those beyond the depth of their lane are dropped, and
        their key is held.
        """
        known, heads, held, ready = self._known, self._heads, self._held, self._ready
        size = 0
        for row in rows:
            position, key = row.position, row.key
            if position in known:
                continue
            if key is None:
                ready.append(row)
            elif key in held:
                continue
            elif key not in heads:
                heads[key] = row
                ready.append(row)
            elif self._waiting(key) >= self._depth:
                held[key] = (self._behind.get(key) or [heads[key]])[-1].position
                continue
            else:
                self._put_behind(key, row)
            known.add(position)
            size += len(row.body)
        self._size += size

    def _put_behind(self, key: str, row: OutboxRow) -> None:
        head, behind = self._heads[key], self._behind.setdefault(key, deque())
        behind.append(row)
        if row.position > (behind[-2] if len(behind) > 1 else head).position:
            return
        # put back by an operator, in front of what we have
        if head.position in self._flying:
            self._behind[key] = deque(sorted(behind))
        else:
            self._arrange(key, [head, *behind])

    def _arrange(self, key: str, rows: list[OutboxRow]) -> None:
        first, *others = sorted(rows)
        self._heads[key] = first
        self._behind[key] = deque(others)

    def more_of(self, key: str, rows: Sequence[OutboxRow], *, all_of_it: bool) -> None:
        """The next rows of a held key; if that is `all_of_it`, the key is held no longer."""
        behind = self._held.pop(key, None)
        if behind is None:
            return
        self.add(rows)
        if not all_of_it and key not in self._held:
            self._held[key] = rows[-1].position if rows else behind

    def take(self, limit: int, room: int = sys.maxsize) -> list[OutboxRow]:
        """At most so many rows that may be sent now, one of each key; they are on their way.

        Args:
            room: Bytes of bodies; the row that is the first to go beyond is the last one.
        """
        taken: list[OutboxRow] = []
        ready, heads, flying = self._ready, self._heads, self._flying
        if self._asked and limit == 1:
            self._unasked_first()
        while ready and len(taken) < limit and room > 0:
            row = ready.popleft()
            if row.key is not None:
                row = heads[row.key]
            flying[row.position] = row
            taken.append(row)
            room -= len(row.body)
        if self._asked:
            self._asked.difference_update([row.position for row in taken])
        return taken

    def _unasked_first(self) -> None:
        ready, heads = self._ready, self._heads
        for _ in range(len(ready)):
            row = ready[0] if ready[0].key is None else heads[ready[0].key]
            if row.position not in self._asked:
                return
            ready.rotate(-1)

    def accepted(self, rows: Iterable[OutboxRow]) -> int:
        """They were acknowledged: the next of their keys may go. They stay known until
        `removed`. Returns the bytes of their bodies, which count no longer.
        """
        flying, heads, behind, size = self._flying, self._heads, self._behind, 0
        self._asked.clear()  # the broker is there
        for row in rows:
            if flying.pop(row.position, None) is None:
                continue  # all that was known has been forgotten meanwhile
            size += len(row.body)
            key = row.key
            if key in behind:
                self._go_on(key)
            elif key is not None:
                del heads[key]
        self._size -= size
        return size

    def removed(self, rows: Iterable[OutboxRow]) -> None:
        """These are in the outbox no longer."""
        self._known.difference_update([row.position for row in rows])

    def returned(self, row: OutboxRow, *, last: bool = False) -> None:
        """It did not go after all, and is the next of its key again.

        `last`: after others, and whoever goes alone is one of those that come in the meantime. Of
        a partition that is left it is not: whoever gets that one reads the row.
        """
        if row.partition in self._leaving:
            self.refused(row)
            return
        if not self._landed(row):
            return
        if row.key in self._behind:
            # an operator may have put back one that comes before it
            self._arrange(row.key, [row, *self._behind[row.key]])
        if last:
            self._ready.append(row)
            self._asked.add(row.position)
        else:
            self._ready.appendleft(row)

    def refused(self, row: OutboxRow) -> None:
        """Its key is blocked: it and all that wait behind it are left in the outbox.

        What was put back before it goes all the same: nobody would look for that again, for a
        key that goes on is read from its blocked message on.
        """
        if not self._landed(row):
            return
        self._forget([row])
        if row.key is None:
            return
        waiting = self._behind.pop(row.key, ())
        before = deque(each for each in waiting if each < row)
        self._forget(each for each in waiting if each > row)
        self._held.pop(row.key, None)
        if before:
            self._behind[row.key] = before
        self._go_on(row.key)

    def skipped(self, row: OutboxRow) -> None:
        """It has left the outbox unpublished, and the next of its key may go."""
        if self._landed(row):
            self._forget([row])
            self._go_on(row.key)

    def leave(self, partitions: Collection[int]) -> None:
        """What waits of these partitions is left in the outbox; what is on its way stays known.

        Nothing more of them is sent, whatever comes back, until they are `left`.
        """
        self._leaving.update(partitions)
        leaving = [row for row in self._ready if row.partition in partitions]
        self._forget(row for row in leaving if row.key is None)
        self._ready = deque(row for row in self._ready if row.partition not in partitions)
        for key, head in list(self._heads.items()):
            if head.partition in partitions:
                self._forget(self._behind.pop(key, ()))
                self._held.pop(key, None)
                if head.position not in self._flying:
                    self._forget([head])
                    del self._heads[key]

    def left(self, partitions: Collection[int]) -> None:
        """These are another relay's, and what there may be of them later is as any other."""
        self._leaving.difference_update(partitions)

    def flying_of(self, partitions: Collection[int]) -> int:
        """How many rows of these partitions are on their way."""
        return sum(row.partition in partitions for row in self._flying.values())

    def release_held(self) -> int | None:
        """No key is held any more; the position to look behind so that none of them is missed."""
        lowest = min(self._held.values(), default=None)
        self._held.clear()
        return lowest

    def _landed(self, row: OutboxRow) -> bool:
        """It is on its way no longer. False: all that was known has been forgotten meanwhile."""
        return self._flying.pop(row.position, None) is not None

    def _go_on(self, key: str | None) -> None:
        if key is None:
            return
        behind = self._behind.get(key)
        if behind is None:
            del self._heads[key]
            return
        head = self._heads[key] = behind.popleft()
        if not behind:
            del self._behind[key]
        self._ready.append(head)

    def _forget(self, rows: Iterable[OutboxRow]) -> None:
        for row in rows:
            self._known.discard(row.position)
            self._asked.discard(row.position)
            self._size -= len(row.body)
