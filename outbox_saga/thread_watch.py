"""Which work is in a thread, whether anybody waits for it or not.

A thread cannot be ended: what timed out goes on in it, and holds its place until it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from outbox_saga.worker_threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

Work = tuple[str, UUID]  # consumer and message id


class ThreadWatch:
    """Knows the work that is in threads of this process now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: dict[Work, list[Callable[[], object]]] = {}

    def __contains__(self, work: Work) -> bool:
        return work in self._inside

    def when_out(self, work: Work, call: Callable[[], object]) -> bool:
        """True: the work is in a thread, and `call` is made in this event loop when it is out."""
        loop = asyncio.get_running_loop()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and all it knew with it
                loop.call_soon_threadsafe(call)

        with self._lock:
            if work not in self._inside:
                return False
            self._inside[work].append(tell)
            return True

    def executor(self, threads: Threads, work: Work) -> Threads:
        """These threads, for this work."""
        return _Watched(self, threads, work)

    def enter(self, work: Work) -> None:
        """It is about to be in a thread."""
        with self._lock:
            self._inside[work] = []

    def leave(self, work: Work) -> None:
        """It is out."""
        with self._lock:
            tellings = self._inside.pop(work, [])
        for tell in tellings:
            tell()


class _Watched(Threads):
    def __init__(self, watch: ThreadWatch, threads: Threads, work: Work) -> None:
        self._watch = watch
        self._threads = threads
        self._work = work

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        self._watch.enter(self._work)
        try:
            future = self._threads.submit(fn, *args, **kwargs)
        except BaseException:
            self._watch.leave(self._work)
            raise
        future.add_done_callback(lambda _: self._watch.leave(self._work))
        return future

    def outlived(self, work: Future[Any]) -> None:
        self._threads.outlived(work)

    @property
    def all_overdue(self) -> bool:
        return self._threads.all_overdue
