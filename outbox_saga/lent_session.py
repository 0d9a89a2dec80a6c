"""A session that is lent to users' code.

It works as ever, but only the lender ends its transaction.
"""

from __future__ import annotations

import re
import weakref
from typing import Any, NoReturn

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

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

    @event.listens_for(engine, "before_cursor_execute")
    def executing(connection: sa.Connection, cursor: Any, statement: str, *rest: Any) -> None:  # noqa: ARG001
        if connection in _lent and _ENDING.match(statement):
            raise CommitRefused(_REFUSAL)


class LentSession(Session):
    """Refuses to end its transaction.

    The lender calls `lend`, `taken_back`, `settle` or `undo`, and `give_back`.
    """

    _transaction_lent: sa.RootTransaction | None = None
    _connection_lent: sa.Connection | None = None
    _returned = False

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
        transaction: Any = connection.get_transaction()
        self._transaction_lent = transaction
        self._connection_lent = connection
        _lent.add(connection)
        return connection

    def _unguard(self) -> None:
        if self._connection_lent is not None:
            _lent.discard(self._connection_lent)

    def taken_back(self) -> sa.Connection:
        """The connection, still in the very transaction that was lent.

        Raises CommitRefused if somebody ended it.
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
        return connection

    def settle(self) -> None:
        """Commits."""
        self._unguard()
        super().commit()

    def undo(self) -> None:
        """Rolls back."""
        self._unguard()
        super().rollback()

    def abandon(self) -> None:
        """Ends the transaction after an interrupted statement, whose connection may be in the
        middle of an answer.
        """
        self._unguard()
        if self.get_bind().dialect.name in ("mysql", "mariadb"):
            super().invalidate()  # its protocol has no way back
        else:
            super().rollback()

    def give_back(self) -> None:
        """Closes; what was not settled is rolled back."""
        self._unguard()
        self._returned = True
        super().close()
