"""PgBouncer in transaction mode before a PostgreSQL, from the system: no wheel brings it."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from typing import Self

from sqlalchemy import make_url

from outbox_saga.testing.servers.place import Place, ServerUnavailable
from outbox_saga.testing.servers.postgres import Postgres
from outbox_saga.testing.servers.process import LocalProcess
from outbox_saga.testing.servers.server import Server

PREPARES_SINCE = (1, 21)  # before, a prepared statement is the server connection's it came to


class PgBouncer(Server):
    """A PgBouncer whose few server connections go from client to client with each transaction.

    Example:
        with PgBouncer.before(postgres, pool_size=2) as pooler:
            url = pooler.through(postgres.create_database())
    """

    name = "pgbouncer"

    def __init__(self, place: Place, server: Postgres | None = None) -> None:
        super().__init__(place)
        self.server = server

    @classmethod
    def before(cls, server: Postgres, *, pool_size: int = 2, prepared: int = 0) -> Self:
        """One before this server, whose databases all can be reached through it; not started yet.

        Args:
            server: It runs, and goes on running when this one ends.
            pool_size: Connections to the server for each database.
            prepared: `max_prepared_statements`: those it knows again on whatever connection. 0:
                none.

        Raises:
            ServerUnavailable: It is not on this machine, or too old to know statements again.
        """
        program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if program is None:
            raise ServerUnavailable("no pgbouncer on this machine (package pgbouncer)")
        version = version_of(program)
        if prepared and version < PREPARES_SINCE:
            raise ServerUnavailable(
                f"this PgBouncer is {'.'.join(map(str, version))}; it knows prepared statements "
                f"again since {'.'.join(map(str, PREPARES_SINCE))}"
            )
        knows = version >= PREPARES_SINCE
        return cls(
            _PgBouncerProcess(program, server, pool_size, prepared if knows else None), server
        )

    @classmethod
    def local(cls, *, durable: bool) -> Place:
        """None by itself: there is nothing behind it."""
        raise ServerUnavailable("a pooler stands before a server: PgBouncer.before(postgres)")

    @classmethod
    def container(cls, *, durable: bool) -> Place:
        """None: a container does not reach the private servers of this machine."""
        raise ServerUnavailable("a pooler stands before a server: PgBouncer.before(postgres)")

    def private_url(self) -> str:
        """The server's maintenance database through the pooler."""
        assert self.server is not None
        return self.through(self.server.url)

    def through(self, url: str) -> str:
        """The same database of the server, through the pooler; it does not say so by itself."""
        assert self.server is not None
        parsed = self.server.parsed_url
        there = parsed.set(
            database=make_url(url).database, host=self.place.host, port=self.place.port
        )
        return there.render_as_string(hide_password=False)

    def probe(self, patience: float = 5) -> None:
        """One question to the server behind it: an open port alone says nothing of that one."""
        import psycopg

        conninfo = (
            make_url(self.url).set(drivername="postgresql").render_as_string(hide_password=False)
        )
        with psycopg.connect(
            conninfo, autocommit=True, connect_timeout=max(2, round(patience))
        ) as connection:
            connection.execute(b"select 1", prepare=False)


def version_of(program: str) -> tuple[int, ...]:
    """Major and minor version."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"PgBouncer (\d+)\.(\d+)", said.stdout)
    return tuple(map(int, found.groups())) if found else (0, 0)


class _PgBouncerProcess(LocalProcess):
    refuses_root = True
    stop_signal = signal.SIGINT

    def __init__(
        self, program: str, server: Postgres, pool_size: int, prepared: int | None
    ) -> None:
        super().__init__("path", durable=False)
        self.program = program
        self.server = server
        self.pool_size = pool_size
        self.prepared = prepared

    def prepare(self) -> None:
        behind = self.server.parsed_url
        user, password = behind.username or "postgres", behind.password or ""
        users = self.directory / "users.txt"
        users.write_text(f'"{user}" "{password}"\n')
        settings = {
            "listen_addr": self.host,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": users,
            "auth_user": user,  # whom it asks for users that tests make
            "pool_mode": "transaction",
            "default_pool_size": self.pool_size,
            "max_client_conn": 500,
            "server_login_retry": 0.1,  # seconds: tests kill servers and start them again
            "query_wait_timeout": 30,  # seconds: a test says "too few connections" before its end
        }
        if self.prepared is not None:
            settings["max_prepared_statements"] = self.prepared
        (self.directory / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={behind.host} port={behind.port or 5432}\n"
            "[pgbouncer]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )

    def command(self) -> Sequence[str]:
        return [self.program, str(self.directory / "pgbouncer.ini")]
