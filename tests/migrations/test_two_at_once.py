"""Two processes upgrade one database at the same moment: one does it, all succeed."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from outbox_saga_migrations import UpgradeBusy, check, current, head, upgrade
from outbox_saga_migrations.locking import ADVISORY_LOCK, NAMED_LOCK
from tests.migrations.catalog import facts, table_names

# Says that everything is imported and connected, waits for the word, upgrades.
PROGRAM = """
import sys
import sqlalchemy as sa
from outbox_saga_migrations import upgrade
engine = sa.create_engine(sys.argv[1], poolclass=sa.NullPool)
with engine.connect() as connection:
    print("ready", flush=True)
    sys.stdin.readline()
    upgrade(connection)
    connection.commit()
engine.dispose()
"""


def at_once(url: str, processes: int) -> list[tuple[int, str]]:
    """Exit codes and errors of processes that are let go together."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=60) for process in started]
    return [(p.returncode, err) for p, (_, err) in zip(started, ended, strict=True)]


def test_processes_at_once_make_the_tables_once(
    engine: sa.Engine, defined: sa.Engine, database_url: str
) -> None:
    assert at_once(database_url, 2) == [(0, "")] * 2

    with defined.begin() as connection:
        upgrade(connection)
    with engine.begin() as connection, defined.begin() as alone:
        assert check(connection) == []
        assert facts(connection) == facts(alone)
        rows = connection.exec_driver_sql("select version_num from outbox_saga_version").all()
        assert [tuple(row) for row in rows] == [(head(),)]


@pytest.mark.databases("postgres18", "postgres15")
@pytest.mark.parametrize("first_ends_by", ["commit", "rollback"])
def test_who_comes_second_waits_for_the_first_transaction_and_looks_again(
    engine: sa.Engine, first_ends_by: str
) -> None:
    with (
        engine.connect() as first,
        engine.connect() as second,
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher,
        ThreadPoolExecutor(1) as other,
    ):
        upgrade(first)
        done = other.submit(upgrade, second)
        waiting = sa.text(
            "select count(*) from pg_locks where locktype='advisory' and not granted"
        )
        while not watcher.scalar(waiting):
            assert not done.done()
        getattr(first, first_ends_by)()
        done.result()
        second.commit()

    with engine.begin() as connection:
        assert check(connection) == []


@pytest.mark.databases("postgres18", "postgres15")
def test_on_postgresql_a_wait_that_lasts_too_long_ends_and_spoils_nothing(
    engine: sa.Engine,
) -> None:
    with engine.connect() as other, engine.connect() as connection:
        other.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))

        with pytest.raises(UpgradeBusy, match="try again"):
            upgrade(connection, wait=0.05)

        other.rollback()
        upgrade(connection)
        connection.commit()
        assert check(connection) == []


@pytest.mark.databases("mariadb")
def test_on_mariadb_a_wait_that_lasts_too_long_ends_and_spoils_nothing(engine: sa.Engine) -> None:
    with engine.connect() as other, engine.connect() as connection:
        other.execute(sa.select(sa.func.get_lock(NAMED_LOCK, 0)))

        with pytest.raises(UpgradeBusy, match="try again"):
            upgrade(connection, wait=0)

        assert table_names(connection) == set()
        other.execute(sa.select(sa.func.release_lock(NAMED_LOCK)))
        upgrade(connection)
        connection.commit()
        assert check(connection) == []


@pytest.mark.databases("sqlite")
def test_on_sqlite_a_wait_that_lasts_too_long_ends_and_spoils_nothing(
    engine: sa.Engine, database_url: str
) -> None:
    impatient = sa.create_engine(
        database_url, poolclass=sa.NullPool, connect_args={"timeout": 0.05}
    )
    with engine.connect() as other, impatient.connect() as connection:
        other.exec_driver_sql("begin immediate")

        with pytest.raises(UpgradeBusy, match="try again"):
            upgrade(connection)

        other.rollback()
        upgrade(connection)
        connection.commit()
        assert check(connection) == []


@pytest.mark.databases("mariadb")
def test_on_mariadb_a_snapshot_older_than_the_wait_does_not_hide_what_was_done(
    engine: sa.Engine,
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("create table orders (id int primary key)")

    with (
        engine.connect() as first,
        engine.connect() as second,
        engine.connect() as watcher,
        ThreadPoolExecutor(1) as other,
    ):
        first.execute(sa.select(sa.func.get_lock(NAMED_LOCK, 0)))
        second.exec_driver_sql("select * from orders")  # its snapshot is from now on
        done = other.submit(upgrade, second)
        waiting = sa.text(
            "select count(*) from information_schema.processlist where state = 'User lock'"
        )
        while not watcher.scalar(waiting):
            assert not done.done()
        upgrade(first)
        first.execute(sa.select(sa.func.release_lock(NAMED_LOCK)))
        done.result()
        second.commit()

    with engine.begin() as connection:
        assert check(connection) == []


def test_threads_of_one_process_upgrade_different_databases_at_once(
    engine: sa.Engine, defined: sa.Engine
) -> None:
    together = threading.Barrier(2)

    def run(one: sa.Engine) -> None:
        with one.begin() as connection:
            together.wait()
            upgrade(connection)

    with ThreadPoolExecutor(2) as threads:
        for ended in [threads.submit(run, one) for one in (engine, defined)]:
            ended.result()

    for one in (engine, defined):
        with one.begin() as connection:
            assert current(connection) == head()
            assert check(connection) == []
