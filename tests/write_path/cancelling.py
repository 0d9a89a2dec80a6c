"""A coroutine that is cancelled at its k-th suspension."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from dataclasses import dataclass
from typing import Any, Literal

# While it waits; or in the moment in which what it waits for has come, so that the database has
# done what it was asked for; or while it waits, and once more at its next suspension.
Moment = Literal["while it waits", "with the answer", "twice"]
MOMENTS: tuple[Moment, ...] = ("while it waits", "with the answer", "twice")


@dataclass
class CancelledAt:
    """To be awaited in a task of its own, which is cancelled.

    Args:
        coroutine: What is run.
        at: The suspension, counted from 1; 0 for none.
        moment: When.
    """

    coroutine: Awaitable[Any]
    at: int
    moment: Moment
    suspensions: int = 0
    done: bool = False  # the cancellation was asked for

    def __await__(self) -> Generator[Any, None, Any]:
        """As the coroutine's own."""
        inner = self.coroutine.__await__()
        error: BaseException | None = None
        while True:
            try:
                future = inner.send(None) if error is None else inner.throw(error)
            except StopIteration as stop:
                return stop.value
            self.suspensions += 1
            again = self.moment == "twice" and self.suspensions == self.at + 1
            if again or self.suspensions == self.at:
                self._cancel(future)
            error = None
            try:
                yield future
            except BaseException as thrown:  # noqa: BLE001 - is thrown into what is run
                error = thrown

    def _cancel(self, future: asyncio.Future[Any] | None) -> None:
        self.done = True
        task = asyncio.current_task()
        assert task is not None
        if self.moment == "with the answer" and future is not None:
            # before the task itself hears of it: the answer is there, and lost to it
            future.add_done_callback(lambda _: task.cancel())
        else:
            asyncio.get_running_loop().call_soon(task.cancel)
