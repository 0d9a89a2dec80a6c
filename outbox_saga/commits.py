"""A COMMIT whose answer never came has an error of its own; and COMMIT has a deadline.

What became of it the database is asked by `outbox_saga.commit_outcomes`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from outbox_saga.errors import CommitUnknown, ConfigurationError
from outbox_saga.pending import Written, connections_of, what_was_written
from outbox_saga.queries.dialects import leaves_commit_open
from outbox_saga.watchdog import Watch, cut_after

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

COMMIT_TIMEOUT = 30.0  # seconds
_COMMITS = re.compile(
    r"(XA COMMIT|COMMIT PREPARED)\b", re.IGNORECASE
)  # COMMITs that are statements
_UNKNOWN = "outbox_saga_commit_unknown"
_UNTOLD = "outbox_saga_commit_untold"  # of a connection: what its last COMMIT was about
_NOT_SENT = "nothing was committed within {} s: COMMIT had not been sent; do the unit again"


def check_commit_timeout(seconds: float | None) -> None:
    """Raises ConfigurationError for one that cannot be meant."""
    if seconds is not None and not seconds > 0:
        raise ConfigurationError(
            f"commit_timeout is {seconds}; give seconds, more than 0, or None"
        )


def commit_within(session: Session, seconds: float | None) -> None:
    """Flushes and commits, or fails after so many seconds, counted from the flush.

    Raises:
        CommitUnknown: COMMIT was sent, and time was up before its answer came.
        TimeoutError: Time was up before COMMIT was sent; nothing is committed.
    """
    if seconds is None:
        session.commit()
        return
    with committing_within(session, seconds):
        session.commit()


@contextmanager
def committing_within(session: Session, seconds: float) -> Iterator[None]:
    """A block at whose end the session commits has ended after so many seconds, or fails.

    Raises:
        CommitUnknown: COMMIT was sent, and time was up before its answer came.
        TimeoutError: Time was up before COMMIT was sent; nothing is committed.
    """
    with cut_after(seconds, connections_of(session)) as watch, _noting(watch) as sent:
        try:
            yield
        except DBAPIError as error:
            if not watch.passed or not leaves_commit_open(error):
                raise  # the server has answered, however late
            raise _too_late(sent, seconds) from error


@asynccontextmanager
async def async_committing_within(seconds: float) -> AsyncIterator[None]:
    """As `committing_within`, for an AsyncSession; what is under way then is cancelled."""
    with _noting() as sent:
        async with _in_time(sent, seconds):
            yield


async def async_commit_and_close(session: AsyncSession, seconds: float | None) -> None:
    """As `commit_within`, for an AsyncSession, and closes it.

    A cancellation that comes when COMMIT was answered, and before the caller goes on, leaves the
    caller without the answer as well: `interrupted_commit` tells of it.
    """
    with _noting() as sent:
        try:
            async with session, _in_time(sent, seconds):
                await session.commit()
        except asyncio.CancelledError as error:
            _leave_unknown(error, [each for written in sent for each in written])
            raise


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


@dataclass(frozen=True, slots=True)
class _Commit:
    """One that is under way: its deadline, and of each COMMIT sent what was written before it."""

    watch: Watch | None
    sent: list[list[Written]]


_under_way: ContextVar[_Commit | None] = ContextVar("outbox_saga.commit", default=None)


@contextmanager
def _noting(watch: Watch | None = None) -> Iterator[list[list[Written]]]:
    """A list that gets, of each COMMIT that is about to be sent, what was written before it."""
    commit = _Commit(watch, [])
    token = _under_way.set(commit)
    try:
        yield commit.sent
    finally:
        _under_way.reset(token)


@asynccontextmanager
async def _in_time(sent: list[list[Written]], seconds: float | None) -> AsyncIterator[None]:
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            yield
    except TimeoutError as error:
        if not deadline.expired() or seconds is None:
            raise  # somebody else's: of a hook after the commit, say
        raise _too_late(sent, seconds) from error


def _has_begun(connection: sa.Connection, *_: Any) -> None:
    if connection.dialect.is_async:
        connection.info.pop(_UNTOLD, None)
    commit = _under_way.get()
    if commit is not None and commit.watch is not None:
        commit.watch.add([connection])  # the flush was the first to need it


def _about_to_commit(connection: sa.Connection, *_: Any) -> None:
    commit, written = _under_way.get(), what_was_written(connection)
    if commit is not None:
        commit.sent.append(written)
    if written and connection.dialect.is_async:
        connection.info[_UNTOLD] = written


def _given_back(_: Any, record: Any) -> None:
    record.info.pop(_UNTOLD, None)


def _interrupted_when_given_back(_: Any, record: Any, error: BaseException | None) -> None:
    """A session gives its connection back before `commit` returns, and may be cancelled there."""
    written = record.info.pop(_UNTOLD, None)
    if written and isinstance(error, asyncio.CancelledError):
        _leave_unknown(error, written)


def _too_late(sent: list[list[Written]], seconds: float) -> Exception:
    if not sent:
        return TimeoutError(_NOT_SENT.format(seconds))
    # a session of several databases commits one after the other: any of them may have it
    return _unknown([each for written in sent for each in written])


def _unknown(written: list[Written]) -> CommitUnknown:
    ids = tuple(id_ for each in written for id_ in each.ids)
    numbers = (each.transaction() for each in written)
    return CommitUnknown(ids, next((number for number in numbers if number is not None), None))


def _leave_unknown(error: BaseException, written: list[Written]) -> None:
    """For `interrupted_commit`: what this error leaves unknown, unless it says so already."""
    if written and not hasattr(error, _UNKNOWN):
        unknown = _unknown(written)
        # not the error itself, whose cause this one may be: a circle keeps the connection alive
        setattr(error, _UNKNOWN, (unknown.message_ids, unknown.transaction))


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
    # where another listener, or who cancelled, has the last word
    _leave_unknown(error, written)
    return unknown if context.sqlalchemy_exception is not None else None


# on the class, as the other listeners of a transaction's end
event.listen(sa.Engine, "handle_error", _told_apart)
event.listen(sa.Engine, "begin", _has_begun)
event.listen(sa.Engine, "begin_twophase", _has_begun)
# behind the listeners that write: what stands here is the last thing before COMMIT
event.listen(sa.Engine, "commit", _about_to_commit)
event.listen(sa.Pool, "checkin", _given_back)
event.listen(sa.Pool, "invalidate", _interrupted_when_given_back)
event.listen(sa.Engine, "commit_twophase", _about_to_commit)
