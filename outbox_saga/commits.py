"""A COMMIT whose answer never came: an error of its own, and the question to the database.

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
from typing import TYPE_CHECKING, Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from outbox_saga.errors import CommitUnknown, ConfigurationError
from outbox_saga.pending import connections_of, what_was_written
from outbox_saga.queries.commit_outcome import Outcome, outcome_of
from outbox_saga.queries.dialects import is_transient
from outbox_saga.tables import tables_in
from outbox_saga.watchdog import cut_after

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

COMMIT_TIMEOUT = 30.0  # seconds
AGAIN = 0.05  # seconds between two questions
_ANSWERS: dict[Outcome, bool | None] = {"committed": True, "rolled back": False}
_UNKNOWN = "outbox_saga_commit_unknown"
_NOT_SENT = "nothing was committed within {} s: COMMIT had not been sent; do the unit again"


def commit_outcome(
    engine: sa.Engine,
    unknown: CommitUnknown,
    *,
    schema: str | None = None,
    patience: float = 30.0,
) -> bool | None:
    """True: it has committed. False: it certainly has not, and may be done again.

    None: the database cannot tell. On PostgreSQL that means it is still at it after `patience`,
    or does not answer. MariaDB and SQLite keep no record of transactions: there a message in our
    tables says True, and otherwise it is None, unless an archive keeps what has left (then look
    before its window ends; None there means it has not committed).

    Args:
        engine: Of the same database. After a failover ask the server that answers now: what it
            says is what holds.
        unknown: As it was raised.
        schema: Of our tables.
        patience: Seconds, at most, to wait for a transaction in progress and for a database that
            does not answer.
    """
    ends, tables = time.monotonic() + patience, tables_in(schema)
    found: Outcome
    while True:
        try:
            with engine.connect() as connection:
                found = outcome_of(connection, tables, *_evidence(unknown))
        except DBAPIError as error:
            if not is_transient(error):
                raise
            found = "in progress"
        if found != "in progress" or time.monotonic() + AGAIN >= ends:
            return _ANSWERS.get(found)
        time.sleep(AGAIN)


async def async_commit_outcome(
    engine: AsyncEngine,
    unknown: CommitUnknown,
    *,
    schema: str | None = None,
    patience: float = 30.0,
) -> bool | None:
    """As `commit_outcome`, on an async engine."""
    ends, tables = time.monotonic() + patience, tables_in(schema)
    found: Outcome
    while True:
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + patience):
                async with engine.connect() as connection:
                    found = await connection.run_sync(
                        lambda c: outcome_of(c, tables, *_evidence(unknown))
                    )
        except TimeoutError:
            return None
        except DBAPIError as error:
            if not is_transient(error):
                raise
            found = "in progress"
        if found != "in progress" or time.monotonic() + AGAIN >= ends:
            return _ANSWERS.get(found)
        await asyncio.sleep(AGAIN)


def _evidence(unknown: CommitUnknown) -> tuple[tuple[UUID, ...], str | None]:
    return unknown.message_ids, unknown.transaction


def check_commit_timeout(seconds: float | None) -> None:
    """Raises ConfigurationError for one that cannot be meant."""
    if seconds is not None and not seconds > 0:
        raise ConfigurationError(
            f"commit_timeout is {seconds}; give seconds, more than 0, or None"
        )


def commit_within(session: Session, seconds: float | None) -> None:
    """Commits, or fails after so many seconds.

    Raises:
        CommitUnknown: COMMIT was sent, and time was up before its answer came.
        TimeoutError: Time was up before COMMIT was sent; nothing is committed.
    """
    if seconds is None:
        session.commit()
        return
    session.flush()  # so that the session has its connections
    with cut_after(seconds, connections_of(session)) as watch:
        try:
            session.commit()
        except DBAPIError as error:
            if not watch.passed:
                raise
            raise TimeoutError(_NOT_SENT.format(seconds)) from error


async def async_commit_within(session: AsyncSession, seconds: float | None) -> None:
    """As `commit_within`, for an AsyncSession."""
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            await session.commit()
    except TimeoutError as error:
        if not deadline.expired():
            raise  # somebody else's: of a hook after the commit, say
        unknown = _interrupted(error)
        if unknown is not None:
            raise unknown from error
        raise TimeoutError(_NOT_SENT.format(seconds)) from error


def _interrupted(error: BaseException | None) -> CommitUnknown | None:
    """What a cancellation left unknown; None when it came before COMMIT was sent."""
    while error is not None:
        unknown = getattr(error, _UNKNOWN, None)
        if isinstance(unknown, CommitUnknown):
            return unknown
        error = error.__cause__ or error.__context__
    return None


def _told_apart(context: ExceptionContext) -> BaseException | None:
    """The error of a COMMIT that was sent and not answered, in place of the driver's."""
    connection = context.connection
    if context.statement is not None or connection is None:
        return None  # a statement has failed: nothing is committed
    written = what_was_written(connection)
    if not written:
        return None
    error: Any = context.original_exception
    ids = tuple(id_ for evidence in written for id_ in evidence.ids)
    unknown = CommitUnknown(ids, _transaction(written))
    if context.sqlalchemy_exception is not None:
        # any other answer of the server is a definite no (a deferred constraint, say)
        return unknown if context.is_disconnect else None
    if isinstance(error, asyncio.CancelledError):
        # whoever cancelled waits for the cancellation; `_interrupted` finds it
        setattr(error, _UNKNOWN, unknown)
    return None


def _transaction(written: Any) -> str | None:
    for evidence in written:
        if evidence.transaction is not None and (row := evidence.transaction()) is not None:
            return str(row[0])
    return None


# on the class, as the other listeners of a transaction's end
event.listen(sa.Engine, "handle_error", _told_apart)
