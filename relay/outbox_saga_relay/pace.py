"""When a relay looks again: at once while there is something, then less and less often. Pure."""

from __future__ import annotations

import math

LINGER = 0.05  # seconds an acknowledged row may wait for others to be removed with it
COMPANY = 0.25  # seconds a failure may wait for others to be stored with it
DUE = 0.25  # seconds between two looks at the blocked keys whose time has come, at least

_TIE = 0.001  # seconds: a look and a renewal that are due at once


class Pace:
    """The moments of one lease's life, by a monotonic clock.

    An idle relay's renewals look, too (`Store.renew_lease`). The looks between two of them are
    spread evenly, so they are a little closer than `poll`, and still no more than one in `poll`
    on the average: what is committed is read within `poll`, and there is time to publish it.

    Args:
        poll: Seconds between two looks at most when nothing is pending.
        renew: Seconds between two renewals.
        now: The present moment.
    """

    def __init__(self, poll: float, renew: float, now: float) -> None:
        self._poll = poll
        self._renew = renew
        # as many looks as there are whole intervals, and the renewal after them is one more
        self._spread = renew / (int(renew / poll) + 1)
        self._pause = poll / 16
        self.read_at = now
        self.remove_at = now
        self.renew_at = now + renew
        self.enter_at = now
        self.store_at = now
        self.due_at = now

    @property
    def idle(self) -> bool:
        """Nothing was found for as long as the pauses could grow."""
        return self._pause >= self._poll

    def looked(self, begun: float, now: float, *, found: bool) -> None:
        """A look that began then is over: the next is due at once, or after a longer pause.

        What is committed while the database answers is seen by the next look only, so the pause
        counts from the beginning; but a database that answers slowly gets half of it to itself.
        """
        self._pause = self._poll / 16 if found else min(self._poll, self._pause * 2)
        pause = min(self._pause, self._spread)
        self.read_at = now if found else max(begun + pause, now + pause / 2)
        if self.idle and not found:
            self.enter_at = math.inf  # its looks see delayed messages, too
        if 0 <= self.renew_at - self.read_at < _TIE:
            self.read_at = self.renew_at  # which looks

    def hinted(self, now: float) -> None:
        """Somebody said that there is something."""
        self._pause = self._poll / 16
        self.read_at = now
        if self.enter_at == math.inf:
            self.enter_at = now

    def removed(self, now: float) -> None:
        """Acknowledged rows were removed; the next ones may wait for company."""
        self.remove_at = now + LINGER

    def stored(self, now: float) -> None:
        """Failures were stored; the next ones may wait for company."""
        self.store_at = now + COMPANY

    def asked(self, now: float) -> None:
        """It was asked which blocked keys are due: each of them is read again from where it was
        left, over all that was removed since, so that is not to be done for every page.
        """
        self.due_at = now + DUE

    def renews(self, now: float) -> None:
        """The lease is about to be renewed."""
        self.renew_at = now + self._renew

    def entered(self, now: float, *, full: bool) -> None:
        """Delayed messages that are due have entered the outbox; `full`: perhaps not all."""
        self.enter_at = now if full else now + self._poll
