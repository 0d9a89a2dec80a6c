"""Threads for users' plain `def` code, which know how many of them are lost to it.

A thread cannot be ended: what outlived its time goes on in it, and holds it until it is done.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from typing import Any

# what nobody waits for any more, and when its time is up; None: it may take what it takes
_left_alone: dict[Future[Any], float | None] = {}


class Threads(Executor):
    """An executor that is told what outlives its time."""

    @abstractmethod
    def outlived(self, work: Future[Any]) -> None:
        """Nobody waits for this work any more; its thread is held until it ends."""

    @property
    @abstractmethod
    def all_overdue(self) -> bool:
        """Whether every thread is held by work that outlived its time."""


class WorkerThreads(Threads, ThreadPoolExecutor):
    """So many threads, at most.

    Args:
        size: Threads.
        name: Of the threads, as debuggers show it.
    """

    def __init__(self, size: int, name: str) -> None:
        super().__init__(size, thread_name_prefix=name)
        self._size = size
        self._overdue = 0
        self._lock = threading.Lock()

    def outlived(self, work: Future[Any]) -> None:
        """As promised. It is back when the thread is, whatever became of the event loop."""
        with self._lock:
            self._overdue += 1
        work.add_done_callback(self._is_back)
        leave_alone(work, 0.0)

    def _is_back(self, _: Future[Any]) -> None:
        with self._lock:
            self._overdue -= 1

    @property
    def all_overdue(self) -> bool:
        """As promised."""
        return self._overdue >= self._size


def leave_alone(work: Future[Any], left: float | None) -> None:
    """Nobody waits for this work any more, which goes on in its thread.

    Args:
        left: Seconds of its time; None: it has no limit.
    """
    _left_alone[work] = None if left is None else time.monotonic() + left
    work.add_done_callback(lambda ended: _left_alone.pop(ended, None))


def any_left_alone() -> bool:
    """Whether any of it goes on still, within its time or beyond."""
    return bool(_left_alone)


def beyond_their_time() -> int:
    """How many works go on though their time is up, when what is still within its time has ended
    or come so far. The process can end without them: they can commit nothing any more.
    """
    while running := dict(_left_alone):
        now = time.monotonic()
        later = {work: until for work, until in running.items() if until is None or until > now}
        if not later:
            return len(running)
        ends = [until - now for until in later.values() if until is not None]
        wait(later, timeout=min(ends, default=None), return_when=FIRST_COMPLETED)
    return 0
