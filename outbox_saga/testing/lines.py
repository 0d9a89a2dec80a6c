"""The line between a connection and its server, cut the way a dying process cuts it.

The kernel closes the sockets of a process that dies: the server sees the end of the stream and
rolls back. Nothing the
process still wanted to say gets out. Here the process lives on, so its sockets are shut under its
drivers' feet.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

PATIENCE = 30.0  # seconds a server may take to notice
LOOK_AGAIN = 0.002


class Line(ABC):
    """One connection of a watched process."""

    #: What the server calls this session; None where there is no server.
    session: int | None = None

    @abstractmethod
    def cut(self) -> None:
        """Nothing gets out any more. May return before it is done; `wait` waits."""

    @abstractmethod
    def wait(self) -> None:
        """Returns when the cut is done."""

    @abstractmethod
    def discard(self) -> None:
        """Gives back what a cut connection still holds in this process.

        Inside its event loop, if it had one.
        """


class _CutAtOnce(Line):
    """Nothing to wait for."""

    def wait(self) -> None:
        pass


class _Psycopg(_CutAtOnce):
    def __init__(self, driver: Any) -> None:
        self._wire = driver.pgconn
        self.session = int(self._wire.backend_pid)

    def cut(self) -> None:
        if (
            self._wire.status == 0
        ):  # CONNECTION_OK: otherwise there is no socket, or not ours any more
            # a duplicate: the driver goes on owning its own descriptor
            with socket.socket(fileno=os.dup(self._wire.socket)) as line:
                _shut(line)

    def discard(self) -> None:
        self._wire.finish()


class _PyMySQL(_CutAtOnce):
    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self.session = int(driver.thread_id())

    def cut(self) -> None:
        if self._driver._sock is not None:  # noqa: SLF001  # no public way to its socket
            _shut(self._driver._sock)  # noqa: SLF001

    def discard(self) -> None:
        self._driver._force_close()  # noqa: SLF001  # close() would say good-bye first


class _AsyncMy(_CutAtOnce):
    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self.session = int(driver.thread_id())

    def cut(self) -> None:
        transport = self._driver._transport  # noqa: SLF001  # no public way to its socket
        found = transport.get_extra_info("socket") if transport is not None else None
        if found is not None and found.fileno() >= 0:
            _shut(found)

    def discard(self) -> None:
        self._driver.close()


class _SQLite(_CutAtOnce):
    """No socket.

    The operating system drops the locks, and what was not committed is not there for the next
    process.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def cut(self) -> None:
        _abandon(self._driver)

    def discard(self) -> None:
        self._driver.close()


class _AioSQLite(Line):
    """As SQLite, on the connection's own thread, behind what was handed to it before.

    That had left already.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._done = threading.Event()

    def cut(self) -> None:
        def abandon() -> None:
            try:
                # its own methods need the event loop
                raw = self._driver._connection  # noqa: SLF001
                if raw is not None:
                    _abandon(raw)
            finally:
                self._done.set()

        if self._driver._thread.is_alive():  # noqa: SLF001
            queued: queue.SimpleQueue[Any] = self._driver._tx  # noqa: SLF001
            queued.put_nowait((None, abandon))
        else:
            self._done.set()

    def wait(self) -> None:
        if not self._done.wait(PATIENCE):
            raise TimeoutError(f"a SQLite connection was busy for more than {PATIENCE} s")

    def discard(self) -> None:
        self._driver.stop()
        # it answers to the event loop, which may be closed soon
        self._driver._thread.join(PATIENCE)  # noqa: SLF001


_LINES: dict[str, type[Line]] = {
    "psycopg": _Psycopg,
    "pymysql": _PyMySQL,
    "asyncmy": _AsyncMy,
    "sqlite3": _SQLite,
    "aiosqlite": _AioSQLite,
}


def line_of(dbapi_connection: Any) -> Line:
    """The line of a connection as SQLAlchemy's `connect` event gives it.

    TypeError for a driver nobody taught us.
    """
    driver = getattr(dbapi_connection, "driver_connection", dbapi_connection)
    for kind in type(driver).__mro__:
        found = _LINES.get(kind.__module__.partition(".")[0])
        if found is not None:
            return found(driver)  # type: ignore[call-arg]
    raise TypeError(
        f"no way is known to cut a connection of {type(driver).__module__}; add it to lines.py"
    )


def wait_for_rollback(observer: sa.Engine, lines: Iterable[Line]) -> None:
    """Returns when the server has ended the sessions behind these cut lines.

    What they had not committed is undone.

    Args:
        observer: An engine of the process that looks on.
    """
    sessions = sorted(line.session for line in lines if line.session is not None)
    if not sessions:
        return
    if observer.dialect.name == "postgresql":
        alive = sa.text("SELECT count(*) FROM pg_stat_activity WHERE pid IN :sessions")
    else:
        alive = sa.text(
            "SELECT count(*) FROM information_schema.processlist WHERE id IN :sessions"
        )
    alive = alive.bindparams(sa.bindparam("sessions", expanding=True))
    deadline = time.monotonic() + PATIENCE
    while True:
        with observer.connect() as connection:
            if connection.execute(alive, {"sessions": sessions}).scalar_one() == 0:
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"sessions {sessions} did not end within {PATIENCE} s")
        time.sleep(LOOK_AGAIN)  # a server does not tell when a session has ended


def _shut(line: Any) -> None:
    try:
        line.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        if error.errno not in _CLOSED:
            raise


def _abandon(raw: Any) -> None:
    raw.rollback()
    raw.close()


_CLOSED = {9, 57, 107}  # EBADF, ENOTCONN (BSD, Linux): it was closed already
