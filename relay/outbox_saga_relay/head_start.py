"""The database's statement leaves before a batch of messages is made ready.

The interpreter runs one thread at a time, and lets go of a busy one only after some milliseconds.
A statement whose thread has not had its turn by then would leave when the batch is through, and
the server would have had nothing to do meanwhile; nor would we while it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

MANY = 50  # messages: fewer are made ready sooner than anybody could wait for
LIMIT = 0.005  # seconds: a database that is slow to begin with must not hold up the broker


class HeadStart:
    """Lasts from `begin` until the server is at work, or time is over.

    Args:
        over: Called on the event loop when the server is at work.
        now: A monotonic clock, in seconds.
    """

    def __init__(
        self, over: Callable[[], None], *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._over = over
        self._now = now
        self._until = 0.0

    @property
    def left(self) -> float:
        """Seconds it lasts yet, at most; 0: it does not."""
        return max(0.0, self._until - self._now()) if self._until else 0.0

    def begin(self) -> None:
        """A statement is about to be sent by another thread."""
        self._until = self._now() + LIMIT

    def end(self) -> None:
        """It has been sent, or there was none."""
        self._until = 0.0

    def teller(self) -> Callable[[], None]:
        """To be called by the other thread, once, when it has sent everything."""
        loop = asyncio.get_running_loop()

        def sent() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._sent)

        return sent

    def _sent(self) -> None:
        self.end()
        self._over()
