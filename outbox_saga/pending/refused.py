"""A transaction whose COMMIT was refused is rolled back, in the database too.

SQLAlchemy takes a transaction for ended when its COMMIT failed, or when a commit hook raised, and
sends no ROLLBACK: whoever closes the connection without rollback() gives it back to the pool as it
is. What the database left open there (SQLite after SQLITE_BUSY or a deferred constraint, each of
them after a hook that raised) would be committed, with its messages, by whoever gets it next.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.pool import PoolResetState

from outbox_saga.errors import NoTransaction
from outbox_saga.pending.keepers import is_written, known_keeper_of
from outbox_saga.pending.writing import undo
from outbox_saga.queries.dialects import is_open

# In a connection's info: a COMMIT began, and no rollback came since
COMMITTING = "outbox_saga.committing"


def _commit_begins(connection: sa.Connection, *_: Any) -> None:
    connection.info[COMMITTING] = True


def _rolled_back(connection: sa.Connection, *_: Any) -> None:
    if not (connection.closed or connection.invalidated):  # else its info went with it
        connection.info.pop(COMMITTING, None)


def _commit_failed(context: ExceptionContext) -> None:
    connection = context.connection
    if (
        connection is None
        or context.statement is not None
        or context.is_disconnect
        or not isinstance(context.original_exception, Exception)  # a cancelled one is invalidated
        or not is_written(connection)  # no COMMIT is under way
    ):
        return
    undo(connection, lambda: connection.dialect.do_rollback(connection.connection))


def _goes_on(connection: sa.Connection) -> None:
    """The next transaction of a connection whose commit hook raised would be the refused one.

    It is told, not rolled back: nobody knows for certain that a hook raised, and after a COMMIT
    that went well it may be somebody's own transaction, begun through the driver.
    """
    keeper = known_keeper_of(connection)
    if (
        keeper is not None
        and keeper.wrote_something
        and COMMITTING in connection.info
        and any(not _is_ours(listener) for listener in connection.dispatch.commit)
        and is_open(connection)
    ):
        raise NoTransaction(
            "a commit hook raised, so the messages before it were refused, and their transaction "
            "is still open in the database: close this connection, which rolls it back, and do "
            "the unit again on another one (in general: let no commit hook of the engine raise)"
        )


def _is_ours(listener: Any) -> bool:
    return str(getattr(listener, "__module__", "")).startswith("outbox_saga.")


def _given_back(dbapi_connection: Any, record: Any, state: PoolResetState) -> None:
    # SQLAlchemy says that it was reset, and the last thing it was told is COMMIT: no commit that
    # went well, after which SQLAlchemy resets the connection itself
    if (
        record is not None
        and record.info.pop(COMMITTING, False)
        and state.transaction_was_reset
        and state.asyncio_safe
    ):
        dbapi_connection.rollback()  # if it fails the pool invalidates the connection


# On the class: whoever made the engine. Before all other listeners of a commit, which may raise
event.listen(sa.Engine, "commit", _commit_begins, insert=True)
event.listen(sa.Engine, "commit_twophase", _commit_begins, insert=True)
# and before those who begin by a statement of their own
event.listen(sa.Engine, "begin", _goes_on, insert=True)
event.listen(sa.Engine, "rollback", _rolled_back)
event.listen(sa.Engine, "handle_error", _commit_failed)
event.listen(sa.Pool, "reset", _given_back)
