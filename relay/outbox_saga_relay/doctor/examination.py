"""All checks made, one after another: what one of them cannot find out keeps no other from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from outbox_saga.brokers import open_publisher
from outbox_saga.brokers.nats_settings import NatsSettings
from outbox_saga.database import READ_ONLY, Database
from outbox_saga.errors import BrokerUnavailable
from outbox_saga.queries.dialects import brief, family
from outbox_saga_relay.doctor.cases import DEFAULT_LIMITS, DatabaseCase, Kind, Limits
from outbox_saga_relay.doctor.findings import CannotLook, Check, Finding, Found, Report, report
from outbox_saga_relay.doctor.registry import (
    LOCAL_BROKER,
    NATS,
    NATS_REACHABLE,
    NO_CHECKS,
    REACHABLE,
    database_checks,
)

Case = TypeVar("Case")

PATIENCE = 10  # seconds for connecting, and for one statement
_SAID = 300  # characters of an error that are shown
_NOT_ALLOWED = ("42501", 1044, 1142, 1143, 1227)
_CONNECT_TIMEOUT = ("psycopg", "psycopg2", "pymysql", "mysqldb")  # drivers that know the option


def examine_database(
    database: Database, *, role: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> Report:
    """Every check of this database is made, or is a finding that says why not; nothing is written.

    Args:
        database: As the programs reach it, as the user they have.
        role: The role this user should have, one of `outbox_saga_relay.roles.ROLES`.
        limits: From where on something is told.
    """
    engine = database.engine
    try:
        _look_for_file(engine)
        with _patient(engine), engine.connect() as connection:
            connection.detach()  # the limits set here are for nobody else
            connection = connection.execution_options(**{READ_ONLY: True})  # noqa: PLW2901
            case = DatabaseCase(database, connection, role, limits)
            checks = database_checks(case.kind)
            _limit_statements(case)
            return report(
                [finding for check in checks for finding in _made(check, case)],
                [REACHABLE.id, *(check.id for check in checks)],
            )
    except (CannotLook, DBAPIError) as error:
        # what a server or a driver says of a connection names no password
        why = error.reason if isinstance(error, CannotLook) else str(error.orig)[:_SAID]
        do = (
            error.do if isinstance(error, CannotLook) else "check the URL, the user and the server"
        )
        kind: Kind = "mariadb" if family(engine) == "mysql" else family(engine)
        return _unreachable(REACHABLE, database_checks(kind), why, do)


async def examine_broker(
    url: str,
    *,
    consumers: Mapping[str, Sequence[str]] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Report:
    """Every check of this broker is made, or is a finding that says why not; nothing is created.

    Args:
        url: Of the broker, or "local".
        consumers: The service's consumers and their topics.
        limits: From where on something is told.

    Raises:
        ConfigurationError: A URL that cannot work.
    """
    if url == "local":
        found = Finding(
            LOCAL_BROKER,
            "info",
            "the broker is local: this service talks to itself",
            "There is no broker to look at.",
            "nothing",
        )
        return report([found], [LOCAL_BROKER])
    open_publisher(url)  # connects to nothing; says what is wrong with the URL, or not installed
    scheme = url.partition("://")[0].lower()
    if scheme not in ("nats", "tls"):
        found = Finding(
            NO_CHECKS,
            "unknown",
            f"doctor has no checks for {scheme}",
            "What would lose messages there goes unnoticed.",
            "look at the broker's own settings for durability and retention",
        )
        return report([found], [NO_CHECKS])
    from outbox_saga_relay.doctor.nats_asking import ask_nats

    consumers = consumers or {}
    topics = {topic for listed in consumers.values() for topic in listed}
    try:
        case = await ask_nats(NatsSettings.parse(url), consumers, topics, limits)
    except BrokerUnavailable as error:
        return _unreachable(
            NATS_REACHABLE, NATS, str(error), "check the URL, the user and the server"
        )
    return report(
        [finding for check in NATS for finding in _made(check, case)],
        [NATS_REACHABLE.id, *(check.id for check in NATS)],
    )


def _unreachable(reachable: Check[Any], others: Iterable[Check[Any]], why: str, do: str) -> Report:
    others = tuple(others)
    findings = [
        Finding(reachable.id, "error", " ".join(why.split()), reachable.why, do),
        *(
            Finding(
                check.id, "unknown", "it could not be asked", check.why, f"mend {reachable.id}"
            )
            for check in others
        ),
    ]
    return report(findings, [reachable.id, *(check.id for check in others)])


def _made(check: Check[Case], case: Case) -> Iterator[Finding]:
    """What the check finds, up to where it can look."""
    found: list[Found] = []
    try:
        with _rolled_back(case):
            for each in check.look(case):
                found.append(each)  # noqa: PERF402 - those before an error count
    except CannotLook as error:
        found.append(Found("unknown", error.reason, error.do))
    except DBAPIError as error:
        original: Any = error.orig
        arguments = getattr(original, "args", ())
        codes = (getattr(original, "sqlstate", None), arguments[0] if arguments else None)
        refused = any(code in _NOT_ALLOWED for code in codes)
        found.append(
            Found(
                "unknown",
                f"{'this user may not ask' if refused else 'the question failed'} "
                f"({brief(error)})",
                "run doctor as a user who may"
                if refused
                else "mend what the other checks found, and ask again",
            )
        )
    for each in found:
        yield Finding(check.id, each.level, each.what, check.why, each.do)


@contextmanager
def _rolled_back(case: object) -> Iterator[None]:
    """A transaction for one check of a database: what fails in it fails for nobody else."""
    if not isinstance(case, DatabaseCase):
        yield
        return
    transaction = case.connection.begin()
    try:
        if case.kind == "postgresql":
            case.connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{PATIENCE}s'")
        yield
    finally:
        transaction.rollback()


def _limit_statements(case: DatabaseCase) -> None:
    """No question to MariaDB or MySQL takes longer than the patience of who asks."""
    limit = {"mariadb": f"max_statement_time = {PATIENCE}"}
    limit["mysql"] = f"max_execution_time = {PATIENCE * 1000}"
    if case.kind in limit:
        with case.connection.begin():
            case.connection.exec_driver_sql(f"SET SESSION {limit[case.kind]}")


@contextmanager
def _patient(engine: sa.Engine) -> Iterator[None]:
    """Connecting to a machine that does not answer ends."""

    def connecting(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> None:  # noqa: ARG001 - SQLAlchemy's words
        options.setdefault("connect_timeout", PATIENCE)

    if engine.dialect.driver not in _CONNECT_TIMEOUT:
        yield
        return
    event.listen(engine, "do_connect", connecting)
    try:
        yield
    finally:
        event.remove(engine, "do_connect", connecting)


def _look_for_file(engine: sa.Engine) -> None:
    """SQLite would make an empty file, and an examination would have changed something."""
    file = engine.url.database
    of_sqlite = engine.dialect.name == "sqlite" and file and not file.startswith("file:")
    if of_sqlite and not Path(file or "").exists():
        raise CannotLook(f"there is no file {file}", "give the path of the service's file")
