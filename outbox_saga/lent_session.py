"""A session that is lent to users' code.

It works as ever, but only the lender ends its transaction.
"""

from __future__ import annotations

from typing import Any, NoReturn

import sqlalchemy as sa
from sqlalchemy.orm import Session

from outbox_saga.errors import CommitRefused

_REFUSAL = (
    "this session is lent: its transaction is committed together with the inbox row or the "
    "saga's progress. "
    "Return to commit, raise (or return Failure) to undo; begin_nested() works for partial "
    "rollbacks"
)


class LentSession(Session):
    """Refuses to end its transaction.

    The lender calls `lend`, `taken_back`, `settle` or `undo`, and `give_back`.
    """

    _transaction_lent: sa.RootTransaction | None = None
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
        return connection

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
        super().commit()

    def undo(self) -> None:
        """Rolls back."""
        super().rollback()

    def abandon(self) -> None:
        """Ends the transaction after an interrupted statement, whose connection may be in the
        middle of an answer.
        """
        if self.get_bind().dialect.name in ("mysql", "mariadb"):
            super().invalidate()  # its protocol has no way back
        else:
            super().rollback()

    def give_back(self) -> None:
        """Closes; what was not settled is rolled back."""
        self._returned = True
        super().close()
