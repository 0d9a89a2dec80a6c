"""MariaDB and MySQL: what sessions may hold, wait for and use up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from outbox_saga_relay.doctor.cases import NEEDED_CONNECTIONS, DatabaseCase
from outbox_saga_relay.doctor.findings import CannotLook, Check, Found
from outbox_saga_relay.times import spoken

_LONG_LOCK_WAIT = 120  # seconds; the server's own default is 50
_SHORT_LOCK_WAIT = 2


def isolation(case: DatabaseCase) -> Iterator[Found]:
    """The service's own transactions see what is committed, and lock no gaps."""
    level = case.variable("transaction_isolation", "tx_isolation")
    if level == "READ-UNCOMMITTED":
        yield Found(
            "error",
            "the server's default isolation is READ-UNCOMMITTED: the service's own sessions act "
            "on what may be rolled back",
            "SET GLOBAL transaction_isolation = 'READ-COMMITTED'",
        )
    elif level == "SERIALIZABLE":
        yield Found(
            "warning",
            "the server's default isolation is SERIALIZABLE: the service's own sessions lock all "
            "they read",
            "SET GLOBAL transaction_isolation = 'READ-COMMITTED'",
        )
    elif level == "REPEATABLE-READ":
        yield Found(
            "info",
            "the server's default isolation is REPEATABLE-READ: locking reads of the service's "
            "own sessions lock gaps, for which others wait (our programs set READ-COMMITTED)",
            "create the service's engine with isolation_level='READ COMMITTED'",
        )


def rollback_on_timeout(case: DatabaseCase) -> Iterator[Found]:
    """After a lock wait that timed out the whole transaction is undone, not one statement."""
    if case.variable("innodb_rollback_on_timeout") in ("OFF", "0"):
        yield Found(
            "info",
            "innodb_rollback_on_timeout is off: error 1205 undoes one statement, and code that "
            "goes on after it commits the rest (units of work with messages refuse to)",
            "set innodb_rollback_on_timeout = ON",
        )


def lock_waits(case: DatabaseCase) -> Iterator[Found]:
    """Waiting for a lock ends, and not too early."""
    waits = int(case.variable("innodb_lock_wait_timeout"))
    if waits > _LONG_LOCK_WAIT or waits < _SHORT_LOCK_WAIT:
        does = (
            "two busy writers of one key are enough to make a commit fail"
            if waits < _SHORT_LOCK_WAIT
            else "a commit waits that long for another writer of its key"
        )
        yield Found(
            "warning",
            f"innodb_lock_wait_timeout is {spoken(waits)}: {does}",
            "set innodb_lock_wait_timeout to something between 5 and 50",
        )


def idle_transactions(case: DatabaseCase) -> Iterator[Found]:
    """A session that stands still in a transaction is ended."""
    if case.kind == "mysql":
        yield Found(
            "info",
            "MySQL cannot end a transaction that stands still: a process that is stopped in one "
            "holds its rows until its connection ends",
            "watch information_schema.innodb_trx",
        )
        return
    found = case.variables(
        "idle_transaction_timeout", "idle_write_transaction_timeout", scope="GLOBAL"
    )
    if not any(int(value) for value in found.values()):
        yield Found(
            "warning",
            "idle_write_transaction_timeout is not set",
            "SET GLOBAL idle_write_transaction_timeout = 60 (longer than the longest pause of "
            "your own code inside a transaction)",
        )


def connections(case: DatabaseCase) -> Iterator[Found]:
    """There is room for more connections."""
    room = int(case.variable("max_connections"))
    used = int(dict(case.rows("SHOW GLOBAL STATUS LIKE 'Threads_connected'"))["Threads_connected"])
    if used >= case.limits.full * room:
        yield Found(
            "warning",
            f"{used} of {room} connections of the server are in use",
            f"raise max_connections, or have fewer of them: {NEEDED_CONNECTIONS}",
        )


def old_transactions(case: DatabaseCase) -> Iterator[Found]:
    """Nobody holds a transaction open for long, by now or prepared."""
    # the names of XA transactions may be any bytes, so they are counted only
    if prepared := case.rows("XA RECOVER"):
        yield Found(
            "warning",
            f"{len(prepared)} XA transactions are prepared, and hold their locks",
            "XA RECOVER names them; let their coordinator finish them, or XA COMMIT / XA ROLLBACK",
        )
    for number, age in case.rows(
        """
        SELECT trx_mysql_thread_id, timestampdiff(SECOND, trx_started, now())
        FROM information_schema.innodb_trx
        WHERE trx_mysql_thread_id NOT IN (0, connection_id())
          AND trx_started <= now() - INTERVAL :long SECOND
        ORDER BY trx_started
        """,
        long=case.limits.long,
    ):
        yield Found(
            "warning",
            f"connection {number} holds a transaction open for {spoken(float(age))}",
            f"end it: KILL {number}",
        )


def proxy(case: DatabaseCase) -> Iterator[Found]:
    """Nothing stands between us and the server that hands our statements to many sessions."""
    raw: Any = case.connection.connection.dbapi_connection
    asked = getattr(raw, "thread_id", None)
    if not callable(asked):
        raise CannotLook(
            f"the driver {case.connection.dialect.driver} does not say which connection it was "
            "given",
            "use pymysql (mysql+pymysql://…)",
        )
    if asked() != case.scalar("SELECT connection_id()"):
        yield Found(
            "warning",
            "a proxy (MaxScale, ProxySQL or the like) stands between this process and the server",
            "switch read/write splitting and connection multiplexing off for our users: every "
            "statement of theirs belongs on the primary",
        )


CHECKS: Final[tuple[Check[DatabaseCase], ...]] = (
    Check(
        "mysql.isolation",
        "the server's default isolation",
        "The service's own sessions see what is not committed, or lock what others wait for.",
        ("error", "warning", "info"),
        isolation,
    ),
    Check(
        "mysql.rollback_on_timeout",
        "`innodb_rollback_on_timeout`",
        "After error 1205 half of a transaction can be committed.",
        ("info",),
        rollback_on_timeout,
    ),
    Check(
        "mysql.lock_waits",
        "`innodb_lock_wait_timeout`",
        "Writers of one key wait for each other: too long or too short, commits stand still or "
        "fail.",
        ("warning",),
        lock_waits,
    ),
    Check(
        "mysql.idle_in_transaction",
        "`idle_write_transaction_timeout`, `idle_transaction_timeout`",
        "A process that stands still in a transaction holds the locks of its keys, so their "
        "writers wait.",
        ("warning", "info"),
        idle_transactions,
    ),
    Check(
        "mysql.connections",
        "connections in use against `max_connections`",
        "A program that gets no connection stands still.",
        ("warning",),
        connections,
    ),
    Check(
        "mysql.old_transactions",
        "transactions open for longer than 5 minutes, and prepared ones",
        "They hold rows, among them the locks of keys.",
        ("warning",),
        old_transactions,
    ),
    Check(
        "mysql.proxy",
        "whether MaxScale, ProxySQL or another proxy stands in between",
        "One that splits reading from writing shows a relay old rows; one that shares sessions "
        "loses our isolation level.",
        ("warning",),
        proxy,
    ),
)
