"""What drivers and servers are told so that no statement of a program lasts for ever.

The server ends a statement while it can; where it does not answer any more, the driver does. What
neither ends (psycopg waits for a server that stands still, as long as its machine answers) is left
to whoever asked: see `outbox_saga_relay.database_thread`.
"""

from __future__ import annotations

import math
from typing import Any

import sqlalchemy as sa

SERVER_SHARE = 0.8  # of the deadline: the server's own limit says more, and ends its own work
_PROBES = 3  # of TCP's keepalive, after which a connection counts as lost

_LIBPQ = ("psycopg", "psycopg2")
_MYSQL = ("pymysql", "mysqldb", "mariadbconnector")


def deadline_args(url: sa.URL, seconds: float) -> dict[str, Any]:
    """What the driver is told: connecting ends in time, and so does waiting for a lost machine.

    Args:
        url: With its driver. What it says itself stands.
        seconds: The deadline of one statement, rounded up to whole ones where drivers want that.
    """
    whole = max(1, math.ceil(seconds))
    driver = url.get_driver_name()
    told: dict[str, Any] = {}
    if driver in _LIBPQ:
        told = {
            "connect_timeout": whole,
            "keepalives": 1,
            "keepalives_idle": whole,
            "keepalives_interval": max(1, whole // _PROBES),
            "keepalives_count": _PROBES,
            "tcp_user_timeout": whole * 1000,
        }
    elif driver in _MYSQL:
        told = {"connect_timeout": whole, "read_timeout": whole, "write_timeout": whole}
    elif driver == "pg8000":
        told = {"timeout": whole}
    return {name: value for name, value in told.items() if name not in url.query}


def limit_session(dialect: sa.Dialect, dbapi_connection: Any, seconds: float) -> None:
    """Every statement of this session has ended by then, or waited for a lock for so long.

    To be called when a connection is made. Nothing is set where a pooler stands in between that
    nobody has told us of: the session is another client's next.

    Args:
        dialect: Of the engine, connected once.
        dbapi_connection: As SQLAlchemy's `connect` event gives it.
        seconds: The deadline; the server's limits are a little shorter.
    """
    limit = seconds * SERVER_SHARE
    whole = max(1, int(limit))
    if dialect.name == "postgresql":
        # a pooler answers the connection itself, with a number of its own
        told = getattr(getattr(dbapi_connection, "info", None), "backend_pid", None)
        if told is None:
            return
        statement = f"{_settings(seconds, 'false')} WHERE pg_backend_pid() = {int(told)}"
    elif dialect.name in ("mysql", "mariadb"):
        of_statements = (
            f"max_statement_time = {max(0.001, limit):.3f}"
            if getattr(dialect, "is_mariadb", False)
            else f"max_execution_time = {max(1, round(limit * 1000))}"  # of SELECT alone
        )
        statement = (
            f"SET SESSION {of_statements}, innodb_lock_wait_timeout = {whole}, "
            f"lock_wait_timeout = {whole}"
        )
    else:
        return
    cursor = dbapi_connection.cursor()
    cursor.execute(statement)
    cursor.close()
    dbapi_connection.commit()  # PostgreSQL takes a setting back with its transaction


def limit_transaction(connection: sa.Connection, seconds: float) -> None:
    """As `limit_session`, for this transaction alone: one more round trip, through a pooler too.

    PostgreSQL; poolers stand before no other database.
    """
    connection.exec_driver_sql(transaction_limit(seconds))


def transaction_limit(seconds: float) -> str:
    """The statement of `limit_transaction`."""
    return _settings(seconds, "true")


def _settings(seconds: float, only_here: str) -> str:
    milliseconds = max(1, round(seconds * SERVER_SHARE * 1000))
    return (
        f"SELECT set_config('statement_timeout', '{milliseconds}', {only_here}), "
        f"set_config('lock_timeout', '{milliseconds}', {only_here})"
    )
