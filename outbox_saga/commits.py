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
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from outbox_saga.errors import CommitUnknown, ConfigurationError
from outbox_saga.pending import Written, connections_of, what_was_written
from outbox_saga.queries.commit_outcome import Outcome, outcome_of
from outbox_saga.queries.dialects import family, is_transient, leaves_commit_open
from outbox_saga.tables import tables_in
from outbox_saga.watchdog import cut_after

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

COMMIT_TIMEOUT = 30.0  # seconds
AGAIN = 0.05  # seconds between two questions
_ANSWERS: dict[Outcome, bool | None] = {"committed": True, "rolled back": False}
_sending: ContextVar[list[list[Written]] | None] = ContextVar("outbox_saga.sending", default=None)
_COMMITS = re.compile(
    r"(XA COMMIT|COMMIT PREPARED)\b", re.IGNORECASE
)  # COMMITs that are statements
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
                _see_what_is_committed(connection)
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
                    await connection.run_sync(_see_what_is_committed)
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


def _see_what_is_committed(connection: sa.Connection) -> None:
    """At READ UNCOMMITTED, MariaDB would show rows of a transaction that is still open."""
    if family(connection) == "mysql":
        connection.execution_options(isolation_level="READ COMMITTED")


def _evidence(unknown: CommitUnknown) -> tuple[tuple[UUID, ...], str | None]:
    return unknown.message_ids, unknown.transaction


def check_commit_timeout(seconds: float | None) -> None:
    """Raises ConfigurationError for one that cannot be meant."""
    if seconds is not None and not seconds > 0:
        raise ConfigurationError(
            f"commit_timeout is {seconds}; give seconds, more than 0, or None"
        )


def commit_within(session: Session, seconds: float | None) -> None:
    """Flushes and commits, or fails after so many seconds.

    Raises:
        CommitUnknown: COMMIT was sent, and time was up before its answer came.
        TimeoutError: Time was up before COMMIT was sent; nothing is committed.
    """
    if seconds is None:
        session.commit()
        return
    with cut_after(seconds, connections_of(session)) as watch, _noting() as sent:
        try:
            session.flush()
            watch.add(connections_of(session))  # the flush may have been the first to need one
            session.commit()
        except DBAPIError as error:
            if not watch.passed:
                raise
            raise _too_late(sent, seconds) from error


async def async_commit_within(session: AsyncSession, seconds: float | None) -> None:
    """As `commit_within`, for an AsyncSession."""
    deadline = asyncio.timeout(seconds)
    with _noting() as sent:
        try:
            async with deadline:
                await session.commit()
        except TimeoutError as error:
            if not deadline.expired() or seconds is None:
                raise  # somebody else's: of a hook after the commit, say
            raise _too_late(sent, seconds) from error


def interrupted_commit(error: BaseException | None) -> CommitUnknown | None:
    """What a cancellation, a timeout of yours, or an error that a `handle_error` listener of yours
    put in place of CommitUnknown, left unknown; None when nothing was.

    `asyncio.timeout` around a unit of work raises its own TimeoutError, whatever it interrupted:

        except TimeoutError as error:
            if (unknown := interrupted_commit(error)) is not None:
                committed = await async_commit_outcome(engine, unknown)
    """
    while error is not None:
        if isinstance(error, CommitUnknown):
            return error
        known = getattr(error, _UNKNOWN, None)
        if known is not None:
            return CommitUnknown(*known)
        error = error.__cause__ or error.__context__
    return None


# --- what is under way ---------------------------------------------------------------------------


@contextmanager
def _noting() -> Iterator[list[list[Written]]]:
    """A list that gets, of each COMMIT that is about to be sent, what was written before it."""
    sent: list[list[Written]] = []
    token = _sending.set(sent)
    try:
        yield sent
    finally:
        _sending.reset(token)


def _about_to_commit(connection: sa.Connection, *_: Any) -> None:
    sent = _sending.get()
    if sent is not None:
        sent.append(what_was_written(connection))


def _too_late(sent: list[list[Written]], seconds: float) -> Exception:
    if not sent:
        return TimeoutError(_NOT_SENT.format(seconds))
    # a session of several databases commits one after the other: any of them may have it
    return _unknown([each for written in sent for each in written])


def _unknown(written: list[Written]) -> CommitUnknown:
    ids = tuple(id_ for each in written for id_ in each.ids)
    numbers = (each.transaction() for each in written)
    return CommitUnknown(ids, next((number for number in numbers if number is not None), None))


def _told_apart(context: ExceptionContext) -> BaseException | None:
    """The error of a COMMIT that was sent and not answered, in place of the driver's."""
    connection, statement = context.connection, context.statement
    if connection is None or (statement is not None and not _COMMITS.match(statement)):
        return None  # a statement has failed: nothing is committed
    written = what_was_written(connection)
    if not written:
        return None
    error: Any = context.original_exception
    if context.sqlalchemy_exception is not None:
        # any other answer of the server is a definite no (a deferred constraint, say)
        if not (context.is_disconnect or leaves_commit_open(context.sqlalchemy_exception)):
            return None
    elif not isinstance(error, asyncio.CancelledError):
        return None
    unknown = _unknown(written)
    # for `interrupted_commit`, where another listener, or who cancelled, has the last word. Not
    # the error itself, whose cause this one will be: a circle would keep the connection alive
    setattr(error, _UNKNOWN, (unknown.message_ids, unknown.transaction))
    return unknown if context.sqlalchemy_exception is not None else None


# on the class, as the other listeners of a transaction's end
event.listen(sa.Engine, "handle_error", _told_apart)
# behind the listeners that write: what stands here is the last thing before COMMIT
event.listen(sa.Engine, "commit", _about_to_commit)
event.listen(sa.Engine, "commit_twophase", _about_to_commit)
