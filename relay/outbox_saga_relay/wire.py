"""The socket under a connection, to be shut by another thread than the one that waits on it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from outbox_saga.sockets import end_socket

_WIRE = "outbox_saga.wire"
_here = threading.local()  # who wants to know of the connections that this thread makes


class Wire:
    """Cut, it ends whatever its connection waits for: the driver sees the end of the stream.

    Of psycopg and psycopg2 the socket is shut, of SQLite the statement is interrupted. Other
    drivers end by themselves (`outbox_saga.deadlines`), and cutting does nothing.

    Args:
        driver: The driver's own connection.
    """

    def __init__(self, driver: Any) -> None:
        self._cut: Callable[[], None] | None = getattr(driver, "interrupt", None)
        self._close: weakref.finalize[..., Any] | None = None
        if self._cut is None and hasattr(driver, "fileno"):
            # a duplicate: by the time it is cut the driver may have closed its own, and its number
            # may be another socket's
            descriptor = os.dup(driver.fileno())
            self._cut = lambda: end_socket(descriptor)
            self._close = weakref.finalize(self, os.close, descriptor)

    def cut(self) -> None:
        """Ends what the connection waits for; it is of no use any more. Harmless when closed."""
        if self._cut is not None:
            self._cut()

    def close(self) -> None:
        """The connection is closed; nothing is left to cut."""
        self._cut = None
        if self._close is not None:
            self._close()


def lay_wires(engine: sa.Engine, new: Callable[[Wire], None]) -> None:
    """Every connection that this engine makes from now on has a wire, found by `wire_of`.

    Args:
        engine: Laid once, however often this is called.
        new: Called with the wire of each connection that this thread makes, before anything is
            sent there.
    """
    _here.new = new
    if event.contains(engine, "connect", _connected):
        return
    event.listen(engine, "connect", _connected, insert=True)
    event.listen(engine, "close", _closed)


def wire_of(connection: sa.Connection) -> Wire | None:
    """The wire of this connection; None when its engine lays none."""
    wire: Wire | None = connection.info.get(_WIRE)
    return wire


def _connected(dbapi_connection: Any, record: Any) -> None:
    driver = getattr(dbapi_connection, "driver_connection", dbapi_connection)
    wire = record.info[_WIRE] = Wire(driver)
    new = getattr(_here, "new", None)
    if new is not None:
        new(wire)


def _closed(dbapi_connection: Any, record: Any) -> None:  # noqa: ARG001 - SQLAlchemy's event
    wire = record.info.pop(_WIRE, None)
    if wire is not None:
        wire.close()
