"""Threads for users' plain `def` code, which know how many of them are lost to it.

A thread cannot be ended: what outlived its time goes on in it, and holds it until it is done.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any


class Threads(Executor):
    """An executor that is told what outlives its time."""

    @abstractmethod
    def outlived(self, work: asyncio.Future[Any]) -> None:
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

    def outlived(self, work: asyncio.Future[Any]) -> None:
        """As promised; called in an event loop, as is what takes it back."""
        self._overdue += 1
        work.add_done_callback(self._is_back)

    def _is_back(self, _: asyncio.Future[Any]) -> None:
        self._overdue -= 1

    @property
    def all_overdue(self) -> bool:
        """As promised."""
        return self._overdue >= self._size
