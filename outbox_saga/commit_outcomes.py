"""The question to the database: what became of a COMMIT that was never answered.

try:
    with unit_of_work(Session) as uow:
        ...
except CommitUnknown as unknown:
    if commit_outcome(engine, unknown) is False:
        ...  # certainly rolled back: do it again
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from outbox_saga.errors import CommitUnknown
from outbox_saga.queries.commit_outcome import Outcome, outcome_of
from outbox_saga.queries.dialects import family
from outbox_saga.queries.passing import passes
from outbox_saga.tables import tables_in
from outbox_saga.watchdog import cut_after

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

AGAIN = 0.05  # seconds between two questions
_ANSWERS: dict[Outcome, bool | None] = {"committed": True, "rolled back": False}


def commit_outcome(
    engine: sa.Engine,
    unknown: CommitUnknown,
    *,
    schema: str | None = None,
    patience: float = 30.0,
) -> bool | None:
    """True: it has committed. False: it certainly has not, and may be done again. None: the
    database cannot tell, and it may be either.

    PostgreSQL remembers its transactions: None there means that it is still at it after
    `patience`, does not answer, or numbers its transactions anew: a standby that was promoted
    meanwhile, or a server that has crashed (or whose statistics of the background writer were
    reset) and has committed another one under this number. MariaDB and SQLite keep no record:
    there a message that is still in our tables says True, and whatever else they find is None.

    It speaks of the database of the outbox alone, where a session committed to several.

    Args:
        engine: Of the same database.
        unknown: As it was raised.
        schema: Of our tables.
        patience: Seconds, at most, to wait for a transaction in progress and for a database that
            does not answer. How long connecting may take is the engine's affair
            (`connect_args`, `pool_timeout`).
    """
    question = _Question(unknown, schema, patience)
    while True:
        try:
            with engine.connect() as connection, cut_after(question.left, [connection]):
                found = question.ask(connection)
        except SQLAlchemyError as error:
            found = _not_answered(error)
        if question.is_over(found):
            return _ANSWERS.get(found)
        time.sleep(AGAIN)


async def async_commit_outcome(
    engine: AsyncEngine,
    unknown: CommitUnknown,
    *,
    schema: str | None = None,
    patience: float = 30.0,
) -> bool | None:
    """As `commit_outcome`, on an async engine; connecting is within `patience`, too."""
    question = _Question(unknown, schema, patience)
    while True:
        try:
            async with asyncio.timeout(question.left), engine.connect() as connection:
                found = await connection.run_sync(question.ask)
        except TimeoutError:
            return None
        except SQLAlchemyError as error:
            found = _not_answered(error)
        if question.is_over(found):
            return _ANSWERS.get(found)
        await asyncio.sleep(AGAIN)


class _Question:
    def __init__(self, unknown: CommitUnknown, schema: str | None, patience: float) -> None:
        self._ids, self._transaction = unknown.message_ids, unknown.transaction
        self._tables = tables_in(schema)
        self._ends = time.monotonic() + patience

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self._ends - time.monotonic())

    def ask(self, connection: sa.Connection) -> Outcome:
        if family(connection) != "mysql":
            return outcome_of(connection, self._tables, self._ids, self._transaction)
        # at READ UNCOMMITTED it would show rows of a transaction that is still open. By
        # statements, for the engine may be in AUTOCOMMIT, and SQLAlchemy's option lets the
        # driver's errors out
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        connection.exec_driver_sql("START TRANSACTION")
        found = outcome_of(connection, self._tables, self._ids, self._transaction)
        connection.exec_driver_sql("ROLLBACK")
        return found

    def is_over(self, found: Outcome) -> bool:
        return found != "in progress" or self.left <= AGAIN


def _not_answered(error: SQLAlchemyError) -> Outcome:
    if not passes(error):  # no connection free passes, too
        raise error
    return "in progress"
