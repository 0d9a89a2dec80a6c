"""What is examined: a connection to the database, or what a broker said of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from outbox_saga.brokers.nats_settings import NatsSettings
from outbox_saga.database import Database
from outbox_saga.envelopes import MAX_BODY, MAX_HEADERS
from outbox_saga.errors import BrokerUnavailable
from outbox_saga.queries.dialects import family
from outbox_saga.tables import Tables
from outbox_saga_relay.doctor.findings import CannotLook

Kind = Literal["postgresql", "mariadb", "mysql", "sqlite"]


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on something is told.

    Args:
        long: Seconds a transaction may be open, and a message may wait.
        skew: Seconds that this machine's clock and the database's may differ.
        full: Share of connections, or of a stream's limits, that may be in use.
        notify: Share of PostgreSQL's queue of notifications that may be in use.
        xids: Transactions a replication slot may lie behind.
        body: Bytes a body may have where messages are published.
        headers: Bytes of headers, likewise.
        retry: Seconds between two attempts of one message, at most, as the relay is set.
        lease: Seconds until another relay takes over, likewise.
    """

    long: float = 300.0
    skew: float = 5.0
    full: float = 0.8
    notify: float = 0.1
    xids: int = 10_000_000
    body: int = MAX_BODY
    headers: int = MAX_HEADERS
    retry: float = 60.0
    lease: float = 10.0


DEFAULT_LIMITS = Limits()

NEEDED_CONNECTIONS = (
    "a relay needs 3, an orchestrator its concurrency + 24, a process that consumes its "
    "concurrency x (consumers + 1) + 24, at most; Database(pool_size=…) limits it"
)


@dataclass(frozen=True, slots=True)
class DatabaseCase:
    """A database as our programs reach it.

    Args:
        connection: In a transaction that is rolled back after each check.
        role: The role this user should have, one of `roles.ROLES`; None when nobody said.
    """

    database: Database
    connection: sa.Connection
    role: str | None = None
    limits: Limits = DEFAULT_LIMITS

    @property
    def tables(self) -> Tables:
        """Our tables, in the schema that was given."""
        return self.database.tables

    @property
    def kind(self) -> Kind:
        """Which database answers; MariaDB is told from MySQL by its own version string."""
        kind = family(self.connection)
        if kind == "mysql":
            dialect: Any = self.connection.dialect
            return "mariadb" if dialect.is_mariadb else "mysql"
        return kind

    @property
    def version(self) -> tuple[int, ...]:
        """The server's version, or SQLite's."""
        found: Any = self.connection.dialect.server_version_info
        return tuple(part for part in found if isinstance(part, int))

    def rows(self, statement: str, **values: object) -> list[tuple[Any, ...]]:
        """All rows of the driver's answer."""
        return [tuple(row) for row in self.connection.execute(sa.text(statement), values)]

    def scalar(self, statement: str, **values: object) -> Any:
        """The first column of the first row; None when there is none."""
        return self.connection.execute(sa.text(statement), values).scalar()

    def setting(self, name: str) -> str:
        """A setting of PostgreSQL as it holds in this session.

        Raises CannotLook for one that this version does not have.
        """
        value: str | None = self.scalar("SELECT current_setting(:name, true)", name=name)
        if value is None:
            raise CannotLook(f"this server has no setting {name}", "look whether it is PostgreSQL")
        return value

    def variables(self, *names: str, scope: Literal["GLOBAL", "SESSION"]) -> dict[str, str]:
        """Variables of MariaDB or MySQL by name; those that this server does not have are left
        out.
        """
        listed = ", ".join(f"'{name}'" for name in names)
        found = self.rows(f"SHOW {scope} VARIABLES WHERE Variable_name IN ({listed})")
        return {str(name).lower(): str(value) for name, value in found}

    def variable(self, *names: str, scope: Literal["GLOBAL", "SESSION"] = "GLOBAL") -> str:
        """The first of these variables that this server has.

        Raises CannotLook when it has none of them.
        """
        found = self.variables(*names, scope=scope)
        for name in names:
            if name in found:
                return found[name]
        raise CannotLook(
            f"this server has no variable {' or '.join(names)}",
            "look whether it is MariaDB or MySQL",
        )


@dataclass(frozen=True, slots=True)
class NatsCase:
    """What a NATS server said of itself and of our stream.

    Args:
        version: Of the server.
        max_payload: Bytes it takes as one message, headers included.
        account: The answer to $JS.API.INFO, or why there is none.
        stream: The answer to $JS.API.STREAM.INFO, or why there is none.
        consumers: For each of our consumers the answer to $JS.API.CONSUMER.INFO, or why there is
            none; None for one that does not exist yet.
        topics: Those that are known to be used.
    """

    settings: NatsSettings
    version: tuple[int, ...]
    max_payload: int
    account: Mapping[str, Any] | BrokerUnavailable
    stream: Mapping[str, Any] | BrokerUnavailable
    consumers: Mapping[str, Mapping[str, Any] | BrokerUnavailable | None] = field(
        default_factory=dict
    )
    topics: tuple[str, ...] = ()
    limits: Limits = DEFAULT_LIMITS

    @property
    def config(self) -> Mapping[str, Any]:
        """The stream's configuration; CannotLook without it."""
        config: Mapping[str, Any] = self._stream["config"]
        return config

    @property
    def state(self) -> Mapping[str, Any]:
        """What the stream holds; CannotLook without it."""
        state: Mapping[str, Any] = self._stream["state"]
        return state

    @property
    def cluster(self) -> Mapping[str, Any]:
        """The stream's servers, as far as the answer names them; CannotLook without it."""
        cluster: Mapping[str, Any] = self._stream.get("cluster") or {}
        return cluster

    @property
    def _stream(self) -> Mapping[str, Any]:
        if isinstance(self.stream, BrokerUnavailable):
            raise CannotLook(
                f"the stream {self.settings.stream} could not be looked at ({self.stream.code})",
                "mend what nats.stream found, or permit this user "
                f"$JS.API.STREAM.INFO.{self.settings.stream}",
            )
        return self.stream
