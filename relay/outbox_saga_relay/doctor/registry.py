"""Every check there is, in the order in which they are made; each stands with its function."""

from __future__ import annotations

from typing import Final, TypeAlias

from outbox_saga_relay.doctor import (
    backlog,
    clocks,
    mysql_durability,
    mysql_sessions,
    nats_server,
    nats_stream,
    postgresql_durability,
    postgresql_sessions,
    postgresql_upkeep,
    rights,
    schema,
    sqlite,
)
from outbox_saga_relay.doctor.cases import DatabaseCase, Kind, NatsCase
from outbox_saga_relay.doctor.findings import Check

DatabaseChecks: TypeAlias = tuple[Check[DatabaseCase], ...]
NatsChecks: TypeAlias = tuple[Check[NatsCase], ...]

REACHABLE: Final[Check[DatabaseCase]] = Check(
    "database.reachable",
    "whether the database answers this user",
    "Nothing works without it.",
    ("error",),
    lambda _: (),  # it is made by connecting
)
NATS_REACHABLE: Final[Check[NatsCase]] = Check(
    "nats.reachable",
    "whether a server answers this user",
    "Messages wait in the outbox until one does.",
    ("error",),
    lambda _: (),  # it is made by connecting
)

EVERY_DATABASE: Final[DatabaseChecks] = (*schema.CHECKS, *backlog.CHECKS)
WITH_USERS: Final[DatabaseChecks] = (*rights.CHECKS, *clocks.CHECKS)
POSTGRESQL: Final[DatabaseChecks] = (
    *postgresql_durability.CHECKS,
    *postgresql_sessions.CHECKS,
    *postgresql_upkeep.CHECKS,
)
MYSQL: Final[DatabaseChecks] = (*mysql_durability.CHECKS, *mysql_sessions.CHECKS)
SQLITE: Final[DatabaseChecks] = sqlite.CHECKS
NATS: Final[NatsChecks] = (*nats_server.CHECKS, *nats_stream.CHECKS)

LOCAL_BROKER: Final = "broker.local"
NO_CHECKS: Final = "broker.unknown"


def database_checks(kind: Kind) -> DatabaseChecks:
    """The checks for this kind of database, `REACHABLE` aside."""
    own = {"postgresql": POSTGRESQL, "mariadb": MYSQL, "mysql": MYSQL, "sqlite": SQLITE}[kind]
    return (*own, *(() if kind == "sqlite" else WITH_USERS), *EVERY_DATABASE)


SUBJECTS: Final[dict[str, DatabaseChecks | NatsChecks]] = {
    "Every database": (REACHABLE, *EVERY_DATABASE),
    "Every database that has users": WITH_USERS,
    "PostgreSQL": POSTGRESQL,
    "MariaDB and MySQL": MYSQL,
    "SQLite": SQLITE,
    "NATS": (NATS_REACHABLE, *NATS),
}
"""All of them, by what they look at: for the guide and for `--list`."""
