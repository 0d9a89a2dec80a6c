"""One attempt at a unit of work: how far it came, and whether its COMMIT may have happened.

No error says by itself whether it came before COMMIT, as its answer, or after it (from a hook of
the session). So the attempt has itself written at commit, behind the messages, as one of them.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from outbox_saga.errors import CommitUnknown
from outbox_saga.queries.dialects import is_transient, leaves_commit_open
from outbox_saga.unit_of_work import UnitOfWork

_committing: weakref.WeakKeyDictionary[sa.Connection, Attempt] = weakref.WeakKeyDictionary()

_OPEN = (
    "COMMIT was sent, and this error does not say whether it happened: the unit of work may be "
    "committed, so it was not repeated. Look at the data before it is run again."
)
_ENDED = (
    "The work ended its transaction itself, so the unit of work was not repeated: leave commit() "
    "and rollback() to retry_unit."
)
_JOINED = (
    "The session shares a transaction of its Connection, so the unit of work was not repeated: "
    "bind the sessionmaker to an engine, or run again all of that transaction."
)


class Attempt:
    """What is known of one attempt."""

    def __init__(self) -> None:
        self.raised: BaseException | None = None  # by the work itself
        self.returned = False  # the work has: what fails from here on is the commit
        self._sent = False  # COMMIT comes next, or came
        self._refused: BaseException | None = None  # what COMMIT failed with
        self._rolled_back = False  # so says `resolve`
        self._ended = False  # by the work, which was not to
        self._joined = False

    @contextmanager
    def at_work(self, uow: UnitOfWork[Any]) -> Iterator[None]:
        """The work runs inside; what it raises is remembered.

        A ROLLBACK over a dead connection fails as well, and its error would come out instead: it
        would make a business error, or a cancellation, look like a passing trouble.
        """
        session: Session = getattr(uow.session, "sync_session", uow.session)
        bind = session.bind
        self._joined = isinstance(bind, sa.Connection) and bind.in_transaction()
        transaction = session.get_transaction()
        try:
            yield
        except BaseException as error:
            self.raised = error
            self._ended = session.get_transaction() is not transaction
            raise
        self.returned = True
        self._ended = session.get_transaction() is not transaction
        if not self._ended:
            # only now: it may connect, and the work may first have to say how (isolation_level)
            uow.keep(self, _about_to_commit)

    def resolved(self, answer: object, unknown: CommitUnknown) -> bool:
        """Whether it is committed, as `resolve` says; only True and False are answers."""
        if not isinstance(answer, bool):
            if inspect.iscoroutine(answer):
                answer.close()
            # None, of a function that forgot to return, must not be a repeat
            unknown.add_note(f"resolve returned a {type(answer).__name__}; return True or False.")
            raise unknown
        self._rolled_back = not answer
        return answer

    def may_be_repeated(self, failed: Exception) -> bool:
        """Whether all of it is certainly rolled back, and only a passing trouble is to blame.

        When it is not, but looks so, the error gets a note that says why.
        """
        if isinstance(failed, CommitUnknown):
            if self.returned and not self._rolled_back:
                failed.add_note(f"{_OPEN[:-1]}, or give resolve=.")
            return self._rolled_back
        if self._sent and (failed is not self._refused or leaves_commit_open(failed)):
            failed.add_note(_OPEN)
            return False
        if not is_transient(failed):
            return False
        if self._ended or self._joined:
            failed.add_note(_ENDED if self._ended else _JOINED)
            return False
        return True

    def commit_comes(self, connection: sa.Connection) -> None:
        """Everything is written; COMMIT of this connection is the next statement."""
        self._sent = True
        _committing[connection] = self

    def commit_failed(self, error: BaseException) -> None:
        """The first error of the connection after that is the answer to COMMIT."""
        if self._refused is None:
            self._refused = error

    def forget(self) -> None:
        """Lets go of the errors: their tracebacks hold every frame, and these hold this."""
        self.raised = self._refused = None


def _about_to_commit(connection: sa.Connection, attempts: list[Any]) -> None:
    for attempt in attempts:
        attempt.commit_comes(connection)


_about_to_commit.rank = 2  # type: ignore[attr-defined]  # behind the messages: nothing comes later


def _note_error(context: Any) -> None:
    connection: sa.Connection | None = context.connection
    attempt = _committing.get(connection) if connection is not None else None
    if attempt is not None:
        attempt.commit_failed(context.sqlalchemy_exception or context.original_exception)


# On the class: whoever made the engine
event.listen(sa.Engine, "handle_error", _note_error)
