"""When a relay looks again: at once while there is something, then less and less often. Pure."""

from __future__ import annotations

LINGER = 0.02  # seconds an acknowledged row may wait for others to be removed with it


class Pace:
    """The moments of one lease's life, by a monotonic clock.

    Args:
        poll: Seconds between two looks when nothing is pending.
        renew: Seconds between two renewals.
        now: The present moment.
    """

    def __init__(self, poll: float, renew: float, now: float) -> None:
        self._poll = poll
        self._renew = renew
        self._pause = poll / 16
        self.read_at = now
        self.remove_at = now
        self.renew_at = now + renew
        self.enter_at = now

    @property
    def idle(self) -> bool:
        """Nothing was found for as long as the pauses could grow."""
        return self._pause >= self._poll

    def looked(self, now: float, *, found: bool) -> None:
        """A look is over: the next one is due at once, or after a longer pause."""
        self._pause = self._poll / 16 if found else min(self._poll, self._pause * 2)
        self.read_at = now if found else now + self._pause

    def hinted(self, now: float) -> None:
        """Somebody said that there is something."""
        self._pause = self._poll / 16
        self.read_at = now

    def removed(self, now: float) -> None:
        """Acknowledged rows were removed; the next ones may wait for company."""
        self.remove_at = now + LINGER

    def renewed(self, now: float) -> None:
        """The lease was renewed."""
        self.renew_at = now + self._renew

    def entered(self, now: float, *, full: bool) -> None:
        """Delayed messages that are due have entered the outbox; `full`: perhaps not all."""
        self.enter_at = now if full else now + self._poll
