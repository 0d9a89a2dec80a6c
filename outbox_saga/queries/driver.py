"""One statement by the driver's own cursor, without SQLAlchemy's machinery around it.

That machinery (a context, a result, logging) costs as much client CPU as the round trip itself,
and every publishing transaction would pay it. Whoever listens still sees the statement: with a
listener for cursors or with echo on, it goes SQLAlchemy's whole way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import sqlalchemy as sa

from outbox_saga.lent_session import refuse_ending
from outbox_saga.queries.prepared import Twin, beginner, sender

Answer = Callable[[], Any]  # gives the first row, or None


def execute(connection: sa.Connection, statement: str, parameters: tuple[Any, ...]) -> None:
    """Runs the statement as `exec_driver_sql` does.

    Sent by `connection.dialect.do_execute`, as SQLAlchemy sends its own: what wraps that function
    (crash points) sees it. Errors are SQLAlchemy's, through `handle_error` like all others.

    Args:
        connection: Begins by itself, as ever.
        statement: In the driver's own words and marks.
        parameters: By place.
    """
    if _is_watched(connection):
        connection.exec_driver_sql(statement, parameters)
    else:
        _send(connection, statement, parameters).close()


def ask(
    connection: sa.Connection,
    statement: str,
    parameters: tuple[Any, ...],
    twin: Twin | None = None,
) -> Answer:
    """As `execute`, for a statement that answers: reading its first row waits until it is wanted.

    The server's whole answer has come by then; it is the reading that costs.

    Args:
        connection: As for `execute`.
        statement: As for `execute`; with a twin it answers with one text.
        parameters: As for `execute`; with a twin texts, bytes and numbers.
        twin: The same statement as psycopg sends it, once it has prepared it.
    """
    if _is_watched(connection):
        row = connection.exec_driver_sql(statement, parameters).first()
        return lambda: row
    if twin is not None and (send := sender(connection, twin)) is not None:
        try:
            result = send(parameters)
        except BaseException as error:  # noqa: BLE001 - raised again, as SQLAlchemy raises it
            _raise(connection, error, statement, parameters, None)
        return lambda: (result.get_value(0, 0).decode(),) if result.ntuples else None
    answer: Answer = _send(connection, statement, parameters).fetchone
    return answer


def begin_with(connection: sa.Connection, statement: str) -> None:
    """As `execute`, for a setting of the transaction: it leaves together with BEGIN, which psycopg
    would send by itself before it, unless something of the transaction was sent before.

    Args:
        connection: As for `execute`.
        statement: Without parameters; it answers nothing.
    """
    if _is_watched(connection) or (send := beginner(connection)) is None:
        connection.exec_driver_sql(statement)
        return
    try:
        send(statement)
    except BaseException as error:  # noqa: BLE001 - raised again, as SQLAlchemy raises it
        _raise(connection, error, statement, (), None)


def _send(connection: sa.Connection, statement: str, parameters: tuple[Any, ...]) -> Any:
    dialect: Any = connection.dialect
    cursor: Any = None
    try:
        cursor = connection.connection.cursor()
        dialect.do_execute(cursor, statement, parameters)
    except BaseException as error:  # noqa: BLE001 - raised again, as SQLAlchemy raises it
        _raise(connection, error, statement, parameters, cursor)
    return cursor


def _raise(
    connection: sa.Connection,
    error: BaseException,
    statement: str,
    parameters: tuple[Any, ...],
    cursor: Any,
) -> NoReturn:
    dialect: Any = connection.dialect
    told = statement if isinstance(error, dialect.loaded_dbapi.Error) else None
    # SQLAlchemy has no public name for it; a test pins this one
    connection._handle_dbapi_exception(error, told, parameters, cursor, None)  # noqa: SLF001


def _is_watched(connection: sa.Connection) -> bool:
    """Whether SQLAlchemy has more to do than to send it: to tell somebody (our own guard need not
    hear of it), or to begin.
    """
    dispatch: Any = connection.dispatch
    if not connection.in_transaction() or connection._echo or dispatch.after_cursor_execute:  # noqa: SLF001
        return True
    for listener in dispatch.before_cursor_execute:
        if listener is not refuse_ending:
            return True
    return bool(connection.dialect.dispatch.do_execute)
