"""Which work goes on here, whether anybody waits for it or not.

A thread cannot be ended: what timed out goes on in it, and holds its place until it is done. So
does a task that swallows its cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from outbox_saga.worker_threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

Work = tuple[str, UUID]  # consumer and message id


@dataclass(slots=True)
class _Inside:
    times: int = 0  # a duplicate may have come in at the same moment
    tellings: list[Callable[[], object]] = field(default_factory=list)


class ThreadWatch:
    """Knows the work that is in threads of this process now, and in tasks nobody could end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: dict[Work, _Inside] = {}

    def __contains__(self, work: Work) -> bool:
        return work in self._inside

    def when_out(self, work: Work, call: Callable[[], object]) -> bool:
        """True: the work goes on, and `call` is made in this event loop when it is out."""
        loop = asyncio.get_running_loop()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and all it knew with it
                loop.call_soon_threadsafe(call)

        with self._lock:
            if work not in self._inside:
                return False
            self._inside[work].tellings.append(tell)
            return True

    def executor(self, threads: Threads, work: Work) -> Threads:
        """These threads, for this work."""
        return _Watched(self, threads, work)

    def goes_on(self, work: Work, task: asyncio.Task[Any]) -> None:
        """It is in this task, which was cancelled and did not end."""
        self.enter(work)
        task.add_done_callback(lambda _: self.leave(work))

    def enter(self, work: Work) -> None:
        """It is about to be in a thread."""
        with self._lock:
            self._inside.setdefault(work, _Inside()).times += 1

    def leave(self, work: Work) -> None:
        """It is out."""
        with self._lock:
            inside = self._inside[work]
            inside.times -= 1
            if inside.times:
                return
            del self._inside[work]
        for tell in inside.tellings:
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
