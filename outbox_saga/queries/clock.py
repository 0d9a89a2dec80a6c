"""Time as the database sees it, as an SQL expression.

Tests shift it, processes with wrong clocks cannot.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from outbox_saga.column_types import Moment


class _Now(FunctionElement[dt.datetime]):
    """The moment the statement runs, plus some microseconds."""

    name = "outbox_saga_now"
    type = Moment()
    inherit_cache = True


@compiles(_Now, "postgresql")
def _postgresql(element: _Now, compiler: SQLCompiler, **kw: Any) -> str:
    # clock_timestamp(): now() stands still for the whole transaction
    offset = compiler.process(element.clauses, **kw)
    return f"(clock_timestamp() + {offset} * interval '1 microsecond')"


@compiles(_Now, "mysql")
@compiles(_Now, "mariadb")
def _mysql(element: _Now, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(UTC_TIMESTAMP(6) + INTERVAL {compiler.process(element.clauses, **kw)} MICROSECOND)"


@compiles(_Now, "sqlite")
def _sqlite(element: _Now, compiler: SQLCompiler, **kw: Any) -> str:
    # SQLite's clock has milliseconds; the zeros keep the text comparable with stored microseconds
    offset = compiler.process(element.clauses, **kw)
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', ({offset} / 1000000.0) || ' seconds') || '000')"


@dataclass(frozen=True, slots=True)
class Clock:
    """The database's clock.

    Args:
        shift: Seconds added to every reading; only tests use it.
    """

    shift: float = 0.0

    def microseconds(self, plus: float = 0.0) -> int:
        """What has to be added to the database's own reading."""
        return round((self.shift + plus) * 1_000_000)

    def now(self, plus: float = 0.0) -> sa.ColumnElement[dt.datetime]:
        """The present moment plus so many seconds, as an SQL expression."""
        microseconds = self.microseconds(plus)
        return _Now(sa.bindparam(None, microseconds, type_=sa.BigInteger, unique=True))

    def now_plus(self, parameter: str) -> sa.ColumnElement[dt.datetime]:
        """As `now`; the parameter of this name says for each row how many `microseconds` more."""
        return _Now(sa.bindparam(parameter, type_=sa.BigInteger))

    def read(self, connection: sa.Connection) -> dt.datetime:
        """The present moment, read from the database."""
        moment = connection.execute(sa.select(self.now())).scalar_one()
        assert moment is not None
        return moment


DATABASE_CLOCK = Clock()
