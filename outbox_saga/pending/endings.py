"""What becomes of a session's entries when it commits, joins an outer transaction, or ends."""

from __future__ import annotations

import weakref

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from outbox_saga.errors import MessagesLeftOut
from outbox_saga.pending.keepers import (
    KEY,
    TOO_LATE,
    SessionKeeper,
    attach,
    connection_in_hand,
    keeper_of,
    savepoints_of,
)


def _before_commit(session: Session) -> None:
    keeper: SessionKeeper | None = session.info.get(KEY)
    if keeper is None or not keeper.box.entries:
        return
    root = session.get_transaction()
    bind = keeper.bind
    connection = None if root is None or bind is None else connection_in_hand(root, bind)
    if connection is None:
        # a session that ran no SQL would fire no engine commit: take the connection now
        connection = session.connection(bind_arguments={"bind": bind})
    attach(keeper.box, connection)


def _after_commit(session: Session) -> None:
    keeper: SessionKeeper | None = session.info.get(KEY)
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
            f"{len(entries)} message(s) were not written with this commit. {TOO_LATE}"
        )
    target = keeper_of(connection)
    around = savepoints_of(connection)
    for entry in entries:
        entry.savepoints |= around
    target.entries += entries
    target.boxes = [other for other in target.boxes if other is not box]


def _after_soft_rollback(session: Session, previous: SessionTransaction) -> None:
    # a nested block rolled back before any SQL fires no engine event
    _drop_within(session, previous)


def _after_transaction_end(session: Session, ended: SessionTransaction) -> None:
    keeper: SessionKeeper | None = session.info.get(KEY)
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
    taken = ended._connections.get(keeper.bind)  # noqa: SLF001  # as in connection_in_hand
    if taken is None:
        return
    connection, transaction, should_commit, _ = taken
    if not should_commit and transaction.is_active:
        target = keeper_of(connection)
        target.abandoned += keeper.box.entries
        target.boxes = [other for other in target.boxes if other is not keeper.box]


def _drop_within(session: Session, gone: SessionTransaction) -> None:
    keeper: SessionKeeper | None = session.info.get(KEY)
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
