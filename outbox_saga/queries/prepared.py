"""A statement that psycopg has prepared on this connection, or one behind its BEGIN, sent by
libpq's own calls.

psycopg's cursor costs more client CPU than sending the statement and waiting for its answer. It is
left out only where it would do nothing else: psycopg's own record says that the statement is
prepared (so it knows of rollbacks and of DEALLOCATE), the transaction is open, and neither the
dialect's `do_execute` nor the driver's connection and cursor are anybody else's. The waiting is
psycopg's own: interrupts, cancellations and lost connections end as they do there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect

_MARK = re.compile("%[sb]")
_OIDS = {"smallint": 21, "int": 21, "bytea": 17}  # psycopg leaves the type of a text to the server
_AS_THEY_ARE = ("text", "bytea")  # with their length: as a string of C a text would end at a NUL


@dataclass(frozen=True, slots=True)
class Twin:
    """A statement as psycopg sends it.

    Args:
        key: Of its record of prepared statements: the text with numbered marks, and the types of
            the parameters.
        formats: Of the parameters: 1 for bytes as they are.
    """

    key: tuple[bytes, tuple[int, ...]]
    formats: tuple[int, ...]


def twin_of(statement: str, types: Sequence[str]) -> Twin:
    """The twin of a statement with psycopg's marks, `%s` or `%b`, and no other percent sign.

    Args:
        statement: Each mark stands in a CAST.
        types: Of its parameters, as they are cast; numbers are below 32,768.
    """
    ordinals = iter(range(1, len(types) + 1))
    text = _MARK.sub(lambda _: f"${next(ordinals)}", statement)
    return Twin(
        (text.encode(), tuple(_OIDS.get(each, 0) for each in types)),
        tuple(int(each in _AS_THEY_ARE) for each in types),
    )


def sender(connection: sa.Connection, twin: Twin) -> Callable[[Sequence[Any]], Any] | None:
    """What sends the statement with these parameters, and gives the server's result.

    None: psycopg has not prepared it (yet), or somebody else has to see it.
    """
    driver = _own(connection)
    # psycopg has no public name for it; a test pins it
    names = getattr(getattr(driver, "_prepared", None), "_names", None)
    if names is None:
        return None
    name = names.get(twin.key)
    pgconn, psycopg = driver.pgconn, _psycopg()
    if (
        name is None
        or pgconn.transaction_status != psycopg.in_transaction
        or pgconn.parameter_status(b"client_encoding") != b"UTF8"
    ):
        return None
    names.move_to_end(twin.key)  # what was not used for long is deallocated

    def send(parameters: Sequence[Any]) -> Any:
        values = [_sent(each) for each in parameters]
        results = psycopg.ask(
            connection, lambda: pgconn.send_query_prepared(name, values, twin.formats)
        )
        return psycopg.rows(results)

    return send


def beginner(connection: sa.Connection) -> Callable[[str], None] | None:
    """What sends BEGIN, as psycopg would, and this statement without parameters behind it.

    None: the transaction has begun, or somebody else has to see it.
    """
    driver = _own(connection)
    # psycopg has no public name for it; a test pins it
    begin = getattr(driver, "_get_tx_start_command", None)
    if begin is None or driver.autocommit:
        return None
    pgconn, psycopg = driver.pgconn, _psycopg()
    if pgconn.transaction_status != psycopg.idle:
        return None

    def send(statement: str) -> None:
        psycopg.ask(connection, lambda: pgconn.send_query(begin() + b"; " + statement.encode()))

    return send


def _own(connection: sa.Connection) -> Any:
    """The driver's connection, if it is psycopg's and nobody has to see what is sent by it."""
    dialect: Any = connection.dialect
    if (
        "do_execute" in dialect.__dict__
        or type(dialect).do_execute is not DefaultDialect.do_execute
    ):
        return None
    if dialect.driver not in ("psycopg", "psycopg_async"):
        return None
    driver: Any = connection.connection.driver_connection
    if driver.cursor_factory is not _psycopg().cursors.get(type(driver)):
        return None
    # psycopg has no public name for it; a test pins it
    return driver if getattr(driver, "_pipeline", True) is None else None


def _sent(value: Any) -> bytes | None:
    if value is None or type(value) is bytes:
        return value
    return value.encode() if type(value) is str else b"%d" % value


class _Psycopg:
    """What of psycopg is needed; it is imported only when a connection of it asks."""

    def __init__(self) -> None:
        import psycopg
        from psycopg import errors, generators, pq

        self.cursors: dict[type, type] = {
            psycopg.Connection: psycopg.Cursor,
            psycopg.AsyncConnection: psycopg.AsyncCursor,
        }
        self.in_transaction = int(pq.TransactionStatus.INTRANS)
        self.idle = int(pq.TransactionStatus.IDLE)
        self._execute = generators.execute
        self._tuples = pq.ExecStatus.TUPLES_OK
        self._failed = pq.ExecStatus.FATAL_ERROR
        self._error = errors.error_from_result
        self._internal = psycopg.InternalError

    def ask(self, connection: sa.Connection, send: Callable[[], None]) -> list[Any]:
        """The results. Raises the server's error, if one of them is one."""
        fairy = connection.connection
        driver: Any = fairy.driver_connection
        if connection.dialect.is_async:
            raw: Any = fairy.dbapi_connection
            return self._checked(raw.run_async(lambda _: self._ask_async(driver, send)))
        with driver.lock:
            send()
            return self._checked(driver.wait(self._execute(driver.pgconn)))

    async def _ask_async(self, driver: Any, send: Callable[[], None]) -> Any:
        async with driver.lock:
            send()
            return await driver.wait(self._execute(driver.pgconn))

    def _checked(self, results: list[Any]) -> list[Any]:
        for result in results:
            if result.status == self._failed:
                raise self._error(result, encoding="utf-8")
        return results

    def rows(self, results: list[Any]) -> Any:
        """The last result, which has rows."""
        if not results or results[-1].status != self._tuples:
            raise self._internal("the server's answer to a prepared statement has no rows")
        return results[-1]


@functools.cache
def _psycopg() -> _Psycopg:
    return _Psycopg()
