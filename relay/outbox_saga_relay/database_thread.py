"""A thread for the database which nobody has to wait for longer than a deadline.

A server that stands still answers no statement, and its machine still answers TCP: no timeout of
the network's ends the wait. So whoever waits has a limit of time, cuts the connection from outside
when it is over, and does not wait for the thread if that does not help.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from outbox_saga.errors import DatabaseSilent

T = TypeVar("T")

AFTER_CUT = 1.0  # seconds in which a thread whose connection was cut comes back
CLOSING = 1.0  # seconds that closing waits for the thread
HURRIED = 5.0  # seconds a call may take once the program has been asked to end
LAST_TRY = 1.0  # the same, when the database has not answered since

_Call = tuple[Callable[[], Any], "Future[Any]"]


class DatabaseThread:
    """What is done on it has ended in time, or is left behind: nobody waits for it any longer.

    One call at a time, in the order they came. A call that was left behind holds up those after
    it (there never are two at once), and each of them ends in time as well. The thread keeps no
    process from ending.

    Args:
        name: Of the thread.
        limit: Seconds for one call.
        cut: Ends the connection that is in use; called from another thread when time is over.
    """

    def __init__(self, name: str, *, limit: float, cut: Callable[[], None]) -> None:
        self._name = name
        self._limit = limit
        self._cut = cut
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._hurry: float | None = None
        self._hurried_at = 0.0
        self._waits: set[tuple[asyncio.Timeout, float]] = set()

    async def run(self, work: Callable[[], T]) -> T:
        """What the work returns or raises.

        Raises:
            DatabaseSilent: Time is over. What the work has done by then, and does later, is
                unknown.
        """
        future = self._submit(work)
        began = time.monotonic()
        wait = asyncio.timeout(self._left(began))
        try:
            async with wait:
                self._waits.add((wait, began))
                try:
                    return await asyncio.wrap_future(future)
                finally:
                    self._waits.discard((wait, began))
        except TimeoutError:
            if not wait.expired():
                raise  # the work's own
        took = time.monotonic() - began
        if self._hurry is not None:
            self._hurry = min(self._hurry, LAST_TRY)
        if not future.cancelled():  # then it has begun; else what came before it is still there
            self._cut()
            wait = asyncio.timeout(AFTER_CUT)
            try:
                async with wait:
                    return await asyncio.wrap_future(future)
            except Exception as error:
                if not wait.expired():
                    raise _silent(took) from error
        raise _silent(took)

    @property
    def hurries(self) -> bool:
        """Whether the program has been asked to end."""
        return self._hurry is not None

    def hurry(self, seconds: float | None = HURRIED) -> None:
        """The program has been asked to end: no call takes longer than so many seconds from now.

        Once one of them was in vain, the next ones have a second. To be called from the event
        loop.

        Args:
            seconds: None: there is time again.
        """
        self._hurry, self._hurried_at = seconds, time.monotonic()
        loop = asyncio.get_running_loop()
        for wait, began in tuple(self._waits):
            if not wait.expired():
                wait.reschedule(loop.time() + self._left(began))

    def close(self, last: Callable[[], None]) -> None:
        """The thread ends, after this last work; it is not waited for if it does not come back."""
        if self._closed:
            return
        if self._thread is not None:
            self._submit(last)
        self._closed = True
        self._calls.put(None)
        if self._thread is not None:
            self._thread.join(CLOSING)

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        if self._closed:
            raise RuntimeError(f"the thread {self._name} was closed")
        if self._thread is None:
            # a daemon: the interpreter waits for all others before it ends
            self._thread = threading.Thread(
                target=_work, args=(self._calls,), name=self._name, daemon=True
            )
            self._thread.start()
            weakref.finalize(self, self._calls.put, None)
        future: Future[T] = Future()
        self._calls.put((work, future))
        return future

    def _left(self, began: float) -> float:
        """Seconds from now until a call that began then is over time."""
        over = began + self._limit
        if self._hurry is not None:
            over = min(over, max(began, self._hurried_at) + self._hurry)
        return max(0.0, over - time.monotonic())


def _work(calls: queue.SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        work, future = call
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                future.set_exception(error)
        del call, work, future  # what they hold is not this thread's to keep


def _silent(seconds: float) -> DatabaseSilent:
    return DatabaseSilent(f"the database did not answer within {seconds:.1f} s")
