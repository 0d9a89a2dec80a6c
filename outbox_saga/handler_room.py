"""How many messages one handler may have in hand in this process, and who waits for a place.

A thread cannot be ended: a place that a timed-out one holds may never come free.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Room:
    """Never more messages in hand than places, and nobody waits for a place that need not come.

    A place is given back when the work has really ended, a timed-out thread's when it ends.

    Args:
        places: How many.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._taken = 0
        self._late = 0  # of those taken: by threads that nobody waits for any more
        self._waiting: deque[asyncio.Future[bool]] = deque()

    @property
    def left(self) -> int:
        """Places that are free, for somebody who does not wait."""
        return self.places - self._taken

    @property
    def stuck(self) -> bool:
        """Whether no place can come free but by a thread that is overdue."""
        return self._late >= self.places

    async def take(self) -> bool:
        """True: a place is taken, when it was this caller's turn. False: the room is stuck."""
        if self.left > 0:
            self._taken += 1
            return True
        if self.stuck:
            return False
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self.leave()  # the place came at the same moment
            raise

    def leave(self) -> None:
        """The work has ended; who has waited longest has its place."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(True)
                return
        self._taken -= 1

    def outlived(self) -> bool:
        """The work is out of time, and goes on in its thread: its place is taken until it ends.

        True: with it the room is stuck; those who wait are told.
        """
        self._late += 1
        if not self.stuck:
            return False
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(False)
        return True

    def came_out(self) -> None:
        """A thread that was out of time has ended."""
        self._late -= 1
        self.leave()
