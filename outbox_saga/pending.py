"""What was published but not yet written, and the moment it is written: when the OUTERMOST transaction commits.

Two keepers. A *session's* keeper tags each entry with the nested transaction it was published in; a *connection's*
keeper does the same with savepoints and knows which sessions will commit through it. Everything is written by the
engine's `commit` event (or `prepare_twophase`): the session's `before_commit` runs before the flush and again for every
savepoint release, so a row written there could be lost with a savepoint it does not belong to, and what users' own
later hooks publish would be missed. A failing insert aborts the commit.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util.concurrency import in_greenlet

from outbox_saga.errors import AutocommitRefused, MessagesLeftOut, NoTransaction
from outbox_saga.queries.dialects import commits_by_itself

_numbers = itertools.count()
_KEY = "outbox_saga.pending"

Write = Callable[[sa.Connection, list[Any]], None]


@dataclass(slots=True)
class Entry:
    """One thing to write at commit; `writer` gets all entries of one kind at once."""

    number: int
    thing: Any
    writer: Write
    tag: Any  # SessionTransaction or sqlalchemy's savepoint (NestedTransaction); None: the root


class SessionKeeper:
    """The entries of one session's running transaction."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.connection: weakref.ref[sa.Connection] | None = None
        self.bind: sa.Engine | sa.Connection | None = None
        self.released: weakref.WeakSet[Any] = weakref.WeakSet()

    def forget(self) -> None:
        self.entries.clear()
        self.connection = None
        self.bind = None


class ConnectionKeeper:
    """The entries of one connection's running transaction, and the sessions that commit through it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.sessions: list[SessionKeeper] = []


_connections: weakref.WeakKeyDictionary[sa.Connection, ConnectionKeeper] = weakref.WeakKeyDictionary()
_heard: weakref.WeakSet[sa.Engine] = weakref.WeakSet()
_hearing = threading.Lock()


# --- taking in ----------------------------------------------------------------------------------------------------


def keep_with_session(
    session: Session, thing: Any, writer: Write, *, bind: sa.Engine | sa.Connection | None, clause: sa.Table
) -> None:
    """Keeps `thing` until the session's outermost transaction commits, and drops it if what it belongs to rolls back.

    Args:
        bind: The engine or connection whose database holds the outbox; None: the one the session uses for `clause`.

    Raises:
        NoTransaction: The session has no transaction: it would be written with the next one, or never.
        AutocommitRefused: The connection commits every statement by itself.
    """
    if not session.in_transaction():
        raise NoTransaction(
            "the session has no transaction (it has not begun, or was committed): publish inside "
            "`with session.begin():` or `with unit_of_work(...)`, before the commit"
        )
    keeper: SessionKeeper | None = session.info.get(_KEY)
    if keeper is None:
        keeper = session.info[_KEY] = SessionKeeper()
    if keeper.bind is None or (bind is not None and bind is not keeper.bind):
        if keeper.bind is not None and keeper.entries:
            raise NoTransaction(
                "one transaction publishes through one database: this session already publishes "
                "through another engine"
            )
        keeper.bind = bind if bind is not None else session.get_bind(clause=clause)
        hear(keeper.bind if isinstance(keeper.bind, sa.Engine) else keeper.bind.engine)
    entry = Entry(
        next(_numbers), thing, writer, session.get_nested_transaction() or session.get_transaction()
    )
    # An asynchronous connection can only be reached from inside SQLAlchemy's greenlet; then it is taken in before_commit
    if not keeper.bind.dialect.is_async or in_greenlet():
        _attach(session, keeper)
    elif isinstance(keeper.bind, sa.Engine) and _engine_commits_by_itself(keeper.bind):
        raise AutocommitRefused(_AUTOCOMMIT)
    keeper.entries.append(entry)


def keep_with_connection(connection: sa.Connection, thing: Any, writer: Write) -> None:
    """As `keep_with_session`, for a bare Connection and its savepoints."""
    if not connection.in_transaction():
        raise NoTransaction(
            "the connection has no transaction (it has not begun, or was committed): publish inside "
            "`with connection.begin():`, before the commit"
        )
    if commits_by_itself(connection):
        raise AutocommitRefused(_AUTOCOMMIT)
    hear(connection.engine)
    _keeper_of(connection).entries.append(
        Entry(next(_numbers), thing, writer, connection.get_nested_transaction())
    )


_AUTOCOMMIT = (
    "the connection is in AUTOCOMMIT, so the business rows are committed before the messages: use an engine "
    "or connection without isolation_level='AUTOCOMMIT' for units of work"
)


def _engine_commits_by_itself(engine: sa.Engine) -> bool:
    level = engine.get_execution_options().get("isolation_level")
    if level is None:
        level = getattr(engine.dialect, "_on_connect_isolation_level", None)
    return isinstance(level, str) and level.upper() == "AUTOCOMMIT"


def _keeper_of(connection: sa.Connection) -> ConnectionKeeper:
    keeper = _connections.get(connection)
    if keeper is None:
        keeper = _connections[connection] = ConnectionKeeper()
    return keeper


def _attach(session: Session, keeper: SessionKeeper) -> None:
    """The connection that will commit this session knows of its entries from now on."""
    assert keeper.bind is not None
    connection = session.connection(bind_arguments={"bind": keeper.bind})
    if keeper.connection is None or keeper.connection() is not connection:
        if commits_by_itself(connection):
            raise AutocommitRefused(_AUTOCOMMIT)
        hear(connection.engine)
        keeper.connection = weakref.ref(connection)
    sessions = _keeper_of(connection).sessions
    if keeper not in sessions:
        sessions.append(keeper)


# --- writing ------------------------------------------------------------------------------------------------------


def hear(engine: sa.Engine) -> None:
    """This engine's commits, rollbacks and savepoints are heard from now on; once per engine."""
    with _hearing:
        if engine in _heard:
            return
        event.listen(engine, "commit", _write)
        event.listen(engine, "prepare_twophase", _write_prepared)
        event.listen(engine, "commit_twophase", _write_unprepared)
        event.listen(engine, "rollback", _drop)
        event.listen(engine, "rollback_twophase", _drop_twophase)
        event.listen(engine, "rollback_savepoint", _drop_savepoint)
        _heard.add(engine)


