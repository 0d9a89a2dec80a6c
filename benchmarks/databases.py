"""Databases to measure on: durable, private, with our tables in them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from benchmarks.measuring import say
from outbox_saga.database import Database
from outbox_saga.testing.servers import DatabaseServer, MariaDB, Postgres18, choose
from outbox_saga_migrations import upgrade

# Checkpoints in the middle of a measurement would fall on whoever is being measured.
_POSTGRES_SETTINGS = ("max_wal_size = '16GB'", "checkpoint_timeout = '1h'")


@dataclass(frozen=True, slots=True)
class Place:
    """A database that is ready.

    Args:
        name: With the server's version, for tables.
        url: For sync engines.
    """

    name: str
    url: str


@contextmanager
def postgres() -> Iterator[Place]:
    """PostgreSQL 18, fsync and synchronous_commit on."""
    with choose(Postgres18, durable=True) as server:
        if server.source != "url":
            for setting in _POSTGRES_SETTINGS:
                server.execute(f"alter system set {setting}")
            server.execute("select pg_reload_conf()")
        with _database(server, "show server_version") as (url, number):
            yield Place(f"PostgreSQL {number.split()[0]}", url)


@contextmanager
def mariadb() -> Iterator[Place]:
    """MariaDB, the log flushed at every commit."""
    with (
        choose(MariaDB, durable=True) as server,
        _database(server, "select version()") as (url, number),
    ):
        yield Place(f"MariaDB {number.split('-')[0]}", url)


@contextmanager
def sqlite() -> Iterator[Place]:
    """SQLite in a file, WAL, synchronous=FULL (as `Database` sets it)."""
    with tempfile.TemporaryDirectory(prefix="outbox-saga-") as folder:
        url = f"sqlite:///{Path(folder, 'bench.db')}"
        yield Place(f"SQLite {_prepared(url, 'select sqlite_version()')}", url)


@contextmanager
def _database(server: DatabaseServer, question: str) -> Iterator[tuple[str, str]]:
    url = server.create_database()
    try:
        yield url, _prepared(url, question)
    finally:
        server.drop_database(url)


def _prepared(url: str, question: str) -> str:
    """Our tables are there; the server's version."""
    say(f"preparing {sa.make_url(url).get_backend_name()}")
    engine = Database(url).engine
    with engine.begin() as connection:
        upgrade(connection)
        number = str(connection.exec_driver_sql(question).scalar_one())
    engine.dispose()
    return number
