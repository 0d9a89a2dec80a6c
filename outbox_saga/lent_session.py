"""A session that is lent to users' code.

It works as ever, but only the lender ends its transaction.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import (
    ReleaseSavepointClause,
    RollbackToSavepointClause,
    SavepointClause,
)

from outbox_saga.errors import CommitRefused

_REFUSAL = (
    "this session is lent: its transaction is committed together with the inbox row or the "
    "saga's progress. "
    "Return to commit, raise (or return Failure) to undo; begin_nested() works for partial "
    "rollbacks"
)

_lent: weakref.WeakSet[sa.Connection] = weakref.WeakSet()

# Statements that end a transaction, or begin another one, which ends this one in MariaDB.
_ENDING = re.compile(
    r"(?:\s|/\*.*?\*/|--[^\n]*\n)*"
    r"(?:commit|end|abort|begin|start\s+transaction|prepare\s+transaction"
    r"|rollback(?!(?:\s+(?:work|transaction))?\s+to))\b",
    re.IGNORECASE | re.DOTALL,
)


# Of a savepoint that SQLAlchemy does not know of, a rollback would leave the messages behind.
_SAVEPOINT = re.compile(
    r"(?:\s|/\*.*?\*/|--[^\n]*\n|\#[^\n]*\n)*"
    r"(?:savepoint|release|rollback(?:\s+(?:work|transaction))?\s+to)\b",
    re.IGNORECASE | re.DOTALL,
)
_SAVEPOINT_REFUSED = (
    "a savepoint by SQL text is not known here: what is published in it would leave, although its "
    "rows are rolled back. Use `with session.begin_nested():` for partial rollbacks"
)
_SAVEPOINT_CLAUSES = (SavepointClause, RollbackToSavepointClause, ReleaseSavepointClause)

# Statements that MariaDB and MySQL commit before; a temporary table is none.
_COMMITTING = re.compile(
    r"(?:\s|/\*.*?\*/|--[^\n]*\n|\#[^\n]*\n)*"
    r"(?:(?:create|drop)(?!(?:\s+or\s+replace)?\s+temporary\b)|alter|truncate|rename|grant|revoke"
    r"|(?:un)?lock\s+tables?|optimize|analyze\s+(?:local\s+|no_write_to_binlog\s+)?table|repair"
    r"|check\s+table|flush|reset|install|uninstall|load\s+index|cache\s+index"
    r"|set\s+(?:(?:session|local)\s+|@@(?:(?:session|local)\.)?)?autocommit"
    r"|set\s+password|xa)\b",
    re.IGNORECASE | re.DOTALL,
)
_COMMITS = (
    "MariaDB and MySQL commit before this statement, and this transaction is lent: it is "
    "committed together with the inbox row or the saga's progress. Run it outside of handlers "
    "and steps (instead of TRUNCATE: DELETE)"
)


def guard(engine: sa.Engine) -> None:
    """Nobody commits a lent transaction of this engine by its connection, or by a statement.

    Told only afterwards, half of the handler's work would stand, and the message as handled.
    """

    @event.listens_for(engine, "commit")
    def committing(connection: sa.Connection) -> None:
        if connection in _lent:
            # after this event has raised, SQLAlchemy takes the transaction for ended
            connection.dialect.do_rollback(connection.connection)
            raise CommitRefused(_REFUSAL)

    # with retval SQLAlchemy keeps the function itself, so that `queries.driver` knows it again
    event.listen(engine, "before_cursor_execute", refuse_ending, retval=True)


def refuse_ending(
    conn: sa.Connection,
    cursor: Any,  # noqa: ARG001 - SQLAlchemy's signature
    statement: str,
    parameters: Any,
    context: Any,
    executemany: bool,  # noqa: ARG001, FBT001
) -> tuple[str, Any]:
    """Refuses a statement that would end a lent transaction, or a part of it; changes none."""
    if conn in _lent:
        if _ENDING.match(statement):
            raise CommitRefused(_REFUSAL)
        if _SAVEPOINT.match(statement) and not _is_begin_nested(context):
            raise CommitRefused(_SAVEPOINT_REFUSED)
        if conn.dialect.name in ("mysql", "mariadb") and _COMMITTING.match(statement):
            raise CommitRefused(_COMMITS)
    return statement, parameters


def _is_begin_nested(context: Any) -> bool:
    compiled = getattr(context, "compiled", None)
    return isinstance(getattr(compiled, "statement", None), _SAVEPOINT_CLAUSES)


class LentSession(Session):
    """Refuses to end its transaction.

    The lender calls `lend`, `taken_back`, `settle` or `undo`, and `give_back`.
    """

    _transaction_lent: sa.RootTransaction | None = None
    _connection_lent: sa.Connection | None = None
    _returned = False
    _at_first_use: Callable[[sa.Connection], object] | None = None

    def commit(self) -> NoReturn:
        """Raise CommitRefused."""
        raise CommitRefused(_REFUSAL)

    def rollback(self) -> NoReturn:
        """Raise CommitRefused."""
        raise CommitRefused(_REFUSAL)

    def prepare(self) -> NoReturn:
        """Raise CommitRefused."""
        raise CommitRefused(_REFUSAL)

    def close(self) -> None:
        """Raise CommitRefused, unless the lender has it back."""
        if not self._returned:
            raise CommitRefused(_REFUSAL)
        super().close()

    def reset(self) -> None:
        """Raise CommitRefused, unless the lender has it back."""
        if not self._returned:
            raise CommitRefused(_REFUSAL)
        super().reset()

    def invalidate(self) -> NoReturn:
        """Raise CommitRefused."""
        raise CommitRefused(_REFUSAL)

    # --- for the lender --------------------------------------------------------------------------

    def lend(self) -> sa.Connection:
        """Begins the transaction that is lent."""
        connection = self.connection()
        self._lent_now(connection)
        return connection

    def lend_at_first_use(self, begin: Callable[[sa.Connection], object]) -> None:
        """The transaction is lent when somebody first uses the session; none is open till then.

        Args:
            begin: Then called with its connection, before anything else is sent.
        """
        self._at_first_use = begin
        self.begin()  # for those who publish before; it connects nothing yet

    def _lent_now(self, connection: sa.Connection) -> None:
        transaction: Any = connection.get_transaction()
        self._transaction_lent = transaction
        self._connection_lent = connection
        _lent.add(connection)

    def _unguard(self) -> None:
        if self._connection_lent is not None:
            _lent.discard(self._connection_lent)

    def taken_back(self) -> sa.Connection:
        """The connection, still in the very transaction that was lent.

        Raises CommitRefused if somebody ended it, or the server did.
        """
        if self.in_nested_transaction():
            raise CommitRefused(
                "a nested transaction was left open; use `with session.begin_nested():`"
            )
        connection = self.connection()
        transaction = self._transaction_lent
        if (
            transaction is None
            or not transaction.is_active
            or connection.get_transaction() is not transaction
        ):
            raise CommitRefused("the transaction was ended behind the session's back. " + _REFUSAL)
        refuse_broken(connection)
        return connection

    def settle(self) -> None:
        """Commits."""
        self._unguard()
        super().commit()

    def undo(self) -> None:
        """Rolls back."""
        self._unguard()
        super().rollback()

    def abandon(self, *, in_use: bool = False) -> None:
        """Ends the transaction after an interrupted statement, whose connection may be in the
        middle of an answer.

        Args:
            in_use: Somebody may be at it even now.
        """
        self._unguard()
        if in_use or self.get_bind().dialect.name in ("mysql", "mariadb"):
            super().invalidate()  # MariaDB's protocol has no way back
        else:
            super().rollback()

    def give_back(self) -> None:
        """Closes; what was not settled is rolled back."""
        self._unguard()
        self._returned = True
        super().close()


# --- transactions that the server has given up ---------------------------------------------------
#
# Whoever swallows the error and goes on would commit something else than the whole unit: nothing
# at all (PostgreSQL answers COMMIT with ROLLBACK and reports no error), or only what came after it
# (MariaDB rolls back at a deadlock and begins anew by itself).

_DEADLOCK, _LOCK_WAIT = 1213, 1205
_IN_ERROR = 3  # libpq: PQTRANS_INERROR

_broken: weakref.WeakKeyDictionary[sa.RootTransaction, int] = weakref.WeakKeyDictionary()


def refuse_broken(connection: sa.Connection) -> None:
    """Raises CommitRefused if the server has given this transaction up."""
    if connection.dialect.name == "postgresql":
        _refuse_in_error(connection.connection.driver_connection)
        return
    transaction = connection.get_transaction()
    code = _broken.get(transaction) if transaction is not None else None
    if code is not None:
        raise CommitRefused(
            f"an error {code} (deadlock or lock wait) was caught in this transaction, and the "
            "server may have rolled all of it back: let the error out and retry the whole unit"
        )


def _refuse_in_error(driver: Any) -> None:
    # psycopg's own, at hand; what else is built on libpq tells it as `info`
    told = getattr(driver, "pgconn", None) or getattr(driver, "info", None)
    if getattr(told, "transaction_status", None) == _IN_ERROR:
        raise CommitRefused(
            "a statement of this transaction failed and the error was caught, so the server "
            "would roll all of it back without an error: run a statement that may fail in "
            "`with session.begin_nested():`, or let the error out"
        )


def _note(context: Any) -> None:
    connection: sa.Connection | None = context.connection
    if connection is None or connection.dialect.name not in ("mysql", "mariadb"):
        return
    arguments = getattr(context.original_exception, "args", ())
    code = arguments[0] if arguments else None
    # after a lock wait the end of a savepoint says whether there still is a transaction
    if code == _DEADLOCK or (code == _LOCK_WAIT and not connection.in_nested_transaction()):
        transaction = connection.get_transaction()
        if transaction is not None:
            _broken[transaction] = code


# On the class: whoever made the engine
event.listen(sa.Engine, "handle_error", _note)


@event.listens_for(LentSession, "after_begin")
def _begun(session: LentSession, _: Any, connection: sa.Connection) -> None:
    begin = session._at_first_use  # noqa: SLF001  # ours
    if begin is not None and session._transaction_lent is None:  # noqa: SLF001
        session._lent_now(connection)  # noqa: SLF001
        begin(connection)
