"""The low-water mark: below it there is nothing the relay has not seen. Pure, no I/O.

PostgreSQL keeps the index entries of deleted rows while somebody holds an old snapshot, and every
read from the bottom would walk over all of them. So the relay reads above a mark. The mark is
never a promise about what was published (publication is decided by the rows alone); it may only
pass a position once no transaction that could still show a row below it is open:

    a row at a lower position took its transaction id before it took its position; that position
    was given out before the row the relay has read was committed; the relay's own DELETE took its
    id after that. So whoever may still bring such a row has a lower id than the DELETE. Once
    pg_snapshot_xmin is above the DELETE's id, all of them have ended, and a read that is made
    after that sees what they left.

A mark that trails by a time, or that goes by pg_snapshot_xmax, breaks the order of keys: xmax is
one above the last transaction that has *ended*, and an open one may be above it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

MOST = 1000  # pages that are told apart while the mark waits


@dataclass(slots=True)
class _Seen:
    highest: int  # a read has covered everything visible up to here
    after: int | None = None  # the id of a transaction of ours that began after that read


class Mark:
    """Reads go above `position`; rows below it are in memory, blocked, or gone.

    Every event here is one the relay has by itself: a page it read, a transaction it made, and the
    oldest transaction it was told of.
    """

    def __init__(self) -> None:
        self.position = 0
        self.holder: int | None = None  # the transaction that the mark waits for
        self._seen: deque[_Seen] = deque()

    def began(self, transaction: int) -> None:
        """A transaction of ours took this id; every page so far was read before."""
        for seen in reversed(self._seen):
            if seen.after is not None:
                break
            seen.after = transaction

    def read(self, oldest: int | None, highest: int | None, *, full: bool) -> None:
        """A page was read above the mark.

        Args:
            oldest: pg_snapshot_xmin of a snapshot not later than the page's; None: not known, and
                the mark stays.
            highest: The last position of the page; None: it had no rows.
            full: There may be more rows behind it, which this read has not seen.
        """
        self.holder = None
        while oldest is not None and self._seen:
            first = self._seen[0]
            if first.after is None:
                break
            if oldest <= first.after:
                self.holder = oldest
                break
            if full and highest is not None and highest < first.highest:
                # this read has not come that far: what appeared late may stand behind its end
                self.position = max(self.position, highest)
                break
            self.position = max(self.position, first.highest)
            self._seen.popleft()
        if highest is None:
            return
        if len(self._seen) >= MOST:
            # an old writer holds the mark: that the last two pass together is late, never wrong
            last = self._seen.pop()
            highest = max(highest, last.highest)
        self._seen.append(_Seen(highest))

    def lower(self, position: int) -> None:
        """Look again above this position: something that was passed may be there to publish."""
        if position < self.position:
            # nobody can bring a late row below the old mark: one read is enough to pass it again
            self._seen.appendleft(_Seen(self.position, after=0))
            self.position = max(position, 0)

    def reset(self) -> None:
        """Look again from the bottom: nothing is known any more."""
        self.position = 0
        self.holder = None
        self._seen.clear()
