"""A process that dies anywhere in an upgrade or downgrade: the next one finishes it.

Only MariaDB shows half a revision, since each CREATE and DROP commits there; the others are tried
as well, because a rule that is tried on one database only is a rule of that database.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from outbox_saga_migrations import check, downgrade, upgrade
from tests.fixtures.databases import Database
from tests.migrations.catalog import table_names

pytestmark = pytest.mark.timeout(300)  # some hundred CREATEs, each of which MariaDB writes down

KILLED = -9

# Dying before a read is dying before the next write: nothing has changed in between.
READS = ("SELECT", "SHOW", "DESCRIBE", "PRAGMA")

# SIGKILL before the n-th statement: nothing of the process gets out any more.
PROGRAM = """
import itertools, os, signal, sys
import sqlalchemy as sa
from outbox_saga_migrations import upgrade
engine = sa.create_engine(sys.argv[1], poolclass=sa.NullPool)
count = itertools.count(1)
def die(*_):
    if next(count) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
with engine.connect() as connection:
    sa.event.listen(engine, "before_cursor_execute", die)
    upgrade(connection)
    connection.commit()
"""


class Death(BaseException):
    """Not an Exception, as no handler of ours may outlive the process."""


def dies_before(engine: sa.Engine, number: int, call: Callable[[sa.Connection], None]) -> bool:
    """Whether the n-th write was reached, at which the connection is cut without a goodbye."""
    count = itertools.count(1)
    reached = False

    def cut(connection: sa.Connection, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal reached
        if statement.strip().upper().startswith(READS) and not reached:
            return
        if reached or next(count) == number:
            reached = True
            raw: Any = connection.connection.dbapi_connection
            raw._force_close() if hasattr(raw, "_force_close") else raw.close()
            raise Death

    with engine.connect() as connection:
        event.listen(engine, "before_cursor_execute", cut)
        # the death itself, or what clean-up code meets on the dead connection
        with contextlib.suppress(Death, DBAPIError, PendingRollbackError):
            call(connection)
            connection.commit()
        event.remove(engine, "before_cursor_execute", cut)
        connection.invalidate()
    return reached


def points(database: Database, soak: bool) -> Iterator[int]:
    """A close sample where each CREATE commits by itself, a wide one where dying is a rollback."""
    return itertools.count(1, 1 if soak else 3 if database.name == "mariadb" else 6)


def test_an_upgrade_that_dies_before_any_write_is_finished_by_the_next(
    engine: sa.Engine, database: Database, soak: bool
) -> None:
    number = half_done = 0
    for number in points(database, soak):
        if not dies_before(engine, number, upgrade):
            break
        with engine.begin() as connection:
            half_done += bool(table_names(connection))
            upgrade(connection)
        with engine.begin() as connection:
            assert check(connection) == [], f"died before write {number}"
            downgrade(connection)

    assert number > 12
    assert (half_done > 3) == (database.name == "mariadb")


def test_a_downgrade_that_dies_before_any_write_is_finished_by_the_next(
    engine: sa.Engine, database: Database, soak: bool
) -> None:
    number = 0
    for number in points(database, soak):
        with engine.begin() as connection:
            upgrade(connection)
        if not dies_before(engine, number, downgrade):
            break
        with engine.begin() as connection:
            downgrade(connection)
        with engine.begin() as connection:
            assert table_names(connection) == set(), f"died before write {number}"

    assert number > 8


@pytest.mark.databases("mariadb")
@pytest.mark.parametrize("number", [12, 20, 28])
def test_an_upgrade_stopped_by_sigkill_is_finished_by_the_next(
    engine: sa.Engine, database_url: str, number: int
) -> None:
    died = subprocess.run(
        [sys.executable, "-c", PROGRAM, database_url, str(number)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == KILLED, died.stderr

    with engine.begin() as connection:
        upgrade(connection)
    with engine.begin() as connection:
        assert check(connection) == []
