"""A statement that psycopg has prepared on this connection, sent by libpq's own calls.

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
    dialect: Any = connection.dialect
    if (
        "do_execute" in dialect.__dict__
        or type(dialect).do_execute is not DefaultDialect.do_execute
    ):
        return None
    fairy = connection.connection
    driver: Any = fairy.driver_connection
    psycopg = _psycopg()
    if driver.cursor_factory is not psycopg.cursors.get(type(driver)):
        return None
    # psycopg has no public names for these; a test pins them
    names = getattr(getattr(driver, "_prepared", None), "_names", None)
    if names is None or getattr(driver, "_pipeline", True) is not None:
        return None
    name = names.get(twin.key)
    pgconn = driver.pgconn
    if (
        name is None
        or pgconn.transaction_status != psycopg.in_transaction
        or pgconn.parameter_status(b"client_encoding") != b"UTF8"
    ):
        return None
    names.move_to_end(twin.key)  # what was not used for long is deallocated

    def send(parameters: Sequence[Any]) -> Any:
        values = [_sent(each) for each in parameters]
        if dialect.is_async:
            raw: Any = fairy.dbapi_connection
            return raw.run_async(lambda _: psycopg.ask_async(driver, name, values, twin.formats))
        with driver.lock:
            pgconn.send_query_prepared(name, values, twin.formats)
            return psycopg.checked(driver.wait(psycopg.execute(pgconn)))

    return send


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
        self.execute = generators.execute
        self._tuples = pq.ExecStatus.TUPLES_OK
        self._failed = pq.ExecStatus.FATAL_ERROR
        self._error = errors.error_from_result
        self._internal = psycopg.InternalError

    async def ask_async(
        self, driver: Any, name: bytes, values: Sequence[bytes | None], formats: Sequence[int]
    ) -> Any:
        """The result, on an async connection."""
        async with driver.lock:
            driver.pgconn.send_query_prepared(name, values, formats)
            return self.checked(await driver.wait(self.execute(driver.pgconn)))

    def checked(self, results: list[Any]) -> Any:
        """The last result. Raises the server's error, if it is one."""
        for result in results:
            if result.status == self._failed:
                raise self._error(result, encoding="utf-8")
        if not results or results[-1].status != self._tuples:
            raise self._internal("the server's answer to a prepared statement has no rows")
        return results[-1]


@functools.cache
def _psycopg() -> _Psycopg:
    return _Psycopg()
