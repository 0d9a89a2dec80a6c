"""MariaDB, from the system's package: no wheel brings it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence

from sqlalchemy import make_url

from outbox_saga.testing.servers.container import Container
from outbox_saga.testing.servers.database import DatabaseServer
from outbox_saga.testing.servers.place import Place, ServerUnavailable
from outbox_saga.testing.servers.process import LocalProcess


class MariaDB(DatabaseServer):
    """A MariaDB server. Databases are utf8mb4."""

    name = "mariadb"

    @classmethod
    def local(cls, *, durable: bool) -> Place:
        """A private server from the mariadbd of this machine."""
        folders = "/usr/sbin:/usr/bin:/usr/libexec:/usr/local/bin:/opt/homebrew/bin"
        program = shutil.which("mariadbd") or shutil.which("mariadbd", path=folders)
        installer = shutil.which("mariadb-install-db")
        if program is None or installer is None:
            raise ServerUnavailable("no mariadbd on this machine (package mariadb-server)")
        return _MariaDBProcess(program, installer, durable=durable)

    @classmethod
    def container(cls, *, durable: bool) -> Place:
        """The official image."""
        return Container(
            "mariadb:11.4",
            3306,
            command=_options(durable=durable),
            environment={"MARIADB_ALLOW_EMPTY_ROOT_PASSWORD": "1"},
        )

    def private_url(self) -> str:
        """As the owner, without a password."""
        return f"mysql+pymysql://root@{self.place.host}:{self.place.port}/mysql"

    def probe(self, patience: float = 5) -> None:
        """Connect and ask."""
        self.execute("select 1", patience)

    def execute(self, statement: str, patience: float = 5) -> None:
        """Run one statement."""
        import pymysql

        url = self.parsed_url
        connection = pymysql.connect(
            host=url.host,
            port=url.port or 3306,
            user=url.username,
            password=url.password or "",
            connect_timeout=math.ceil(patience),
            autocommit=True,
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)

    def drop_database(self, url: str) -> None:
        """Delete it. Tables that an open transaction holds make this wait for its end."""
        self.execute(f"drop database if exists `{make_url(url).database}`")


class _MariaDBProcess(LocalProcess):
    refuses_root = True

    def __init__(self, program: str, installer: str, *, durable: bool) -> None:
        super().__init__("path", durable=durable)
        self.program = program
        self.installer = installer

    def prepare(self) -> None:
        self.run(
            self.installer,
            "--no-defaults",
            f"--datadir={self.directory / 'data'}",
            "--auth-root-authentication-method=normal",
            # in the common one, each starting server removes the temporary tables of the others
            f"--tmpdir={self.directory}",
            "--skip-test-db",
            "--innodb-log-file-size=16M",
        )

    def command(self) -> Sequence[str]:
        return [
            self.program,
            "--no-defaults",
            f"--datadir={self.directory / 'data'}",
            f"--tmpdir={self.directory}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--socket=socket",  # in the data directory: the path of a socket may not be long
            f"--pid-file={self.directory / 'pid'}",
            "--innodb-log-file-size=16M",
            *_options(durable=self.durable),
        ]


def _options(*, durable: bool) -> list[str]:
    return [
        "--character-set-server=utf8mb4",
        "--max-connections=200",
        "--skip-name-resolve",
        "--performance-schema=OFF",
        # 1: on disk at every commit. 2: handed to the system at every commit, so it survives a
        # killed server but not a power cut.
        f"--innodb-flush-log-at-trx-commit={1 if durable else 2}",
    ]
