"""What was published but not yet written, and the moment it is written.

When the OUTERMOST transaction commits.

Two keepers. A *session's* keeper tags each entry with the nested transaction it was published in;
a *connection's* keeper does the same with savepoints and knows which sessions will commit through
it. Everything is written by the engine's `commit` event (or `prepare_twophase`): the session's
`before_commit` runs before the flush and again for every savepoint release, so a row written there
could be lost with a savepoint it does not belong to, and what users' own later hooks publish would
be missed. A failing insert aborts the commit.

Nothing here holds a session, a transaction or a connection: one that its owner forgets is
collected as ever.
"""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util.concurrency import in_greenlet

from outbox_saga.errors import (
    AutocommitRefused,
    ConfigurationError,
    MessagesLeftOut,
    NoTransaction,
)
from outbox_saga.lent_session import refuse_broken
from outbox_saga.queries.dialects import commits_by_itself

_numbers = itertools.count()
_NUMBER = operator.attrgetter("number")
_KEY = "outbox_saga.pending"
_NO_SAVEPOINT: frozenset[str] = frozenset()

Chain = tuple[weakref.ref[SessionTransaction], ...]


@dataclass(slots=True)
class Written:
    """What a transaction leaves to be known by, if the answer to its COMMIT never comes.

    Args:
        ids: Of its messages.
        answer: Gives a row with its id, once, on PostgreSQL.
    """

    ids: tuple[UUID, ...]
    answer: Callable[[], Any] | None = None
    _number: str | None = None

    def transaction(self) -> str | None:
        """Its id, read from the server's answer when somebody asks for it; None elsewhere."""
        if self.answer is not None:
            row, self.answer = self.answer(), None
            self._number = None if row is None else str(row[0])
        return self._number


Write = Callable[[sa.Connection, list[Any]], "Written | None"]


@dataclass(slots=True)
class Entry:
    """One thing to write at commit; `writer` gets all entries of one kind at once."""

    number: int
    thing: Any
    writer: Write
    #: The session's transaction it was published in, and all around that one.
    within: Chain = ()
    #: The names of the connection's savepoint it was published in, and of all around that one.
    savepoints: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class Box:
    """The entries of one session's running transaction.

    The connection that will commit them looks into it.
    """

    entries: list[Entry]
    connection: weakref.ref[sa.Connection] | None = None


class SessionKeeper:
    """What a session publishes, and through which engine or connection."""

    def __init__(self) -> None:
        self.box = Box([])
        self.bind: sa.Engine | sa.Connection | None = None
        self.chain: Chain = ()
        self.released: weakref.WeakSet[SessionTransaction] | None = None

    def forget(self) -> None:
        """What was published so far is no longer this session's affair."""
        self.box = Box([])
        self.bind = None
        self.chain = ()


class ConnectionKeeper:
    """The entries of one transaction of a connection, and of sessions that commit through it."""

    def __init__(self, transaction: sa.RootTransaction) -> None:
        self.transaction = weakref.ref(transaction)
        self.entries: list[Entry] = []
        self.boxes: list[Box] = []
        self.abandoned: list[Entry] = []
        self.written = False
        self.evidence: list[Written] = []

    def keep_only(self, wanted: Callable[[Entry], bool]) -> None:
        """Forgets every other entry."""
        self.entries = [e for e in self.entries if wanted(e)]
        self.abandoned = [e for e in self.abandoned if wanted(e)]
        for box in self.boxes:
            box.entries = [e for e in box.entries if wanted(e)]

    def take_all(self) -> list[Entry]:
        """Every entry, in the order of publishing; none is left."""
        entries = self.entries
        for box in self.boxes:
            entries += box.entries
            box.entries = []
        self.entries, self.boxes = [], []
        if len(entries) > 1:
            entries.sort(key=_NUMBER)
        return entries


_KEEPER = (
    "_outbox_saga_keeper"  # an attribute of the connection: weak keys are looked up in Python
)

_AUTOCOMMIT = (
    "the connection is in AUTOCOMMIT, so the business rows are committed before the messages: use "
    "an engine or connection without isolation_level='AUTOCOMMIT' for units of work"
)
_TOO_LATE = (
    "the messages of this transaction are written already, its COMMIT (or PREPARE) is under way: "
    "publish before commit() is called, or in a hook of the session (before_commit, after_flush)"
)


