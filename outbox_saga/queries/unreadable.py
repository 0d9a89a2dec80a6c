"""Instances whose rows this release cannot read: they keep nobody from the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from uuid import UUID

logger = logging.getLogger("outbox_saga.saga")

AGAIN = 30.0  # seconds until one is looked at again: a person may have mended its row
AT_MOST = 1000  # that are left out by name; a longer list would cost every claim


class Unreadable:
    """Those that one process has come across, left out of its claims for `AGAIN` seconds each.

    What is beyond `AT_MOST` is read past each time. Nothing is written to them: a process of a
    newer release, which can read them, takes them up as if this one were not there.

    Args:
        clock: Seconds, never backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[UUID, float] = {}
        self._told = 0.0

    @property
    def ids(self) -> Sequence[UUID]:
        """Whom to leave out now."""
        now = self._clock()
        self._until = {id_: until for id_, until in self._until.items() if now < until}
        return list(self._until)

    def note(self, id_: UUID, why: str) -> None:
        """Left out from now on, and why is in the log; of too many, only that they are."""
        if id_ in self._until:
            return
        now = self._clock()
        if len(self._until) < AT_MOST:
            self._until[id_] = now + AGAIN
            logger.error("%s; it is looked at again in %.0f s", why, AGAIN)
        elif now >= self._told:
            self._told = now + AGAIN
            logger.error("more than %d sagas cannot be read here; one more: %s", AT_MOST, why)