def _write(connection: sa.Connection) -> None:
    keeper = _connections.pop(connection, None)
    if keeper is None:
        return
    entries = keeper.entries
    for session in keeper.sessions:
        entries += session.entries
        session.entries = []
    if not entries:
        return
    if commits_by_itself(connection):
        raise AutocommitRefused(_AUTOCOMMIT)
    entries.sort(key=lambda entry: entry.number)
    kinds: dict[Write, list[Any]] = {}
    for entry in entries:
        kinds.setdefault(entry.writer, []).append(entry.thing)
    # messages last: the locks of their keys are the last locks of the transaction
    for writer in sorted(kinds, key=lambda w: getattr(w, "rank", 0)):
        writer(connection, kinds[writer])


def _write_prepared(connection: sa.Connection, xid: Any) -> None:
    _write(connection)


def _write_unprepared(connection: sa.Connection, xid: Any, is_prepared: bool) -> None:
    if not is_prepared:
        _write(connection)


def _drop(connection: sa.Connection) -> None:
    keeper = _connections.pop(connection, None)
    if keeper is not None:
        for session in keeper.sessions:
            session.entries = []


def _drop_twophase(connection: sa.Connection, xid: Any, is_prepared: bool) -> None:
    _drop(connection)


def _drop_savepoint(connection: sa.Connection, name: str, context: None) -> None:
    keeper = _connections.get(connection)
    if keeper is not None:
        keeper.entries = [e for e in keeper.entries if name not in _savepoints(e.tag)]


def _savepoints(tag: Any) -> set[str]:
    """The names of the savepoint and of all around it."""
    names = set()
    while tag is not None:
        names.add(tag._savepoint)  # noqa: SLF001  # SQLAlchemy has no public name for either; a test pins both
        tag = tag._previous_nested  # noqa: SLF001
    return names


# --- the session's own turns --------------------------------------------------------------------------------------


def _before_commit(session: Session) -> None:
    keeper: SessionKeeper | None = session.info.get(_KEY)
    # a session that ran no SQL would fire no engine commit: take the connection now
    if keeper is not None and keeper.entries:
        _attach(session, keeper)


def _after_commit(session: Session) -> None:
    keeper: SessionKeeper | None = session.info.get(_KEY)
    if keeper is None:
        return
    nested = session.get_nested_transaction()
    if nested is not None:
        keeper.released.add(nested)
        return
    if not keeper.entries:
        return
    # The session's commit was not the database's: it joined somebody's outer transaction (join_transaction_mode)
    connection = keeper.connection() if keeper.connection is not None else None
    if connection is None or not connection.in_transaction():
        count = len(keeper.entries)
        keeper.forget()
        raise MessagesLeftOut(
            f"{count} message(s) were published too late to be written with this commit: publish before "
            "commit() is called, or in a hook that runs before ours"
        )
    outer = connection.get_nested_transaction()
    target = _keeper_of(connection)
    for entry in keeper.entries:
        entry.tag = outer
    target.entries += keeper.entries
    keeper.entries = []
    if keeper in target.sessions:
        target.sessions.remove(keeper)


def _after_soft_rollback(session: Session, previous: SessionTransaction) -> None:
    # a nested block rolled back before any SQL fires no engine event
    _drop_within(session, previous)


def _after_transaction_end(session: Session, ended: SessionTransaction) -> None:
    keeper: SessionKeeper | None = session.info.get(_KEY)
    if keeper is None:
        return
    if ended.parent is None:
        keeper.forget()  # closing without commit is a rollback
    elif ended.nested and ended not in keeper.released:
        _drop_within(session, ended)


def _drop_within(session: Session, gone: SessionTransaction) -> None:
    keeper: SessionKeeper | None = session.info.get(_KEY)
    if keeper is not None and keeper.entries:
        keeper.entries = [e for e in keeper.entries if not _is_within(e.tag, gone)]


def _is_within(tag: SessionTransaction | None, gone: SessionTransaction) -> bool:
    while tag is not None:
        if tag is gone:
            return True
        tag = tag.parent
    return False


# On the class: works for every session there is, whoever made it; a session that never published costs one look-up
event.listen(Session, "before_commit", _before_commit)
event.listen(Session, "after_commit", _after_commit)
event.listen(Session, "after_soft_rollback", _after_soft_rollback)
event.listen(Session, "after_transaction_end", _after_transaction_end)
