"""PostgreSQL: whether what was committed stays committed, and can be written at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from outbox_saga_relay.doctor.cases import DatabaseCase
from outbox_saga_relay.doctor.findings import Check, Found

_OLDEST = (13,)  # pg_current_xact_id()
_TRIED = (15,)  # the oldest our tests run on


def version(case: DatabaseCase) -> Iterator[Found]:
    """The version knows our statements."""
    shown = ".".join(map(str, case.version))
    if case.version < _OLDEST:
        yield Found(
            "error",
            f"PostgreSQL {shown}: commits with messages fail, since it has no "
            "pg_current_xact_id()",
            "upgrade the server to 15 or newer",
        )
    elif case.version < _TRIED:
        yield Found(
            "warning",
            f"PostgreSQL {shown} is older than what outbox-saga is tested with",
            "upgrade the server to 15 or newer",
        )


def writable(case: DatabaseCase) -> Iterator[Found]:
    """Transactions may write here."""
    if case.scalar("SELECT pg_is_in_recovery()"):
        yield Found(
            "error",
            "this server is a standby",
            "give the URL of the primary (several hosts: ?target_session_attrs=read-write)",
        )
    elif case.setting("transaction_read_only") == "on":
        yield Found(
            "error",
            "transactions of this user are read-only here (default_transaction_read_only)",
            "ALTER DATABASE or ALTER ROLE … RESET default_transaction_read_only, or give the "
            "URL of the primary",
        )


def synchronous_commit(case: DatabaseCase) -> Iterator[Found]:
    """COMMIT waits for the log to be on disk, for every role."""
    here = case.setting("synchronous_commit")
    source = case.scalar("SELECT source FROM pg_settings WHERE name = 'synchronous_commit'")
    if here == "off":
        yield Found(
            "error",
            f"synchronous_commit is off in this session (set by: {source})",
            "set it to on where it was switched off: ALTER DATABASE, ALTER ROLE or "
            "postgresql.conf",
        )
    elif here == "local" and case.setting("synchronous_standby_names"):
        yield Found(
            "warning",
            "synchronous_commit is local: it does not wait for the synchronous standbys that are "
            "set up",
            "set it to on, or to remote_apply",
        )
    for (role,) in case.rows(
        """
        SELECT DISTINCT r.rolname
        FROM pg_db_role_setting s
        JOIN pg_roles r ON r.oid = s.setrole
        WHERE s.setdatabase IN
            (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
          AND 'synchronous_commit=off' = ANY(s.setconfig) AND r.rolname <> current_user
        ORDER BY 1
        """
    ):
        yield Found(
            "error",
            f"synchronous_commit is off for {role} in this database",
            f"ALTER ROLE {role} RESET synchronous_commit (also: IN DATABASE …), unless it never "
            "writes messages or sagas",
        )


def fsync(case: DatabaseCase) -> Iterator[Found]:
    """The log reaches the disk."""
    if case.setting("fsync") == "off":
        yield Found(
            "error",
            "fsync is off: a power failure loses commits, and may destroy the database",
            "set fsync = on",
        )
    if case.setting("full_page_writes") == "off":
        yield Found(
            "warning",
            "full_page_writes is off: a power failure may leave half-written pages",
            "set full_page_writes = on, unless the file system writes 8 KiB at once or not at all "
            "(as ZFS does)",
        )


def standbys(case: DatabaseCase) -> Iterator[Found]:
    """A standby that is promoted has the last commits; and somebody answers if COMMIT waits."""
    names = case.setting("synchronous_standby_names")
    connected = case.scalar(
        "SELECT count(*) FROM pg_stat_replication WHERE application_name <> 'pg_basebackup'"
    )
    if names and not connected and case.setting("synchronous_commit") not in ("off", "local"):
        yield Found(
            "error",
            f"synchronous_standby_names is {names!r} and no standby is connected: every COMMIT "
            "waits",
            "connect the standby, or take it out of synchronous_standby_names",
        )
    elif not names and connected:
        yield Found(
            "info",
            f"{connected} standbys are connected and none is synchronous: one that is promoted "
            "may lack commits whose messages are already published",
            "set synchronous_standby_names where that matters",
        )


def wal_level(case: DatabaseCase) -> Iterator[Found]:
    """The log can be archived and replicated."""
    if case.setting("wal_level") == "minimal":
        yield Found(
            "info",
            "wal_level is minimal: neither a standby nor an archive of the log is possible, so "
            "losing the disk loses everything since the last dump",
            "set wal_level = replica",
        )


def encoding(case: DatabaseCase) -> Iterator[Found]:
    """Every character of a key or a header can be stored."""
    found = case.setting("server_encoding")
    if found != "UTF8":
        yield Found(
            "error",
            f"the database's encoding is {found}: a commit fails whose message has a character "
            "outside it",
            "make the database anew with ENCODING 'UTF8'",
        )


CHECKS: Final[tuple[Check[DatabaseCase], ...]] = (
    Check(
        "postgresql.version",
        "the server's version",
        "An older server does not know our statements, or nobody has tried them there.",
        ("error", "warning"),
        version,
    ),
    Check(
        "postgresql.writable",
        "whether this is a standby, or transactions are read-only",
        "Everything stands still: nothing can be published, removed or handled.",
        ("error",),
        writable,
    ),
    Check(
        "postgresql.synchronous_commit",
        "`synchronous_commit` of this session, and of every role in this database",
        "A crash loses commits that were reported as done. Their messages may be published "
        "already, of business data that no longer exists.",
        ("error", "warning"),
        synchronous_commit,
    ),
    Check(
        "postgresql.fsync",
        "`fsync`, `full_page_writes`",
        "A power failure loses commits, or the database.",
        ("error", "warning"),
        fsync,
    ),
    Check(
        "postgresql.standbys",
        "`synchronous_standby_names` and who is connected",
        "A promoted standby knows nothing of messages published from commits it never got; and a "
        "synchronous standby that is away stops every COMMIT.",
        ("error", "info"),
        standbys,
    ),
    Check(
        "postgresql.wal_level",
        "`wal_level`",
        "What is on no second disk is lost with the first.",
        ("info",),
        wal_level,
    ),
    Check(
        "postgresql.encoding",
        "the database's encoding",
        "A commit fails because of one character.",
        ("error",),
        encoding,
    ),
)
