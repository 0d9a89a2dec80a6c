"""Ends a connection whose server does not answer, from another thread: drivers wait for ever."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from outbox_saga.sockets import end_socket

Cut = Callable[[], None]


class Watch:
    """One deadline; `passed` says whether it has cut the connections."""

    def __init__(self, ends: float, connections: Sequence[sa.Connection]) -> None:
        self.ends = ends
        self.passed = False
        self.cuts: list[Cut] = []
        self.add(connections)

    def add(self, connections: Sequence[sa.Connection]) -> None:
        """These are cut, too; at once, when it has passed already."""
        cuts = [cut for each in connections if (cut := _cut_of(each)) is not None]
        self.cuts += cuts
        if self.passed:  # the other thread may have gone through them by now
            for cut in cuts:
                cut()


class _Watchdog:
    """One thread for all deadlines of this process; it begins with the first one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watches: dict[int, Watch] = {}
        self._numbers = itertools.count()
        self._pid: int | None = None
        self._wakes = float("inf")  # when the thread does, if nobody wakes it

    def watch(self, watch: Watch) -> int:
        with self._changed:
            if self._pid != os.getpid():  # the thread did not come along through a fork
                self._pid, self._watches = os.getpid(), {}
                threading.Thread(
                    target=self._run, name="outbox-saga-deadlines", daemon=True
                ).start()
            number = next(self._numbers)
            self._watches[number] = watch
            # every commit comes here, and mostly its deadline is the latest: a thread that is
            # woken takes the interpreter from whoever commits
            if watch.ends < self._wakes:
                self._changed.notify()
            return number

    def forget(self, number: int) -> None:
        # waits for a cut that is being made: afterwards the descriptor may be somebody else's
        with self._changed:
            self._watches.pop(number, None)

    def _run(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for number, watch in list(self._watches.items()):
                    if watch.ends <= now:
                        watch.passed = True
                        del self._watches[number]
                        for cut in list(watch.cuts):
                            # whatever it is (a driver refuses, its connection is closed already):
                            # this thread has the deadlines of all others
                            with contextlib.suppress(Exception):
                                cut()
                self._wakes = min((w.ends for w in self._watches.values()), default=float("inf"))
                idle = self._wakes == float("inf")
                self._changed.wait(None if idle else self._wakes - now)


_watchdog = _Watchdog()


def _begin_anew() -> None:
    global _watchdog  # noqa: PLW0603
    _watchdog = _Watchdog()


if hasattr(os, "register_at_fork"):
    # somebody of the parent's may hold the lock at that moment, and is not there to release it
    os.register_at_fork(after_in_child=_begin_anew)


@contextlib.contextmanager
def cut_after(seconds: float, connections: Sequence[sa.Connection]) -> Iterator[Watch]:
    """What these connections do in the block fails, as by a lost connection, after so many
    seconds.

    SQLite has no server that could be silent: there nothing is cut.
    """
    watch = Watch(time.monotonic() + seconds, connections)
    watchdog = _watchdog
    number = watchdog.watch(watch)
    try:
        yield watch
    finally:
        watchdog.forget(number)


def _cut_of(connection: sa.Connection) -> Cut | None:
    driver: Any = connection.connection.driver_connection
    sock = getattr(driver, "_sock", None)  # pymysql
    owner = sock if isinstance(sock, socket.socket) else driver
    fileno: Callable[[], int] | None = getattr(owner, "fileno", None)
    if fileno is None:
        return None

    def cut() -> None:
        if connection.closed or connection.invalidated:
            return  # it is the pool's again, or somebody else's
        end_socket(fileno())

    return cut
