"""The plays' clock: how far time has moved on is a row, so that every statement says by itself
whether it reads it, and moving it is a step like all others.

As an argument of the statements it would be read when they are made, which is before their cut.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from outbox_saga.column_types import Moment
from outbox_saga.queries.clock import Clock

TABLE = "play_clock"
_shift = sa.table(TABLE, sa.column("microseconds", sa.BigInteger))


class _Now(FunctionElement[dt.datetime]):
    """The moment the statement runs, plus what the row says, plus some microseconds."""

    name = "play_now"
    type = Moment()
    inherit_cache = True


@compiles(_Now, "postgresql")
def _postgresql(element: _Now, compiler: SQLCompiler, **kw: Any) -> str:
    offset = compiler.process(element.clauses, **kw)
    shift = f"(SELECT microseconds FROM {TABLE})"
    return f"(clock_timestamp() + ({shift} + {offset}) * interval '1 microsecond')"


class PlayClock(Clock):
    """The database's clock, and what the row says."""

    def now(self, plus: float = 0.0) -> sa.ColumnElement[dt.datetime]:
        """As `Clock.now`."""
        return _Now(sa.bindparam(None, self.microseconds(plus), type_=sa.BigInteger, unique=True))

    def now_plus(self, parameter: str) -> sa.ColumnElement[dt.datetime]:
        """As `Clock.now_plus`."""
        return _Now(sa.bindparam(parameter, type_=sa.BigInteger))


def create(connection: sa.Connection) -> None:
    """The row."""
    connection.execute(sa.text(f"CREATE TABLE {TABLE} (microseconds bigint NOT NULL)"))
    connection.execute(sa.insert(_shift).values(microseconds=0))


def advance(engine: sa.Engine, seconds: float | None) -> None:
    """So much later, for everybody, in one statement; None: as in the beginning."""
    now = _shift.c.microseconds
    later = 0 if seconds is None else now + round(seconds * 1_000_000)
    with engine.connect() as plain:
        connection = plain.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(sa.update(_shift).values(microseconds=later))
