"""Everything is written at the moment the OUTERMOST transaction commits, by the engine's `commit`
event (or `prepare_twophase`): the session's `before_commit` runs before the flush and again for
every savepoint release, so a row written there could be lost with a savepoint it does not belong
to, and what users' own later hooks publish would be missed. A failing insert aborts the commit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from outbox_saga.errors import AutocommitRefused, MessagesLeftOut
from outbox_saga.lent_session import refuse_broken
from outbox_saga.pending.keepers import (
    AUTOCOMMIT,
    KEEPER,
    ConnectionKeeper,
    Write,
    Written,
    keeper_of,
    known_keeper_of,
)
from outbox_saga.queries.dialects import commits_by_itself


def _write(connection: sa.Connection) -> None:
    if keeper := _ready(connection):
        try:
            _write_entries(connection, keeper)
        except BaseException:
            undo(connection, lambda: connection.dialect.do_rollback(connection.connection))
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
            undo(
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
    keeper = keeper_of(connection)
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
        raise AutocommitRefused(AUTOCOMMIT)
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
    keeper.wrote_something = True
    # only now: while something is still to be written, COMMIT has not been sent
    keeper.evidence += [evidence for evidence in written if evidence is not None]


def _rank(writer: Write) -> int:
    return getattr(writer, "rank", 0)


def what_was_written(connection: sa.Connection) -> list[Written]:
    """What the transaction whose COMMIT is under way has written; [] when none is."""
    keeper, transaction = known_keeper_of(connection), connection.get_transaction()
    # of a transaction that has ended and was collected, the reference is None as well
    if keeper is None or transaction is None or keeper.transaction() is not transaction:
        return []
    return keeper.evidence


def undo(connection: sa.Connection, rollback: Callable[[], None]) -> None:
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
    keeper: ConnectionKeeper | None = connection.__dict__.pop(KEEPER, None)
    if keeper is not None:
        keeper.keep_only(lambda _: False)


def _drop_twophase(connection: sa.Connection, xid: Any, is_prepared: Any) -> None:
    _drop(connection)


def _drop_savepoint(connection: sa.Connection, name: str, context: None) -> None:
    keeper = known_keeper_of(connection)
    if keeper is not None:
        keeper.keep_only(lambda entry: name not in entry.savepoints)


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
