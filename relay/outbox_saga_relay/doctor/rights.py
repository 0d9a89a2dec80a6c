"""Every database that has users: what this one may do with our tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sqlalchemy.exc import DBAPIError

from outbox_saga.tables import DEFAULT_PARTITION, PREFIX
from outbox_saga_relay.doctor.cases import DatabaseCase
from outbox_saga_relay.doctor.findings import CannotLook, Check, Found
from outbox_saga_relay.roles import Rights, rights_of
from outbox_saga_relay.roles.rights import VERBS, every_column

# errno of MariaDB and MySQL
_DENIED = (1142, 1143)  # for a table, for a column
_NO_DEFAULT = 1364  # asked after the rights
_EVERYTHING = re.compile(r"GRANT ALL PRIVILEGES ON (\*\.\*|`[^`]+`\.\*)")


def powers(case: DatabaseCase) -> Iterator[Found]:
    """Programs connect as a user who cannot do more than they need."""
    if case.kind == "postgresql":
        who, superuser, owner = case.rows(
            """
            SELECT r.rolname, r.rolsuper, EXISTS (
              SELECT FROM pg_class c
              WHERE c.relnamespace =
                  CAST(quote_ident(coalesce(:schema, current_schema())) AS regnamespace)
                AND starts_with(c.relname, 'outbox_saga_') AND c.relowner = r.oid)
            FROM pg_roles r WHERE r.rolname = current_user
            """,
            schema=case.tables.schema,
        )[0]
    else:
        who = str(case.scalar("SELECT current_user()"))
        granted = [
            found for (line,) in case.rows("SHOW GRANTS") if (found := _EVERYTHING.match(line))
        ]
        superuser = any(found[1] == "*.*" for found in granted)
        owner = bool(granted)
    if superuser or owner:
        yield Found(
            "warning",
            f"this user ({who}) "
            + ("is a superuser" if superuser else "may do everything with our tables"),
            "give each program a user of its own with its role: `outbox-saga db roles` writes "
            "the SQL (migrations need the owner, programs do not)",
        )


def role(case: DatabaseCase) -> Iterator[Found]:
    """This user may do what its role needs, and no more (asked with --role)."""
    if case.role is None:
        return
    needed = rights_of(case.role, case.kind)
    may = _rights_postgresql(case) if case.kind == "postgresql" else _rights_mysql(case)
    everything = all(_beyond(_all_of(table), may, table) == "" for table in _our_tables(case))
    for table in sorted({*needed, *may}):
        if lacking := _beyond(needed, may, table):
            yield Found(
                "error",
                f"this user may not {lacking} on {table}, which {case.role} needs",
                f"run the SQL of `outbox-saga db roles`, and grant the role {case.role} to it",
            )
        extra = _beyond(may, needed, table)
        if extra and not everything:
            yield Found(
                "warning",
                f"this user may {extra} on {table}, which {case.role} does not need",
                "revoke it, or say what else this user is",
            )
    if everything:
        yield Found(
            "warning",
            f"this user may do everything with every table of ours, which {case.role} does not "
            "need",
            f"run the SQL of `outbox-saga db roles`, and grant the role {case.role} to a user "
            "that has no other rights",
        )


def _all_of(table: str) -> dict[str, dict[str, frozenset[str]]]:
    return {table: dict.fromkeys(VERBS, every_column(table))}


def _beyond(these: Rights, those: Rights, table: str) -> str:
    """What is in these and not in those, in the words of a GRANT."""
    found = []
    for verb in VERBS:
        columns = these.get(table, {}).get(verb, frozenset())
        beyond = columns - those.get(table, {}).get(verb, frozenset())
        if beyond:
            whole = beyond == every_column(table) or verb == "DELETE"
            found.append(verb if whole else f"{verb} ({', '.join(sorted(beyond))})")
    return ", ".join(found)


def _our_tables(case: DatabaseCase) -> list[str]:
    names = [table.name for table in case.tables.metadata.sorted_tables]
    if case.kind == "postgresql":
        names.append(f"{case.tables.archive.name}_{DEFAULT_PARTITION}")
    return [*names, f"{PREFIX}version"]


def _rights_postgresql(case: DatabaseCase) -> Rights:
    found: Rights = {}
    for table, verb, columns in case.rows(
        """
        SELECT c.relname, verb, array_agg(a.attname)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        CROSS JOIN unnest(CAST(:verbs AS text[])) AS verb
        WHERE c.relnamespace =
            CAST(quote_ident(coalesce(:schema, current_schema())) AS regnamespace)
          AND c.relname = ANY(:tables) AND NOT a.attisdropped
          AND CASE WHEN verb = 'DELETE' THEN has_table_privilege(c.oid, verb)
            ELSE has_column_privilege(c.oid, a.attnum, verb) END
        GROUP BY c.relname, verb
        """,
        schema=case.tables.schema,
        tables=_our_tables(case),
        verbs=list(VERBS),
    ):
        found.setdefault(table, {})[verb] = frozenset(columns)
    # in the catalogue, which everybody may read: by its name, who has no right finds no table
    there = """
        SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'outbox_saga_outbox' AND relnamespace =
            CAST(quote_ident(coalesce(:schema, current_schema())) AS regnamespace))
        """
    if not found and not case.scalar(there, schema=case.tables.schema):
        raise CannotLook("our tables are not there", "run `outbox-saga db upgrade`")
    return found


def _rights_mysql(case: DatabaseCase) -> Rights:
    """By preparing statements, which asks for the rights and runs nothing: what a user has by a
    role stands in no table of the information schema.
    """
    found: Rights = {}
    preparer = case.connection.dialect.identifier_preparer
    schema = case.tables.schema
    where = f"{preparer.quote(schema)}." if schema is not None else ""
    for table in _our_tables(case):
        for verb in VERBS:
            columns = frozenset(
                name
                for name in every_column(table)
                if _may_prepare(case, _statement(verb, where + table, preparer.quote(name)))
            )
            if columns:
                found.setdefault(table, {})[verb] = columns
    return found


def _statement(verb: str, table: str, column: str) -> str:
    return {
        "SELECT": f"SELECT {column} FROM {table}",  # noqa: S608 - our own names, quoted
        "INSERT": f"INSERT INTO {table} ({column}) VALUES (DEFAULT)",  # noqa: S608
        "UPDATE": f"UPDATE {table} SET {column} = DEFAULT",  # noqa: S608
        "DELETE": f"DELETE FROM {table}",  # noqa: S608
    }[verb]


def _may_prepare(case: DatabaseCase, statement: str) -> bool:
    try:
        case.connection.exec_driver_sql(f"PREPARE outbox_saga_doctor FROM '{statement}'")
    except DBAPIError as error:
        arguments = getattr(error.orig, "args", ())
        if arguments and arguments[0] in _DENIED:
            return False
        if not arguments or arguments[0] != _NO_DEFAULT:
            raise
        return True
    case.connection.exec_driver_sql("DEALLOCATE PREPARE outbox_saga_doctor")
    return True


CHECKS: Final[tuple[Check[DatabaseCase], ...]] = (
    Check(
        "roles.powers",
        "whether this user is a superuser or owns our tables",
        "A program that is broken into can do whatever its user may.",
        ("warning",),
        powers,
    ),
    Check(
        "roles.role",
        "with `--role`: this user's rights on our tables against the role's",
        "A right that is missing stops the program when it first needs it; one too many is there "
        "for whoever breaks in.",
        ("error", "warning"),
        role,
    ),
)
