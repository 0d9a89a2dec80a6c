"""What the SQL of the roles grants, read back from it: one place says it, and everybody compares
with that.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

from outbox_saga.tables import DEFAULT_PARTITION, PREFIX, tables_in
from outbox_saga_relay.roles.script import ROLES, roles_sql

VERBS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")

Rights: TypeAlias = dict[str, dict[str, frozenset[str]]]
"""For each table (without schema) and each verb, the columns it may be used on. DELETE has all."""

_GRANT = re.compile(r"GRANT (?P<rights>.+) ON (?P<table>\w+) TO (?P<roles>[\w, ]+)")
_RIGHT = re.compile(r"(?P<verb>[A-Z]+)(?: \((?P<columns>[^)]*)\))?(?:, |$)")


def rights_of(role: str, dialect: str) -> Rights:
    """What a role may do on this kind of database.

    Args:
        role: One of `ROLES`, without a prefix.
        dialect: One of `DIALECTS`.
    """
    if role not in ROLES:
        raise ValueError(f"there is no role {role!r}; there are {', '.join(ROLES)}")
    name = f"x_{role}"
    found: Rights = {}
    for statement in _statements(roles_sql(dialect, prefix="x")):
        grant = _GRANT.fullmatch(statement)
        if grant is None or name not in grant["roles"].split(", "):
            continue
        for right in _RIGHT.finditer(grant["rights"]):
            if right["verb"] in VERBS:
                verbs = found.setdefault(grant["table"], {})
                verbs[right["verb"]] = _columns(grant["table"], right["columns"])
    return found


def every_column(table: str) -> frozenset[str]:
    """All columns of one of our tables."""
    if table == PREFIX + "version":
        return frozenset({"version_num"})  # Alembic's own
    table = table.removesuffix(f"_{DEFAULT_PARTITION}")  # of the archive, on PostgreSQL
    return frozenset(tables_in(None).metadata.tables[table].columns.keys())


def _columns(table: str, written: str | None) -> frozenset[str]:
    if written is None:
        return every_column(table)
    return frozenset(name.strip().strip('"`') for name in written.split(","))


def _statements(script: str) -> list[str]:
    """The statements in one line each, without comments."""
    code = re.sub(r"--[^\n]*", "", script)
    return [" ".join(statement.split()) for statement in code.split(";")]
