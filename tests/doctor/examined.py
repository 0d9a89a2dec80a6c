"""Databases as they should be, on servers of doctor's own, and ways to spoil them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.queries.clock import DATABASE_CLOCK, Clock
from outbox_saga.testing.servers import DatabaseServer, Server, choose
from outbox_saga.testing.servers.process import LocalProcess
from outbox_saga_migrations import upgrade
from outbox_saga_relay.doctor import (
    DEFAULT_LIMITS,
    SUBJECTS,
    Finding,
    Limits,
    Report,
    examine_database,
)
from tests.doctor.logins import Logins
from tests.fixtures.databases import SERVERS
from tests.fixtures.databases import Database as EmptyDatabase
from tests.fixtures.services import Services

# What the servers' own defaults leave to be said.
GOOD_ARGUMENTS = {
    "postgres18": (),
    "postgres15": (),
    "mariadb": (
        "--innodb-rollback-on-timeout=ON",
        "--transaction-isolation=READ-COMMITTED",
        "--idle-write-transaction-timeout=60",
    ),
}
# Where a user may see what other sessions do.
SEES_OTHERS = {"postgresql": "pg_read_all_stats", "mariadb": "process on *.*"}


def start_with(
    services: Services,
    kind: type[Server],
    stack: contextlib.ExitStack,
    *arguments: str,
    durable: bool = False,
) -> Any:
    """A server of one's own, started with these arguments behind its usual ones."""
    server = choose(kind, services=services.where, durable=durable)
    if not isinstance(server.place, LocalProcess):
        pytest.skip(f"{kind.name} from {server.source} takes no arguments of ours")
    usual = server.place.command
    server.place.command = lambda: [*usual(), *arguments]  # type: ignore[method-assign]
    stack.enter_context(server)
    return server


class Examined:
    """One prepared database that nothing is wrong with, looked at by an observer."""

    def __init__(self, name: str, server: DatabaseServer) -> None:
        self.name = name
        self.server = server
        self.owner_url = server.create_database()
        self.database = str(sa.make_url(self.owner_url).database)
        self.owner = sa.create_engine(self.owner_url, poolclass=sa.NullPool)
        with self.owner.begin() as connection:
            upgrade(connection)
        self.logins = Logins(EmptyDatabase(name, self.owner_url))
        self.url = self.logins.url("observer", also=SEES_OTHERS[self.logins.dialect])
        if self.logins.dialect == "postgresql":
            self.set(idle_in_transaction_session_timeout="'60s'", lock_timeout="'10s'")

    def close(self) -> None:
        self.logins.close()
        self.server.drop_database(self.owner_url)

    def run(self, *statements: str) -> None:
        """As the owner of everything, each in its own transaction."""
        engine = self.owner.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def set(self, **settings: str) -> None:
        """For every session of this database from now on (PostgreSQL)."""
        self.run(
            *(
                f"alter database {self.database} set {name} = {value}"
                for name, value in settings.items()
            )
        )

    @contextlib.contextmanager
    def globally(self, **variables: str) -> Iterator[None]:
        """For every new session of the server, as long as the block lasts (MariaDB)."""
        with self.owner.connect() as connection:
            before = {
                name: connection.exec_driver_sql(f"select @@global.{name}").scalar_one()
                for name in variables
            }
        try:
            self.run(*(f"set global {name} = {value}" for name, value in variables.items()))
            yield
        finally:
            for name, value in before.items():
                shown = f"'{value}'" if isinstance(value, str) else value
                self.run(f"set global {name} = {shown}")

    def report(
        self,
        *,
        url: str | None = None,
        role: str | None = "observer",
        limits: Limits = DEFAULT_LIMITS,
        clock: Clock = DATABASE_CLOCK,
    ) -> Report:
        return examine(url or self.url, role=role, limits=limits, clock=clock)

    def found(self, check: str, **options: Any) -> list[Finding]:
        """What this check finds, of all checks that are made."""
        return of(self.report(**options), check)


def examine(
    url: str,
    *,
    role: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    clock: Clock = DATABASE_CLOCK,
) -> Report:
    database = Database(url, clock=clock)
    try:
        return examine_database(database, role=role, limits=limits)
    finally:
        database.engine.dispose()


DECLARED = {check.id: check.levels for checks in SUBJECTS.values() for check in checks}


def of(report: Report, check: str) -> list[Finding]:
    assert check in report.checks, f"{check} was not made"
    for finding in report.findings:
        assert finding.level in (*DECLARED.get(finding.check, (finding.level,)), "unknown")
    return [finding for finding in report.findings if finding.check == check]


def only(findings: list[Finding], level: str, *words: str) -> None:
    """There is one finding, of this level, and it says these words and what to do."""
    assert [f.level for f in findings] == [level], findings
    for word in words:
        assert word in findings[0].what, (word, findings[0].what)
    assert findings[0].why
    assert findings[0].do


class GoodServers:
    """The servers as they should be: durable, one of each kind, started when first asked for."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._stack = contextlib.ExitStack()
        self._running: dict[str, DatabaseServer] = {}

    def get(self, name: str) -> DatabaseServer:
        if name not in self._running:
            kind = SERVERS[name]
            assert kind is not None
            self._running[name] = start_with(
                self._services, kind, self._stack, *GOOD_ARGUMENTS[name], durable=True
            )
        return self._running[name]

    def close(self) -> None:
        self._stack.close()
