"""Threads for users' plain `def` code, which know how many of them are lost to it.

A thread cannot be ended: what outlived its time goes on in it, and holds it until it is done.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any


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

    def _is_back(self, _: Future[Any]) -> None:
        with self._lock:
            self._overdue -= 1

    @property
    def all_overdue(self) -> bool:
        """As promised."""
        return self._overdue >= self._size
