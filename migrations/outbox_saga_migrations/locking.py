"""One change of our tables at a time, whoever asks: other processes wait, then look again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from outbox_saga.errors import AutocommitRefused
from outbox_saga.queries.dialects import errno
from outbox_saga_migrations.errors import UpgradeBusy
from outbox_saga_migrations.steps import MYSQL

# Of the one-number kind, which PostgreSQL keeps apart from the two-number kind of the key locks.
ADVISORY_LOCK = 0x6F75_7462_6F78_5361
NAMED_LOCK = "outbox_saga_migrations"
LOCK_TIMEOUT = 5.0
WAIT = 60.0
LOCK_NOT_AVAILABLE = "55P03"


@contextmanager
def exclusive(connection: Connection, *, wait: float, lock_timeout: float) -> Iterator[None]:
    """Inside, nobody else changes our tables, and an error leaves the transaction usable.

    PostgreSQL keeps the lock until the caller's transaction ends, SQLite too. MariaDB and MySQL
    commit at every CREATE, so there it ends with the block, after one more commit.

    Args:
        connection: The caller's; a transaction is begun on it if there is none.
        wait: How long to wait for somebody else's change to end, in seconds.
        lock_timeout: How long one of our statements waits for a table in use, in seconds. While
            it waits, whoever comes after it waits as well: keep it short.

    Raises:
        AutocommitRefused: The connection commits each statement by itself.
        UpgradeBusy: Somebody else's change did not end in time, or a table was in use.
    """
    if not connection.in_transaction():
        connection.begin()
    if connection.dialect.name == "postgresql":
        kind = _postgresql
    elif connection.dialect.name in MYSQL:
        kind = _mysql
    else:
        kind = _sqlite
    try:
        with kind(connection, wait, lock_timeout):
            yield
    except OperationalError as error:
        if not _says_busy(error):
            raise
        raise UpgradeBusy(
            "another process is changing or using the tables of outbox-saga; nothing changed "
            f"here, try again ({str(error.orig).splitlines()[0]})"
        ) from error


@contextmanager
def _postgresql(connection: Connection, wait: float, lock_timeout: float) -> Iterator[None]:
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise _autocommit()
    with connection.begin_nested():  # rolling back to it also puts lock_timeout back
        before = connection.scalar(sa.select(sa.func.current_setting("lock_timeout")))
        _set_lock_timeout(connection, f"{int(wait * 1000)}ms")
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
        _set_lock_timeout(connection, f"{int(lock_timeout * 1000)}ms")
        yield
        _set_lock_timeout(connection, str(before))


def _set_lock_timeout(connection: Connection, value: str) -> None:
    connection.execute(sa.select(sa.func.set_config("lock_timeout", value, True)))  # noqa: FBT003


@contextmanager
def _mysql(connection: Connection, wait: float, lock_timeout: float) -> Iterator[None]:
    if connection.scalar(sa.select(sa.func.get_lock(NAMED_LOCK, wait))) != 1:
        raise UpgradeBusy(
            f"another process has been changing the tables of outbox-saga for {wait} s; nothing "
            "changed here, try again"
        )
    try:
        # The caller's snapshot may be older than the lock; the first CREATE would commit anyway.
        connection.exec_driver_sql("COMMIT")
        before = connection.exec_driver_sql("SELECT @@SESSION.lock_wait_timeout").scalar_one()
        seconds = max(1, round(lock_timeout))
        connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {seconds}")
        try:
            yield
        except BaseException:
            if not connection.invalidated:
                connection.exec_driver_sql("ROLLBACK")  # the note of a revision that was refused
            raise
        else:
            # Before the lock ends: whoever gets it next must see the revision we wrote.
            connection.exec_driver_sql("COMMIT")
        finally:
            if not connection.invalidated:
                connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {int(before)}")
    finally:
        # of a connection that was lost, or cancelled, all of this ends with the server's session
        if not connection.invalidated:
            connection.scalar(sa.select(sa.func.release_lock(NAMED_LOCK)))


@contextmanager
def _sqlite(connection: Connection, wait: float, lock_timeout: float) -> Iterator[None]:
    # SQLite waits as long as its connection says: `timeout`, 5 s unless told otherwise.
    del wait, lock_timeout
    raw: Any = connection.connection.driver_connection
    if not raw.in_transaction:
        commits_alone = raw.isolation_level is None or getattr(raw, "autocommit", None) is True
        if commits_alone:
            raise _autocommit()
        # Python's driver begins no transaction before a CREATE, and a deferred one that has read
        # cannot wait for a writer: it fails at once.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    with connection.begin_nested():
        yield


def _autocommit() -> AutocommitRefused:
    return AutocommitRefused(
        "this connection commits each statement by itself: an upgrade that stops half way would "
        "stay half done; pass a connection with an open transaction"
    )


def _says_busy(error: OperationalError) -> bool:
    """By code: PostgreSQL's 55P03, MariaDB's 1205 (lock wait timeout), SQLite's 5 (busy)."""
    original: Any = error.orig
    if (number := errno(original)) is not None:
        return number == 1205
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if state is not None:
        return bool(state == LOCK_NOT_AVAILABLE)
    code = getattr(original, "sqlite_errorcode", None)
    return code is not None and bool(code & 0xFF == 5)
