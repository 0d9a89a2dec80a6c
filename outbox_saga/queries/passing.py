"""What another moment may mend: troubles of a server, and not of what was asked of it.

One rule for the loops of all programs. They wait such a trouble out, with a warning each time: a
loop that ends takes all parts of its process with it. What a person has to mend first (a right, a
table) is none, and ends a program with its error.

Wider than `is_transient`, which says whether one unit of work may be run again at once: that may
be too slow every time, or be refused for what it does itself.
"""

from __future__ import annotations

import socket
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError

from outbox_saga.queries.dialects import errno, is_transient, ran_out_of_time

# SQLSTATEs of PostgreSQL, appendix A: 40003 does not know whether it was done (our loops do
# nothing the second time), 57P05 ended an idle session, class 58 is the machine's (a disk)
_READ_ONLY_STATE = "25006"
_STATES = ("40003", "57P05")
_CLASSES = ("58",)
# Numbers of MariaDB and MySQL. 1290: the server runs with --read-only; it prevents other things,
# too, but none that we do
_READ_ONLY_ERRNOS = {1290, 1792, 1836}
_ERRNOS = {
    *(1021, 1026, 1030, 1114),  # disk or table full, and what a full disk makes of writing
    *(1037, 1038, 1041, 1135, 1206, 1637),  # memory, threads, locks, transactions
    *(1203, 1226),  # connections, or what else is counted, of this user
    *(1020, 1317),  # changed since it was read; ended by KILL QUERY
    *(1047, 3032, 3168),  # the node is not ready (Galera), offline, not available
    *(1080, 1152, 1158, 1159, 1160, 1161, 3169),  # the connection was lost, or ended
}
_SQLITE_CODES = (7, 10, 13, 15)  # NOMEM, IOERR, FULL, PROTOCOL


def passes(error: BaseException) -> bool:
    """True when what was asked may succeed at another moment, though nobody mends anything in it.

    Connections lost or refused, deadlocks, locks and statements that took too long, a server that
    starts, stops, is read-only for a while (a failover) or has no room: of connections, memory or
    disk. By code, never by text.
    """
    if is_transient(error) or ran_out_of_time(error) or is_read_only(error):
        return True
    if not isinstance(error, DBAPIError):
        # some drivers let these out as they are, when they connect
        return isinstance(error, ConnectionError | TimeoutError | socket.gaierror)
    original: Any = error.orig
    if (number := errno(original)) is not None:
        return number in _ERRNOS
    code = getattr(original, "sqlite_errorcode", None)
    if isinstance(code, int):
        return code & 0xFF in _SQLITE_CODES
    state = _sqlstate(original)
    return state is not None and (state in _STATES or state[:2] in _CLASSES)


def is_read_only(error: BaseException) -> bool:
    """True when the server, or the transaction, takes no writes."""
    return isinstance(error, DBAPIError) and _is_read_only(error.orig)


def leave_read_only_servers(engine: sa.Engine) -> None:
    """A connection that leads to a server that takes no writes is not used again.

    After a failover the name of the server may mean another one, while those who are connected
    still are to the old one, which answers: a pool would hand such connections out for ever.
    """

    @event.listens_for(engine, "handle_error")
    def failed(context: ExceptionContext) -> None:
        # of COMMIT it is a definite no (MariaDB), and a connection lost would not be
        if context.statement is not None and _is_read_only(context.original_exception):
            context.is_disconnect = True


def _is_read_only(original: Any) -> bool:
    if (number := errno(original)) is not None:
        return number in _READ_ONLY_ERRNOS
    return _sqlstate(original) == _READ_ONLY_STATE


def _sqlstate(original: Any) -> str | None:
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    return state if isinstance(state, str) else None
