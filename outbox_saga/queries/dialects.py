"""Where the databases differ: one function a difference.

A dialect is imported when a connection of it asks: importing all of them is slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from outbox_saga.errors import CommitUnknown, ConfigurationError
from outbox_saga.queries.driver import begin_with

Family = Literal["postgresql", "mysql", "sqlite"]

# Retry the whole unit after these, never one statement (SQLSTATE: PostgreSQL appendix A; errno:
# MySQL error reference)
_TRANSIENT_SQLSTATES = ("40001", "40P01", "55P03", "57P01", "57P02", "57P03", "25P03", "25P04")
_SQLITE_INTERRUPT = 9
_TRANSIENT_CLASSES = ("08", "53")
_TRANSIENT_ERRNOS = {1205, 1213, 2002, 2003, 2006, 2013, 2055, 1040, 1053, 1927, 4031}
_ENDED_ERRNOS = {1053, 1927, 2006, 2013, 2055, 4031}  # the session is over, whatever it was at


def family(connection: sa.Connection | sa.Engine) -> Family:
    """Which of the three SQL dialects this is.

    Raises ConfigurationError for any other database.
    """
    name = connection.dialect.name
    if name == "postgresql":
        return "postgresql"
    if name in ("mysql", "mariadb"):
        return "mysql"
    if name == "sqlite":
        return "sqlite"
    raise ConfigurationError(f"{name} is not supported; use PostgreSQL, MariaDB/MySQL or SQLite")


def insert_or_ignore(connection: sa.Connection, table: sa.Table) -> Any:
    """An INSERT whose row count is 0 when the primary key is already there."""
    kind = family(connection)
    statement: Any
    if kind == "postgresql":
        from sqlalchemy.dialects import postgresql

        statement = postgresql.insert(table).on_conflict_do_nothing()
    elif kind == "mysql":
        from sqlalchemy.dialects import mysql

        # ON DUPLICATE KEY UPDATE counts a matched row as 1 under the FOUND_ROWS flag that
        # SQLAlchemy sets
        statement = mysql.insert(table).prefix_with("IGNORE")
    else:
        from sqlalchemy.dialects import sqlite

        statement = sqlite.insert(table).on_conflict_do_nothing()
    # of an INSERT SQLAlchemy closes the cursor before anybody can ask: psycopg then says -1, which
    # would make every repeat look new
    return statement.execution_options(preserve_rowcount=True)


def make_sure_of_row(connection: sa.Connection, table: sa.Table) -> Any:
    """An INSERT that leaves a row alone that is there already; its row count says nothing.

    Unlike INSERT IGNORE on MariaDB/MySQL it does not share the lock of that row: two who share a
    lock and then both want it alone are a deadlock.
    """
    if family(connection) != "mysql":
        return insert_or_ignore(connection, table)
    from sqlalchemy.dialects import mysql

    key = table.primary_key.columns[0]
    return mysql.insert(table).on_duplicate_key_update({key.name: key})


def skip_locked(connection: sa.Connection, statement: Any) -> Any:
    """The SELECT with FOR UPDATE SKIP LOCKED; SQLite has one writer and needs none."""
    return (
        statement
        if family(connection) == "sqlite"
        else statement.with_for_update(skip_locked=True)
    )


def for_update(connection: sa.Connection, statement: Any) -> Any:
    """The SELECT with FOR UPDATE; SQLite has one writer and needs none."""
    return statement if family(connection) == "sqlite" else statement.with_for_update()


def delete_among(connection: sa.Connection, table: sa.Table, **among: Sequence[Any]) -> Any:
    """A DELETE of the rows whose columns are among these values; one of them is the primary key.

    MariaDB and MySQL rather scan a small table, and a DELETE that scans waits for every row that
    somebody has not committed yet, as long as that takes.
    """
    if family(connection) != "mysql":
        return sa.delete(table).where(
            *(table.c[name].in_(values) for name, values in among.items())
        )
    # as text: SQLAlchemy knows no hint for a DELETE
    quote = connection.dialect.identifier_preparer
    name = quote.format_table(table)
    where = " AND ".join(f"{name}.{quote.quote(column)} IN :{column}" for column in among)
    return sa.text(f"DELETE {name} FROM {name} FORCE INDEX (PRIMARY) WHERE {where}").bindparams(
        *(
            sa.bindparam(column, list(values), type_=table.c[column].type, expanding=True)
            for column, values in among.items()
        )
    )


def delete_at_most(
    connection: sa.Connection, table: Any, condition: sa.ColumnElement[bool], limit: int
) -> sa.Delete:
    """A DELETE of at most so many of the rows that meet the condition, and of no other row.

    Bounded, because one that is not holds its locks, its undo and its snapshot for minutes. A row
    that has changed meanwhile, so that it meets the condition no more, stays.
    """
    statement = sa.delete(table).where(condition)
    kind = family(connection)
    if kind == "mysql":
        return statement.with_dialect_options(mysql_limit=limit, mariadb_limit=limit)
    row: sa.ColumnClause[Any] = sa.column("ctid" if kind == "postgresql" else "rowid")
    # from nothing outside: the condition names the same table
    chosen = sa.select(row).select_from(table).where(condition).limit(limit).correlate(None)
    if kind == "postgresql":
        # IN would join the whole table; ANY(ARRAY()) goes to the rows themselves
        return statement.where(row == sa.func.any(sa.func.array(chosen.scalar_subquery())))
    return statement.where(row.in_(chosen))


def is_transient(error: BaseException) -> bool:
    """True when the whole unit may be tried again: deadlock, serialization, lost connection, busy.

    By code, never by text. A COMMIT whose answer never came is one of them only for units that do
    nothing the second time, as all of ours: they are held by an inbox row, a claim or a revision.
    """
    if isinstance(error, CommitUnknown | PoolTimeout):  # or every connection is in use
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    original: Any = error.orig
    number = errno(original)
    if number in _TRANSIENT_ERRNOS:
        return True
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if isinstance(state, str):
        return state in _TRANSIENT_SQLSTATES or state[:2] in _TRANSIENT_CLASSES
    code = getattr(original, "sqlite_errorcode", None)
    if isinstance(code, int):
        return code & 0xFF in (5, 6)  # SQLITE_BUSY, SQLITE_LOCKED and their extended codes
    # psycopg gives no SQLSTATE when the connection itself is gone
    return number is None and type(original).__name__ in ("OperationalError", "AdminShutdown")


def leaves_commit_open(error: BaseException) -> bool:
    """True when COMMIT, which failed with this error, may have happened all the same.

    An error that the server answers it with says that nothing was committed. That the connection
    has ended, or the server's session, says nothing.
    """
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return True
    original: Any = error.orig
    if (number := errno(original)) is not None:
        return number in _ENDED_ERRNOS
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if isinstance(state, str):  # a pooler in between may keep our connection, and tell by these
        return state == "40003" or state[:2] == "08" or state[:3] == "57P"
    return getattr(original, "sqlite_errorcode", None) is None


def errno(original: BaseException | None) -> int | None:
    """MariaDB's and MySQL's number of a driver's error; None of any other database's.

    To be asked for before SQLSTATE: there a lock wait that ran out is HY000, as much else is, and
    PyMySQL tells that, too, since 1.2.
    """
    arguments = getattr(original, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None


def ran_out_of_time(error: BaseException) -> bool:
    """True when a limit of time ended the statement, ours or an administrator's.

    Not transient for everybody: a handler's own statement may be too slow every time.
    """
    if not isinstance(error, DBAPIError):
        return False
    original: Any = error.orig
    if (number := errno(original)) is not None:
        return number in (1969, 3024)  # MariaDB's and MySQL's
    code = getattr(original, "sqlite_errorcode", None)
    if isinstance(code, int):
        return code & 0xFF == _SQLITE_INTERRUPT
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    return bool(state == "57014")  # query_canceled


def brief(error: BaseException) -> str:
    """What a log may say of an error of the database: its class and code.

    Of a connection that could not be made also what the server answered, which names no values.
    """
    if isinstance(error, CommitUnknown) and error.__cause__ is not None:
        error = error.__cause__
    original: Any = getattr(error, "orig", None) or error
    number = errno(original)
    state = getattr(original, "sqlstate", None) or getattr(original, "sqlite_errorname", None)
    code = state if number is None else number
    told = type(original).__name__ + (f" {code}" if code else "")
    answered = state is None or number is not None
    if isinstance(error, DBAPIError) and answered and error.statement is None:
        lines = str(original).strip().splitlines()
        told += f": {lines[-1][:200]}" if lines else ""
    return told


def _milliseconds(seconds: float) -> int:
    return min(max(1, round(seconds * 1000)), 2_147_483_647)  # 0 would switch the limit off


def limit_idle_transaction(connection: sa.Connection, seconds: float) -> None:
    """Bounds how long this transaction's locks survive a process that stands still (PostgreSQL
    only).
    """
    if family(connection) == "postgresql":
        begin_with(
            connection,
            f"SET LOCAL idle_in_transaction_session_timeout = {_milliseconds(seconds)}",
        )


def limit_transaction_whole(connection: sa.Connection, seconds: float) -> None:
    """As `limit_idle_transaction`; since PostgreSQL 17 for all of the transaction.

    So also where the process stands still in the middle of what it sends: the session is not idle
    then.
    """
    if family(connection) != "postgresql":
        return
    if (connection.dialect.server_version_info or ()) < (17,):
        limit_idle_transaction(connection, seconds)
        return
    connection.exec_driver_sql(f"SET LOCAL transaction_timeout = {_milliseconds(seconds)}")


def idle_limit(connection: sa.Connection, seconds: float) -> tuple[sa.ColumnElement[Any], ...]:
    """As `limit_idle_transaction`, as a column for a statement that locks rows.

    It costs no round trip, and takes effect with the locks, when the statement gives a row.
    """
    if family(connection) != "postgresql":
        return ()
    name, value = "idle_in_transaction_session_timeout", str(_milliseconds(seconds))
    return (sa.func.set_config(name, value, sa.true()).label("idle_limit"),)


_STATUS_IN_TRANSACTION = 1  # of MariaDB's and MySQL's protocol


def commits_by_itself(connection: sa.Connection) -> bool:
    """True in AUTOCOMMIT, as the DBAPI connection says.

    `get_isolation_level()` reports the server's level instead.
    """
    raw: Any = connection.connection.dbapi_connection
    kind = family(connection)
    if kind == "postgresql":
        return bool(getattr(raw, "autocommit", False))
    if kind == "mysql":
        reader = getattr(raw, "get_autocommit", None)
        if reader is None:
            reader = getattr(getattr(raw, "_connection", None), "get_autocommit", None)
        return bool(reader()) if reader is not None else getattr(raw, "autocommit", False) is True
    driver: Any = connection.connection.driver_connection
    declared = getattr(driver, "autocommit", None)  # since Python 3.12; else, and mostly, neither
    if isinstance(declared, bool):
        return declared
    if raw.isolation_level is not None:
        return False
    # isolation_level None: either AUTOCOMMIT, or somebody's BEGIN IMMEDIATE recipe, which has
    # begun by now
    return not bool(getattr(driver, "in_transaction", True))


def is_open(connection: sa.Connection) -> bool:
    """Whether the driver is in a transaction, as it says itself: no round trip.

    False for drivers that do not say (mysqlclient).
    """
    raw: Any = connection.connection.dbapi_connection
    driver: Any = connection.connection.driver_connection
    kind = family(connection)
    if kind == "sqlite":
        return bool(driver.in_transaction)
    if kind == "mysql":
        status = getattr(driver, "server_status", None)  # PyMySQL; asyncmy and aiomysql ask:
        if status is not None:
            return bool(status & _STATUS_IN_TRANSACTION)
        for name in ("get_transaction_status", "in_transaction"):
            told = getattr(driver, name, False)
            if told is not False:
                return bool(told() if callable(told) else told)
        return False
    if hasattr(driver, "is_in_transaction"):  # asyncpg
        return bool(driver.is_in_transaction())
    # psycopg's own, at hand; what else is built on libpq tells it as `info`; pg8000 has a letter
    told = getattr(driver, "pgconn", None) or getattr(driver, "info", None)
    if told is not None:
        return bool(told.transaction_status)  # IDLE is 0
    return getattr(raw, "_transaction_status", b"I") != b"I"
