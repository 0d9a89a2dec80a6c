"""Who waits for a lock: asked of the server, because mere silence may be a slow statement."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Protocol

import sqlalchemy as sa

from outbox_saga.errors import ConfigurationError


class LockWaits(Protocol):
    """One server's answer, by its own numbers of sessions."""

    def session(self, dbapi_connection: Any) -> int:
        """The server's number of this connection."""
        ...

    def waiting(self, sessions: Iterable[int]) -> set[int]:
        """Which of these sessions wait for a lock, now."""
        ...

    def cancel(self, session: int) -> None:
        """End the statement of this session with an error."""

    def close(self) -> None:
        """No connection is left."""


class PostgresLockWaits:
    """By `pg_locks`: a lock that is granted is so before the COMMIT that freed it returns."""

    def __init__(self, engine: sa.Engine) -> None:
        self._connection = _own_connection(engine)

    def session(self, dbapi_connection: Any) -> int:
        """The backend's process id."""
        return int(dbapi_connection.info.backend_pid)

    def waiting(self, sessions: Iterable[int]) -> set[int]:
        """Those with a lock that is not granted."""
        rows = self._connection.execute(
            sa.text("SELECT pid FROM pg_locks WHERE NOT granted AND pid = ANY(:pids)"),
            {"pids": list(sessions)},
        )
        return set(rows.scalars())

    def cancel(self, session: int) -> None:
        """As the server's own deadlock check would, without its second of waiting."""
        self._connection.execute(sa.text("SELECT pg_cancel_backend(:pid)"), {"pid": session})

    def close(self) -> None:
        """No connection is left."""
        self._connection.close()


# in SHOW ENGINE INNODB STATUS, which unlike information_schema.innodb_trx is never a cached answer
_TRANSACTION = re.compile(
    r"^LOCK WAIT .*?^(?:MariaDB|MySQL) thread id (\d+)", re.MULTILINE | re.DOTALL
)


class MariaDBLockWaits:
    """By InnoDB's status. The user needs the privilege PROCESS."""

    def __init__(self, engine: sa.Engine) -> None:
        self._connection = _own_connection(engine)

    def session(self, dbapi_connection: Any) -> int:
        """The connection's id."""
        return int(dbapi_connection.thread_id())

    def waiting(self, sessions: Iterable[int]) -> set[int]:
        """Those whose transaction is in LOCK WAIT."""
        status = self._connection.exec_driver_sql("SHOW ENGINE INNODB STATUS").one()[2]
        blocks = str(status).split("---TRANSACTION ")
        found = (_TRANSACTION.search(block) for block in blocks)
        return {int(match[1]) for match in found if match} & set(sessions)

    def cancel(self, session: int) -> None:
        """InnoDB finds deadlocks itself, at once; this is for the case that it is told not to."""
        self._connection.exec_driver_sql(f"KILL QUERY {session:d}")

    def close(self) -> None:
        """No connection is left."""
        self._connection.close()


def lock_waits(engine: sa.Engine) -> LockWaits:
    """How to ask the server behind this engine, on a connection of its own.

    Raises:
        ConfigurationError: SQLite waits inside the client, where nobody can be asked.
    """
    if engine.dialect.name == "postgresql" and engine.dialect.driver == "psycopg":
        return PostgresLockWaits(engine)
    if engine.dialect.name in ("mysql", "mariadb") and engine.dialect.driver == "pymysql":
        return MariaDBLockWaits(engine)
    raise ConfigurationError(
        f"nobody tells who waits for a lock on {engine.dialect.name}+{engine.dialect.driver}; "
        "use postgresql+psycopg or mysql+pymysql"
    )


def _own_connection(engine: sa.Engine) -> sa.Connection:
    own = sa.create_engine(engine.url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    return own.connect()
