"""The SQL that makes the roles, for one schema and one prefix."""

from __future__ import annotations

import re
from importlib import resources

from outbox_saga.errors import ConfigurationError
from outbox_saga.tables import tables_in

ROLES = ("service", "consumer", "orchestrator", "relay", "operator", "observer")
DIALECTS = ("postgresql", "mariadb", "mysql")
DEFAULT_PREFIX = "outbox_saga"

_PREFIX = re.compile(r"[a-z_][a-z0-9_]{0,39}")  # never quoted; PostgreSQL cuts names at 63 bytes


def roles_sql(dialect: str, *, schema: str | None = None, prefix: str = DEFAULT_PREFIX) -> str:
    """SQL after which each role may do what its program does, and nothing else with our tables.

    It may run again, and while programs run. On PostgreSQL it also takes away what an older
    version granted and this one does not.

    Args:
        dialect: One of `DIALECTS`. SQLite has no roles: there, who may write the file may all.
        schema: Where our tables are; None is the default of the connection that runs the SQL.
        prefix: Of the roles' names. Roles belong to the whole server: give the services of one
            server different ones, or a relay of one may read the outbox of the other.

    Raises:
        ConfigurationError: No such dialect, or a prefix that is not a plain lower-case name.
        ValueError: A schema that is not a plain name.
    """
    tables_in(schema)  # refuses what is not a schema's name
    if dialect not in DIALECTS:
        raise ConfigurationError(f"{dialect} has no roles; use one of {', '.join(DIALECTS)}")
    if not _PREFIX.fullmatch(prefix):
        raise ConfigurationError(
            f"{prefix[:80]!r} cannot begin a role's name; use at most 40 lower-case letters, "
            "digits and '_'"
        )
    filled = {
        "prefix": prefix,
        "in_schema": _in_schema(dialect, schema),
        "everybody": ", ".join(f"{prefix}_{role}" for role in ROLES),
        # MySQL lets only those lock a row who may also change it; MariaDB does not ask
        "locking": ", UPDATE" if dialect == "mysql" else "",
    }
    return re.sub(r"\{(\w+)\}", lambda found: filled[found[1]], _template(dialect))


def _template(dialect: str) -> str:
    name = "postgresql.sql" if dialect == "postgresql" else "mysql.sql"
    return (resources.files("outbox_saga_relay.roles") / name).read_text(encoding="utf-8")


def _in_schema(dialect: str, schema: str | None) -> str:
    if schema is None:
        return ""
    if dialect == "postgresql":
        return f'SET LOCAL search_path = "{schema}";\n'
    return f"USE `{schema}`;\n"