# --- taking in -----------------------------------------------------------------------------------


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
    keeper: SessionKeeper | None = session.info.get(_KEY)
    if keeper is None:
        keeper = session.info[_KEY] = SessionKeeper()
    through = keeper.bind
    if through is None or (bind is not None and bind is not through):
        through = _choose_bind(session, keeper, bind, clause)
    innermost = session.get_nested_transaction() or root
    connection = _connection_in_hand(root, through)
    if connection is not None and _is_written(connection):
        raise MessagesLeftOut(_TOO_LATE)
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
        _attach(keeper.box, connection)
    elif isinstance(through, sa.Engine) and _engine_commits_by_itself(through):
        raise AutocommitRefused(_AUTOCOMMIT)
    chain = keeper.chain
    if not chain or chain[0]() is not innermost:
        chain = keeper.chain = _chain(innermost)
    keeper.box.entries.append(Entry(next(_numbers), thing, writer, chain, _savepoints(connection)))


def keep_with_connection(connection: sa.Connection, thing: Any, writer: Write) -> None:
    """As `keep_with_session`, for a bare Connection and its savepoints."""
    if not connection.in_transaction():
        raise NoTransaction(
            "the connection has no transaction (it has not begun, or was committed): publish "
            "inside `with connection.begin():`, before the commit"
        )
    if _is_written(connection):
        raise MessagesLeftOut(_TOO_LATE)
    if commits_by_itself(connection):
        raise AutocommitRefused(_AUTOCOMMIT)
    _keeper_of(connection).entries.append(
        Entry(next(_numbers), thing, writer, savepoints=_savepoints(connection))
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


def _connection_in_hand(
    root: SessionTransaction, bind: sa.Engine | sa.Connection
) -> sa.Connection | None:
    """The connection the session works with already; never makes one, so it needs no I/O."""
    # SQLAlchemy 2.1.7 has a public name for it, 2.0 has none; a test pins this one
    entry = root._connections.get(bind)  # noqa: SLF001
    return entry[0] if entry is not None else None


def connections_of(session: Session) -> list[sa.Connection]:
    """The connections the session works with; none is made."""
    root = session.get_transaction()
    return [] if root is None else [entry[0] for entry in set(root._connections.values())]  # noqa: SLF001  # as above


def _engine_commits_by_itself(engine: sa.Engine) -> bool:
    level = engine.get_execution_options().get("isolation_level")
    if level is None:
        level = getattr(engine.dialect, "_on_connect_isolation_level", None)
    return isinstance(level, str) and level.upper() == "AUTOCOMMIT"


def _keeper_of(connection: sa.Connection) -> ConnectionKeeper:
    """The keeper of the connection's running transaction; that of an earlier one is forgotten."""
    transaction = connection.get_transaction()
    if transaction is None:
        raise NoTransaction(
            "the connection's transaction ended while the session went on: begin a new one, and a "
            "new session"
        )
    keeper = _known_keeper_of(connection)
    if keeper is None or keeper.transaction() is not transaction:
        keeper = connection.__dict__[_KEEPER] = ConnectionKeeper(transaction)
    return keeper


def _known_keeper_of(connection: sa.Connection) -> ConnectionKeeper | None:
    """The keeper of its last transaction that had one; it may be over."""
    return connection.__dict__.get(_KEEPER)


def _is_written(connection: sa.Connection) -> bool:
    keeper = _known_keeper_of(connection)
    return (
        keeper is not None
        and keeper.written
        and keeper.transaction() is connection.get_transaction() is not None
    )


def _attach(box: Box, connection: sa.Connection) -> None:
    """The connection that will commit this session knows of its entries from now on."""
    boxes = _keeper_of(connection).boxes
    if box not in boxes:
        if commits_by_itself(connection):
            raise AutocommitRefused(_AUTOCOMMIT)
        box.connection = weakref.ref(connection)
        boxes.append(box)


def _chain(transaction: SessionTransaction | None) -> Chain:
    chain = []
    while transaction is not None:
        chain.append(weakref.ref(transaction))
        transaction = transaction.parent
    return tuple(chain)


def _savepoints(connection: sa.Connection | None) -> frozenset[str]:
    """The names of the savepoint the connection is in and of all around it.

    A connection never uses one twice.
    """
    innermost: Any = None if connection is None else connection.get_nested_transaction()
    if innermost is None:
        return _NO_SAVEPOINT
    names = []
    while innermost is not None:
        names.append(innermost._savepoint)  # noqa: SLF001  # SQLAlchemy has no public name for either; a test pins both
        innermost = innermost._previous_nested  # noqa: SLF001
    return frozenset(names)


# --- writing -------------------------------------------------------------------------------------


def _write(connection: sa.Connection) -> None:
    if keeper := _ready(connection):
        try:
            _write_entries(connection, keeper)
        except BaseException:
            _undo(connection, lambda: connection.dialect.do_rollback(connection.connection))
            raise


def _write_prepared(connection: sa.Connection, xid: Any) -> None:
    if keeper := _ready(connection):
        _write_entries(connection, keeper)


def _write_unprepared(connection: sa.Connection, xid: Any, is_prepared: Any) -> None:
    if not is_prepared and (keeper := _ready(connection)):
        try:
            _write_entries(connection, keeper)
        except BaseException:
            dialect = connection.dialect
            _undo(
                connection,
                lambda: dialect.do_rollback_twophase(connection, xid, is_prepared=False),
            )
            raise


def _ready(connection: sa.Connection) -> ConnectionKeeper | None:
    """The keeper of the transaction that is about to commit, if it has anything.

    Nothing can be added to it from now on.
    """
    transaction = connection.get_transaction()
    if transaction is None:
        return None
    keeper = _keeper_of(connection)
    keeper.written = True
    return keeper if keeper.entries or keeper.boxes or keeper.abandoned else None


def _write_entries(connection: sa.Connection, keeper: ConnectionKeeper) -> None:
    entries = keeper.take_all()
    if keeper.abandoned:
        raise MessagesLeftOut(
            f"{len(keeper.abandoned)} message(s) would be left out: their session shared this "
            "transaction and was closed without commit() or rollback(), which leaves what it "
            "flushed in; end the session by either"
        )
    if not entries:
        return
    if commits_by_itself(connection):
        raise AutocommitRefused(_AUTOCOMMIT)
    refuse_broken(connection)
    kinds: dict[Write, list[Any]] = {}
    for entry in entries:
        if entry.writer in kinds:
            kinds[entry.writer].append(entry.thing)
        else:
            kinds[entry.writer] = [entry.thing]
    # messages last: the locks of their keys are the last locks of the transaction
    writers = list(kinds) if len(kinds) == 1 else sorted(kinds, key=_rank)
    written = [writer(connection, kinds[writer]) for writer in writers]
    # only now: while something is still to be written, COMMIT has not been sent
    keeper.evidence += [evidence for evidence in written if evidence is not None]


def _rank(writer: Write) -> int:
    return getattr(writer, "rank", 0)


def what_was_written(connection: sa.Connection) -> list[Written]:
    """What the transaction whose COMMIT is under way has written; [] when none is."""
    keeper, transaction = _known_keeper_of(connection), connection.get_transaction()
    # of a transaction that has ended and was collected, the reference is None as well
    if keeper is None or transaction is None or keeper.transaction() is not transaction:
        return []
    return keeper.evidence


def _undo(connection: sa.Connection, rollback: Callable[[], None]) -> None:
    """Rolls back NOW.

    After a commit hook raised, SQLAlchemy takes the transaction for ended and never does.

    Without this the business rows stay in an open transaction, go back to the pool with the
    connection, and are committed, without their messages, by whoever gets it next.
    """
    if connection.closed or connection.invalidated:
        return
    try:
        rollback()
    except Exception as error:  # noqa: BLE001  # whatever it is: nobody may go on with it
        connection.invalidate(error)


def _begin_before_savepoint(connection: sa.Connection, name: str) -> None:
    # SQLite's driver begins by itself before the first write, not before a savepoint: the release
    # of one that comes first would be a COMMIT of its rows, whatever becomes of the messages
    if connection.dialect.name == "sqlite":
        raw: Any = connection.connection.dbapi_connection
        driver: Any = connection.connection.driver_connection
        if raw.isolation_level is not None and not driver.in_transaction:
            connection.exec_driver_sql(f"BEGIN {raw.isolation_level}")


def _drop(connection: sa.Connection) -> None:
    keeper: ConnectionKeeper | None = connection.__dict__.pop(_KEEPER, None)
    if keeper is not None:
        keeper.keep_only(lambda _: False)


def _drop_twophase(connection: sa.Connection, xid: Any, is_prepared: Any) -> None:
    _drop(connection)


def _drop_savepoint(connection: sa.Connection, name: str, context: None) -> None:
    keeper = _known_keeper_of(connection)
    if keeper is not None:
        keeper.keep_only(lambda entry: name not in entry.savepoints)


# --- the session's own turns ---------------------------------------------------------------------


def _before_commit(session: Session) -> None:
    keeper: SessionKeeper | None = session.info.get(_KEY)
    if keeper is None or not keeper.box.entries:
        return
    root = session.get_transaction()
    bind = keeper.bind
    connection = None if root is None or bind is None else _connection_in_hand(root, bind)
    if connection is None:
        # a session that ran no SQL would fire no engine commit: take the connection now
        connection = session.connection(bind_arguments={"bind": bind})
    _attach(keeper.box, connection)


def _after_commit(session: Session) -> None:
    keeper: SessionKeeper | None = session.info.get(_KEY)
    if keeper is None:
        return
    nested = session.get_nested_transaction()
    if nested is not None:
        if keeper.released is None:
            keeper.released = weakref.WeakSet()
        keeper.released.add(nested)
        return
    entries = keeper.box.entries
    if not entries:
        return
    # The session's commit was not the database's: it joined somebody's outer transaction
    connection = keeper.box.connection() if keeper.box.connection is not None else None
    box = keeper.box
    keeper.forget()
    if connection is None or not connection.in_transaction():
        raise MessagesLeftOut(
            f"{len(entries)} message(s) were not written with this commit. {_TOO_LATE}"
        )
    target = _keeper_of(connection)
    around = _savepoints(connection)
    for entry in entries:
        entry.savepoints |= around
    target.entries += entries
    target.boxes = [other for other in target.boxes if other is not box]


def _after_soft_rollback(session: Session, previous: SessionTransaction) -> None:
    # a nested block rolled back before any SQL fires no engine event
    _drop_within(session, previous)


def _after_transaction_end(session: Session, ended: SessionTransaction) -> None:
    keeper: SessionKeeper | None = session.info.get(_KEY)
    if keeper is None:
        return
    if ended.parent is None:
        if keeper.box.entries:
            _abandon(keeper, ended)
        keeper.forget()
    elif ended.nested and ended not in (keeper.released or ()):
        _drop_within(session, ended)


def _abandon(keeper: SessionKeeper, ended: SessionTransaction) -> None:
    """Closing without commit is a rollback and drops the messages, but for one case.

    Under `join_transaction_mode="rollback_only"` closing leaves the outer transaction alone: what
    the session flushed will be committed by it. Neither losing nor sending the messages would be
    right, so that COMMIT will be refused.
    """
    assert keeper.bind is not None
    taken = ended._connections.get(keeper.bind)  # noqa: SLF001  # as in _connection_in_hand
    if taken is None:
        return
    connection, transaction, should_commit, _ = taken
    if not should_commit and transaction.is_active:
        target = _keeper_of(connection)
        target.abandoned += keeper.box.entries
        target.boxes = [other for other in target.boxes if other is not keeper.box]


def _drop_within(session: Session, gone: SessionTransaction) -> None:
    keeper: SessionKeeper | None = session.info.get(_KEY)
    if keeper is not None and keeper.box.entries:
        keeper.box.entries = [
            e for e in keeper.box.entries if all(ref() is not gone for ref in e.within)
        ]


# On the class: works for every session there is, whoever made it; a session that never published
# costs one look-up
event.listen(Session, "before_commit", _before_commit)
event.listen(Session, "after_commit", _after_commit)
event.listen(Session, "after_soft_rollback", _after_soft_rollback)
event.listen(Session, "after_transaction_end", _after_transaction_end)

# On the class, not on each engine when it first publishes: SQLAlchemy's list of listeners may not
# grow while another thread is inside one of them ("deque mutated during iteration"), and that
# thread's commit would fail
event.listen(sa.Engine, "commit", _write)
event.listen(sa.Engine, "prepare_twophase", _write_prepared)
event.listen(sa.Engine, "commit_twophase", _write_unprepared)
event.listen(sa.Engine, "savepoint", _begin_before_savepoint)
event.listen(sa.Engine, "rollback", _drop)
event.listen(sa.Engine, "rollback_twophase", _drop_twophase)
event.listen(sa.Engine, "rollback_savepoint", _drop_savepoint)
