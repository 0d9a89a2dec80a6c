"""MariaDB and MySQL: whether what was committed stays committed, and can be written at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from outbox_saga.queries.outbox import CHUNK_BYTES
from outbox_saga_relay.doctor.cases import DatabaseCase
from outbox_saga_relay.doctor.findings import Check, Found

_OLDEST = {"mariadb": (10, 6), "mysql": (8, 0, 1)}  # SKIP LOCKED
_TRIED = {"mariadb": (10, 11)}
_NAMES = {"mariadb": "MariaDB", "mysql": "MySQL"}
# Escaping may double a statement's bodies, and its keys and headers come on top of them
_PACKET = 2 * CHUNK_BYTES + 1024 * 1024


def version(case: DatabaseCase) -> Iterator[Found]:
    """The version knows our statements."""
    shown = f"{_NAMES[case.kind]} {'.'.join(map(str, case.version))}"
    if case.version < _OLDEST[case.kind]:
        yield Found(
            "error",
            f"{shown} does not know SKIP LOCKED, with which sagas are claimed",
            "upgrade to MariaDB 10.11 or MySQL 8.4, or newer",
        )
    elif case.kind not in _TRIED:
        yield Found(
            "info",
            f"{shown}: outbox-saga is tested with MariaDB, and not with MySQL",
            "try your own service's tests with it",
        )
    elif case.version < _TRIED[case.kind]:
        yield Found(
            "warning",
            f"{shown} is older than what outbox-saga is tested with",
            "upgrade to MariaDB 10.11 or newer",
        )


def writable(case: DatabaseCase) -> Iterator[Found]:
    """Transactions may write here."""
    found = case.variables("read_only", "super_read_only", scope="GLOBAL")
    if on := [name for name, value in found.items() if value not in ("OFF", "0")]:
        yield Found(
            "error",
            f"the server is read-only ({', '.join(sorted(on))}), as a replica is",
            "give the URL of the primary, or SET GLOBAL read_only = OFF",
        )
    if case.variable("transaction_read_only", "tx_read_only") == "ON":
        yield Found(
            "error",
            "transactions are read-only by default (tx_read_only)",
            "SET GLOBAL transaction_read_only = OFF (tx_read_only on older MariaDB)",
        )


def flush_at_commit(case: DatabaseCase) -> Iterator[Found]:
    """COMMIT waits for the log to be on disk."""
    found = case.variable("innodb_flush_log_at_trx_commit")
    if found not in ("1", "3"):  # MariaDB's 3 flushes at prepare, too
        lost = "a crash of the server loses" if found == "0" else "a power failure loses"
        yield Found(
            "error",
            f"innodb_flush_log_at_trx_commit is {found}: {lost} the commits of about the last "
            "second",
            "set innodb_flush_log_at_trx_commit = 1",
        )
    if case.variable("innodb_doublewrite") in ("OFF", "0"):
        yield Found(
            "warning",
            "innodb_doublewrite is off: a power failure may leave half-written pages",
            "set innodb_doublewrite = ON, unless the file system writes pages at once or not at "
            "all (as ZFS does)",
        )


def binary_log(case: DatabaseCase) -> Iterator[Found]:
    """The binary log keeps up with the commits, and takes those of our programs."""
    found = case.variables("log_bin", "sync_binlog", "binlog_format", scope="GLOBAL")
    if found.get("log_bin") not in ("ON", "1"):
        return
    if found.get("sync_binlog") == "0":
        yield Found(
            "warning",
            "sync_binlog is 0: after a power failure replicas may lack commits whose messages "
            "are already published",
            "set sync_binlog = 1",
        )
    if found.get("binlog_format") == "STATEMENT":
        yield Found(
            "error",
            "binlog_format is STATEMENT: InnoDB refuses to write at READ COMMITTED, at which our "
            "programs run (error 1665)",
            "set binlog_format = ROW (or MIXED)",
        )


def packets(case: DatabaseCase) -> Iterator[Found]:
    """A statement with many messages fits into a packet."""
    found = int(case.variable("max_allowed_packet", scope="SESSION"))
    needed = max(_PACKET, 2 * (case.limits.body + case.limits.headers) + 64 * 1024)
    if found < needed:
        yield Found(
            "error",
            f"max_allowed_packet is {found} bytes: a commit with many or large messages fails",
            f"set max_allowed_packet = {-(-needed // 1048576)}M or more",
        )


def several_writers(case: DatabaseCase) -> Iterator[Found]:
    """Positions are given by one server, which also has the locks of the keys."""
    found = case.variables("auto_increment_increment", "wsrep_on", scope="GLOBAL")
    step = int(found.get("auto_increment_increment", "1"))
    if found.get("wsrep_on") == "ON":
        yield Found(
            "warning",
            "this is a node of a Galera cluster: locks of keys hold on one node only, and "
            "positions of two nodes are out of order",
            "let everybody who publishes write to one and the same node",
        )
    elif step != 1:
        yield Found(
            "error",
            f"auto_increment_increment is {step}, as where several servers are written to: the "
            "positions of two of them are out of order, and so are messages of one key",
            "write to one server, and set auto_increment_increment = 1",
        )


def strict(case: DatabaseCase) -> Iterator[Found]:
    """What does not fit is refused, not cut."""
    modes = case.variable("sql_mode", scope="SESSION").split(",")
    if not {"STRICT_TRANS_TABLES", "STRICT_ALL_TABLES"} & set(modes):
        yield Found(
            "warning",
            "sql_mode is not strict: the server cuts values that do not fit, and says nothing",
            "add STRICT_TRANS_TABLES to sql_mode",
        )


def engines(case: DatabaseCase) -> Iterator[Found]:
    """Our tables know transactions."""
    for name, engine in case.rows(
        "SELECT table_name, engine FROM information_schema.tables "
        "WHERE table_schema = coalesce(:schema, database()) "
        "AND table_name LIKE 'outbox\\_saga\\_%' AND table_type = 'BASE TABLE' "
        "AND engine <> 'InnoDB' ORDER BY 1",
        schema=case.tables.schema,
    ):
        yield Found(
            "error",
            f"{name} is stored by {engine}, which commits every statement by itself",
            f"ALTER TABLE {name} ENGINE = InnoDB",
        )


CHECKS: Final[tuple[Check[DatabaseCase], ...]] = (
    Check(
        "mysql.version",
        "the server's version",
        "An older server does not know our statements, or nobody has tried them there.",
        ("error", "warning", "info"),
        version,
    ),
    Check(
        "mysql.writable",
        "`read_only`, `super_read_only`, `tx_read_only`",
        "Everything stands still: nothing can be published, removed or handled.",
        ("error",),
        writable,
    ),
    Check(
        "mysql.flush_at_commit",
        "`innodb_flush_log_at_trx_commit`, `innodb_doublewrite`",
        "A crash loses commits that were reported as done. Their messages may be published "
        "already, of business data that no longer exists.",
        ("error", "warning"),
        flush_at_commit,
    ),
    Check(
        "mysql.binary_log",
        "`sync_binlog`, and `binlog_format` at READ COMMITTED",
        "Replicas lack commits after a power failure; or no program of ours can write at all.",
        ("error", "warning"),
        binary_log,
    ),
    Check(
        "mysql.packets",
        "`max_allowed_packet` against what one statement of ours may hold",
        "A commit with many or large messages fails.",
        ("error",),
        packets,
    ),
    Check(
        "mysql.several_writers",
        "`auto_increment_increment`, `wsrep_on`: whether several servers are written to",
        "Their positions are out of order, and so are messages of one key.",
        ("error", "warning"),
        several_writers,
    ),
    Check(
        "mysql.strict",
        "`sql_mode`",
        "A value that does not fit is cut, and nobody is told.",
        ("warning",),
        strict,
    ),
    Check(
        "mysql.engines",
        "the storage engine of our tables",
        "What is not InnoDB commits by itself: messages of rolled-back transactions leave.",
        ("error",),
        engines,
    ),
)
