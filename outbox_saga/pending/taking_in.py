"""What was published is kept with its session or connection. Refused: what would be lost there."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util.concurrency import in_greenlet

from outbox_saga.errors import (
    AutocommitRefused,
    ConfigurationError,
    MessagesLeftOut,
    NoTransaction,
)
from outbox_saga.pending.keepers import (
    AUTOCOMMIT,
    KEY,
    TOO_LATE,
    Chain,
    Entry,
    SessionKeeper,
    Write,
    attach,
    connection_in_hand,
    is_written,
    keeper_of,
    savepoints_of,
)
from outbox_saga.queries.dialects import commits_by_itself

_numbers = itertools.count()


def keep_with_session(
    session: Session,
    thing: Any,
    writer: Write,
    *,
    bind: sa.Engine | sa.Connection | None,
    clause: sa.Table,
) -> None:
    """Keeps `thing` until the session's outermost transaction commits, and drops it if what it
    belongs to rolls back.

    Args:
        session: In a transaction.
        thing: For `writer`.
        writer: Gets all things of one transaction at its commit.
        bind: The engine or connection whose database holds the outbox; None: the one the session
            uses for `clause`.
        clause: The outbox.

    Raises:
        NoTransaction: The session has no transaction, or one that has ended or failed.
        AutocommitRefused: The connection commits every statement by itself.
        MessagesLeftOut: The messages of this transaction are written already.
        ConfigurationError: The session does not know which engine holds the outbox.
    """
    root = session.get_transaction()
    if root is None:
        raise NoTransaction(
            "the session has no transaction (it has not begun, or was committed): publish inside "
            "`with session.begin():` or `with unit_of_work(...)`, before the commit"
        )
    keeper: SessionKeeper | None = session.info.get(KEY)
    if keeper is None:
        keeper = session.info[KEY] = SessionKeeper()
    through = keeper.bind
    if through is None or (bind is not None and bind is not through):
        through = _choose_bind(session, keeper, bind, clause)
    innermost = session.get_nested_transaction() or root
    connection = connection_in_hand(root, through)
    if connection is not None and is_written(connection):
        raise MessagesLeftOut(TOO_LATE)
    if not innermost.is_active:
        raise NoTransaction(
            "the session's transaction is over or has failed: call rollback() if it failed, and "
            "publish inside a new one, before its commit"
        )
    # An asynchronous connection can only be made inside SQLAlchemy's greenlet; outside it is taken
    # in before_commit
    if connection is None and (not through.dialect.is_async or in_greenlet()):
        connection = session.connection(bind_arguments={"bind": through})
    if connection is not None:
        attach(keeper.box, connection)
    elif isinstance(through, sa.Engine) and _engine_commits_by_itself(through):
        raise AutocommitRefused(AUTOCOMMIT)
    chain = keeper.chain
    if not chain or chain[0]() is not innermost:
        chain = keeper.chain = _chain(innermost)
    keeper.box.entries.append(
        Entry(next(_numbers), thing, writer, chain, savepoints_of(connection))
    )


def keep_with_connection(connection: sa.Connection, thing: Any, writer: Write) -> None:
    """As `keep_with_session`, for a bare Connection and its savepoints."""
    if not connection.in_transaction():
        raise NoTransaction(
            "the connection has no transaction (it has not begun, or was committed): publish "
            "inside `with connection.begin():`, before the commit"
        )
    if is_written(connection):
        raise MessagesLeftOut(TOO_LATE)
    if commits_by_itself(connection):
        raise AutocommitRefused(AUTOCOMMIT)
    keeper_of(connection).entries.append(
        Entry(next(_numbers), thing, writer, savepoints=savepoints_of(connection))
    )


def _choose_bind(
    session: Session,
    keeper: SessionKeeper,
    bind: sa.Engine | sa.Connection | None,
    clause: sa.Table,
) -> sa.Engine | sa.Connection:
    if keeper.box.entries:
        raise ConfigurationError(
            "one transaction publishes through one database: this session already publishes "
            "through another engine; give every UnitOfWork of the session the same `bind`"
        )
    if bind is None:
        try:
            bind = session.get_bind(clause=clause)
        except UnboundExecutionError as error:
            raise ConfigurationError(
                "the session does not know which engine holds the outbox: give "
                "UnitOfWork(session, bind=engine)"
            ) from error
    keeper.forget()
    keeper.bind = bind
    return bind


def _engine_commits_by_itself(engine: sa.Engine) -> bool:
    level = engine.get_execution_options().get("isolation_level")
    if level is None:
        level = getattr(engine.dialect, "_on_connect_isolation_level", None)
    return isinstance(level, str) and level.upper() == "AUTOCOMMIT"


def _chain(transaction: SessionTransaction | None) -> Chain:
    chain = []
    while transaction is not None:
        chain.append(weakref.ref(transaction))
        transaction = transaction.parent
    return tuple(chain)
