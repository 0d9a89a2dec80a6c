"""Who keeps what was published until the outermost transaction commits.

A *session's* keeper tags each entry with the nested transaction it was published in; a
*connection's* keeper does the same with savepoints and knows which sessions will commit through
it. Nothing here holds a session, a transaction or a connection: one that its owner forgets is
collected as ever.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session, SessionTransaction

from outbox_saga.errors import AutocommitRefused, NoTransaction
from outbox_saga.queries.dialects import commits_by_itself

_NUMBER = operator.attrgetter("number")
KEY = "outbox_saga.pending"
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
        self.written = False  # its COMMIT is under way, or over
        self.wrote_something = False
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


KEEPER = "_outbox_saga_keeper"  # an attribute of the connection: weak keys are looked up in Python

AUTOCOMMIT = (
    "the connection is in AUTOCOMMIT, so the business rows are committed before the messages: use "
    "an engine or connection without isolation_level='AUTOCOMMIT' for units of work"
)
TOO_LATE = (
    "the messages of this transaction are written already, its COMMIT (or PREPARE) is under way: "
    "publish before commit() is called, or in a hook of the session (before_commit, after_flush)"
)


def connection_in_hand(
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


def keeper_of(connection: sa.Connection) -> ConnectionKeeper:
    """The keeper of the connection's running transaction; that of an earlier one is forgotten."""
    transaction = connection.get_transaction()
    if transaction is None:
        raise NoTransaction(
            "the connection's transaction ended while the session went on: begin a new one, and a "
            "new session"
        )
    keeper = known_keeper_of(connection)
    if keeper is None or keeper.transaction() is not transaction:
        keeper = connection.__dict__[KEEPER] = ConnectionKeeper(transaction)
    return keeper


def known_keeper_of(connection: sa.Connection) -> ConnectionKeeper | None:
    """The keeper of its last transaction that had one; it may be over."""
    return connection.__dict__.get(KEEPER)


def is_written(connection: sa.Connection) -> bool:
    """Whether the messages of its running transaction are written already."""
    keeper = known_keeper_of(connection)
    return (
        keeper is not None
        and keeper.written
        and keeper.transaction() is connection.get_transaction() is not None
    )


def attach(box: Box, connection: sa.Connection) -> None:
    """The connection that will commit this session knows of its entries from now on."""
    boxes = keeper_of(connection).boxes
    if box not in boxes:
        if commits_by_itself(connection):
            raise AutocommitRefused(AUTOCOMMIT)
        box.connection = weakref.ref(connection)
        boxes.append(box)


def savepoints_of(connection: sa.Connection | None) -> frozenset[str]:
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
