"""PostgreSQL: what sessions may hold, wait for and use up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from outbox_saga_relay.doctor.cases import NEEDED_CONNECTIONS, DatabaseCase
from outbox_saga_relay.doctor.findings import CannotLook, Check, Found

_SHORT_LOCK_WAIT = 0.1  # seconds: less than a healthy commit under load


def _duration(case: DatabaseCase, name: str) -> float:
    """What a session starts with, in seconds: whoever examines may have set a limit for itself.

    The unit is milliseconds, whatever people have written.
    """
    found = case.scalar("SELECT reset_val FROM pg_settings WHERE name = :name", name=name)
    return int(found) / 1000


def idle_transactions(case: DatabaseCase) -> Iterator[Found]:
    """A session that stands still in a transaction is ended."""
    if _duration(case, "idle_in_transaction_session_timeout") == 0:
        yield Found(
            "warning",
            "idle_in_transaction_session_timeout is not set",
            "ALTER DATABASE … SET idle_in_transaction_session_timeout = '60s' (longer than the "
            "longest pause of your own code inside a transaction)",
        )


def lock_timeout(case: DatabaseCase) -> Iterator[Found]:
    """Waiting for a lock ends, and not too early."""
    waits = _duration(case, "lock_timeout")
    if 0 < waits < _SHORT_LOCK_WAIT:
        yield Found(
            "warning",
            f"lock_timeout is {waits * 1000:.0f} ms: two busy writers of one key are enough to "
            "make a commit fail",
            "set lock_timeout to some seconds",
        )
    elif waits == 0 and _duration(case, "statement_timeout") == 0:
        yield Found(
            "info",
            "neither lock_timeout nor statement_timeout is set: a commit waits for another "
            "writer of its key for as long as that one takes",
            "ALTER DATABASE … SET lock_timeout = '10s', and retry the unit of work (SQLSTATE "
            "55P03)",
        )


def isolation(case: DatabaseCase) -> Iterator[Found]:
    """The service's own transactions see what was committed before each statement."""
    level = case.setting("default_transaction_isolation")
    if level != "read committed":
        yield Found(
            "warning",
            f"default_transaction_isolation is {level}: commits of the service's own sessions "
            "fail with 40001 when they meet",
            "retry the whole unit of work on 40001, or ALTER DATABASE … RESET "
            "default_transaction_isolation (our programs set READ COMMITTED by themselves)",
        )


def connections(case: DatabaseCase) -> Iterator[Found]:
    """There is room for more connections: in the server, the database and of this user."""
    reserved = int(case.setting("superuser_reserved_connections"))
    room = {"the server": int(case.setting("max_connections")) - reserved}
    # of every database, since they share the server's; a view that everybody may read in full
    used = {"the server": int(case.scalar("SELECT sum(numbackends) FROM pg_stat_database"))}
    here = case.rows(
        """
        SELECT d.datconnlimit, s.numbackends, r.rolconnlimit,
          (SELECT count(*) FROM pg_stat_activity a WHERE a.usesysid = r.oid)
        FROM pg_database d JOIN pg_stat_database s ON s.datid = d.oid
        JOIN pg_roles r ON r.rolname = current_user
        WHERE d.datname = current_database()
        """
    )[0]
    for what, limit, count in (
        ("this database", here[0], here[1]),
        ("this user", here[2], here[3]),
    ):
        if limit >= 0:
            room[what], used[what] = limit, count
    for what, limit in room.items():
        if used[what] >= case.limits.full * limit:
            yield Found(
                "warning",
                f"{used[what]} of {limit} connections of {what} are in use",
                f"raise the limit, or have fewer of them: {NEEDED_CONNECTIONS}",
            )


def pooler(case: DatabaseCase) -> Iterator[Found]:
    """Nothing stands between us and the server that hands our statements to many sessions."""
    raw: Any = case.connection.connection.dbapi_connection
    told = getattr(getattr(raw, "info", None), "backend_pid", None)
    if told is None:
        raise CannotLook(
            f"the driver {case.connection.dialect.driver} does not say which backend it was given",
            "use psycopg (postgresql+psycopg://…)",
        )
    # A pooler answers the connection itself, with numbers of its own for cancelling.
    if told == case.scalar("SELECT pg_backend_pid()"):
        return
    if getattr(raw, "prepare_threshold", None) is None:
        yield Found(
            "info",
            "a pooler (pgbouncer or the like) stands between this process and the server",
            "a direct URL for whoever LISTENs; settings by ALTER ROLE or ALTER DATABASE, never by "
            "SET; as many server connections as transactions may be open at once",
        )
        return
    yield Found(
        "warning",
        "a pooler (pgbouncer or the like) stands between this process and the server, and the "
        "driver prepares statements",
        "in transaction mode: say so (`?pooler=true` in the URL, or Database(pooler=True)), and "
        "nothing is prepared; a direct URL for whoever LISTENs; settings by ALTER ROLE or ALTER "
        "DATABASE, never by SET",
    )


CHECKS: Final[tuple[Check[DatabaseCase], ...]] = (
    Check(
        "postgresql.idle_in_transaction",
        "`idle_in_transaction_session_timeout`",
        "A process that stands still in a transaction holds the locks of its keys, so their "
        "writers wait for ever, and vacuum is held back.",
        ("warning",),
        idle_transactions,
    ),
    Check(
        "postgresql.lock_timeout",
        "`lock_timeout`, `statement_timeout`",
        "Writers of one key wait for each other: without an end, or with one that comes too "
        "early, commits stand still or fail.",
        ("warning", "info"),
        lock_timeout,
    ),
    Check(
        "postgresql.isolation",
        "`default_transaction_isolation`",
        "Above READ COMMITTED, transactions that meet fail and have to be tried again whole.",
        ("warning",),
        isolation,
    ),
    Check(
        "postgresql.connections",
        "connections in use against `max_connections`, and the limits of database and user",
        "A program that gets no connection stands still.",
        ("warning",),
        connections,
    ),
    Check(
        "postgresql.pooler",
        "whether PgBouncer or another pooler stands in between",
        "In transaction mode LISTEN hears nothing, SET reaches others, and a statement that was "
        "prepared on one session is unknown to the next.",
        ("warning", "info"),
        pooler,
    ),
)
