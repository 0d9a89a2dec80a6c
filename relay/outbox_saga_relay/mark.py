"""The low-water mark: what lies below it need not be read again. Pure, no I/O.

PostgreSQL keeps the index entries of deleted rows while somebody holds an old snapshot or an old
transaction id, and every read from the bottom would walk over all of them. So the relay reads
above a mark. The mark is never a promise about what was published (publication is decided by the
rows alone); it passes a position when it is known who could still show a row below it:

    a row at a lower position took its transaction id before it took its position; that position
    was given out before the row the relay has read was committed; the relay's own DELETE took its
    id after that. So whoever may still bring such a row has a lower id than the DELETE, and is
    among the open transactions of any snapshot that is taken after the DELETE has committed. What
    the others left, a read that is made after that sees.

Each of those that are open then has a *floor*: it may bring rows above that, and nothing below. A
page is read above the mark for as long as all of them are open, and above the lowest floor of
those that have ended by the page's own snapshot: the statement itself says which. So an old writer
that stays open costs nothing, and what it wrote is read by the very first page that could show it,
or anything that was written after it had ended.

A mark that trails by a time, or that goes by pg_snapshot_xmax, breaks the order of keys: xmax is
one above the last transaction that has *ended*, and an open one may be above it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

MOST = 1000  # pages that are told apart while the mark waits


@dataclass(slots=True)
class _Seen:
    highest: int  # a read has covered everything visible up to here
    after: int | None = None  # the id of a transaction of ours that began after that read


class Mark:
    """Reads go above `position`; rows below it are in memory, blocked, gone, or not to be seen
    before one of `open` has ended.

    Every event here is one the relay has by itself: a page it read, a transaction it made, and the
    transactions it was told of.
    """

    def __init__(self) -> None:
        self.position = 0
        self.holder: int | None = None  # the transaction below whose floor the mark is not final
        self.open: dict[int, int] = {}  # transactions that may bring rows below it: their floors
        self._passed = 0  # whoever may bring a row below the mark has a lower id
        self._seen: deque[_Seen] = deque()

    @property
    def lowest(self) -> int:
        """Nothing will ever appear below this, whoever ends."""
        return min(self.open.values(), default=self.position)

    def began(self, transaction: int) -> None:
        """A transaction of ours took this id; every page so far was read before."""
        for seen in reversed(self._seen):
            if seen.after is not None:
                break
            seen.after = transaction

    def read(
        self,
        oldest: int | None,
        highest: int | None,
        *,
        full: bool,
        in_progress: Collection[int] = (),
    ) -> None:
        """A page was read above the mark, and above the floors of those that had ended.

        Args:
            oldest: pg_snapshot_xmin of a snapshot not later than the page's; None: not known, and
                the mark stays.
            highest: The last position of the page; None: it had no rows.
            full: There may be more rows behind it, which this read has not seen.
            in_progress: pg_snapshot_xip of the same snapshot.
        """
        self.holder = None
        if oldest is not None:
            if full and highest is not None and highest < self.position:
                # it was filled by what has appeared late: the rest may stand behind its end
                self.lower(highest)
            self.open = {id_: floor for id_, floor in self.open.items() if id_ in in_progress}
            end = highest if full else None
            while self._seen and self._pass(self._seen[0], oldest, end, in_progress):
                self._seen.popleft()
            if self.open:
                self.holder = min(self.open)
        if highest is None or highest <= self.position:
            return
        if len(self._seen) >= MOST:
            # an old writer holds the mark: that the last two pass together is late, never wrong
            last = self._seen.pop()
            highest = max(highest, last.highest)
        self._seen.append(_Seen(highest))

    def _pass(
        self, seen: _Seen, oldest: int, end: int | None, in_progress: Collection[int]
    ) -> bool:
        """Whether the mark has come to the end of that page."""
        if seen.after is None:
            return False
        open_ = [id_ for id_ in in_progress if id_ < seen.after]
        if not open_ and oldest <= seen.after:
            self.holder = oldest
            return False
        # this read may not have come that far: what appeared late may stand behind its end
        whole = end is None or end >= seen.highest
        reached = seen.highest if whole or end is None else end
        if reached > self.position:
            for id_ in open_:
                self.open.setdefault(id_, self.position)
            self.position = reached
            self._passed = max(self._passed, seen.after)
        return whole

    def lower(self, position: int) -> None:
        """Look again above this position: something that was passed may be there to publish."""
        position = max(position, 0)
        if position < self.position:
            # whoever may bring a late row below the old mark is known: one read passes it again
            self._seen.appendleft(_Seen(self.position, after=self._passed))
            self.position = position
            self.open = {id_: floor for id_, floor in self.open.items() if floor < position}

    def reset(self) -> None:
        """Look again from the bottom: nothing is known any more."""
        self.position = 0
        self.holder = None
        self.open = {}
        self._passed = 0
        self._seen.clear()
