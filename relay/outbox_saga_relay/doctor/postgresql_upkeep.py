"""PostgreSQL: what keeps the tables small and the order right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa

from outbox_saga_relay.doctor.cases import DatabaseCase
from outbox_saga_relay.doctor.findings import CannotLook, Check, Found, Level
from outbox_saga_relay.times import spoken

_QUEUE_NEARLY_FULL = 0.5  # from here on it is a matter of minutes


def _ours(case: DatabaseCase) -> dict[str, int]:
    """The oids of our tables that are there, by name."""
    preparer = case.connection.dialect.identifier_preparer
    found = {}
    for table in case.tables.metadata.sorted_tables:
        oid = case.scalar(
            "SELECT CAST(to_regclass(:name) AS oid)", name=preparer.format_table(table)
        )
        if oid is not None:
            found[table.name] = int(oid)
    return found


def positions(case: DatabaseCase) -> Iterator[Found]:
    """Positions are given in the order in which they are asked for."""
    for table, oid in _ours(case).items():
        for cache, increment, cycles in case.rows(
            """
            SELECT q.seqcache, q.seqincrement, q.seqcycle FROM pg_sequence q
            JOIN pg_depend d ON d.objid = q.seqrelid AND d.classid = CAST('pg_class' AS regclass)
            WHERE d.refobjid = :oid AND d.deptype IN ('i', 'a')
            """,
            oid=oid,
        ):
            wrong = [f"CACHE {cache}"] if cache != 1 else []
            wrong += [f"INCREMENT BY {increment}"] if increment != 1 else []
            wrong += ["CYCLE"] if cycles else []
            if wrong:
                yield Found(
                    "error",
                    f"the positions of {table} are numbered with {', '.join(wrong)}",
                    f"ALTER TABLE {table} ALTER COLUMN position SET CACHE 1 SET INCREMENT BY 1 "
                    "SET NO CYCLE",
                )


def autovacuum(case: DatabaseCase) -> Iterator[Found]:
    """Removed rows are cleaned away."""
    for name in ("autovacuum", "track_counts"):
        if case.setting(name) == "off":
            yield Found(
                "warning",
                f"{name} is off on this server",
                f"set {name} = on, or vacuum outbox_saga_outbox every minute yourself",
            )
    ours = _ours(case)
    for name, options in case.rows(
        "SELECT relname, reloptions FROM pg_class WHERE oid = ANY(:oids) AND reloptions IS NOT "
        "NULL",
        oids=list(ours.values()),
    ):
        switched = [o for o in options if o.startswith("autovacuum_enabled=")]
        if any(o.partition("=")[2].lower() in ("false", "off", "no", "0") for o in switched):
            yield Found(
                "warning",
                f"autovacuum is off for {name}",
                f"ALTER TABLE {name} RESET (autovacuum_enabled)",
            )


def old_transactions(case: DatabaseCase) -> Iterator[Found]:
    """Nobody holds a transaction open for long, by now or prepared."""
    for pid, database, user, state, age in case.rows(
        """
        SELECT pid, datname, usename, state,
          extract(epoch FROM clock_timestamp() - xact_start)
        FROM pg_stat_activity
        WHERE pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender')
          AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
          AND xact_start <= clock_timestamp() - make_interval(secs => :long)
        ORDER BY xact_start
        """,
        long=case.limits.long,
    ):
        yield Found(
            "warning",
            f"pid {pid} ({user} in {database}, {state}) holds a transaction open for "
            f"{spoken(float(age))}",
            f"end it: SELECT pg_terminate_backend({pid})",
        )
    for gid, database, age in case.rows(
        """
        SELECT gid, database, extract(epoch FROM clock_timestamp() - prepared)
        FROM pg_prepared_xacts WHERE prepared <= clock_timestamp() - make_interval(secs => :long)
        ORDER BY prepared
        """,
        long=case.limits.long,
    ):
        yield Found(
            "warning",
            f"the prepared transaction {gid!r} in {database} is {spoken(float(age))} old, and "
            "holds its locks",
            "let its coordinator finish it, or COMMIT PREPARED / ROLLBACK PREPARED it",
        )
    hidden = case.scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE query = '<insufficient privilege>'"
    )
    if hidden:
        raise CannotLook(
            f"this user may not see the transactions of {hidden} other sessions",
            "GRANT pg_read_all_stats to it, or run doctor as a user that has it",
        )


def replication_slots(case: DatabaseCase) -> Iterator[Found]:
    """No replication slot keeps the log, or dead rows, for somebody who does not come."""
    for name, active, age in case.rows(
        "SELECT slot_name, active, age(xmin) FROM pg_replication_slots ORDER BY 1"
    ):
        if not active:
            yield Found(
                "warning",
                f"nobody uses the replication slot {name}: the server keeps the log for it until "
                "the disk is full",
                f"connect its reader, or SELECT pg_drop_replication_slot('{name}')",
            )
        elif age is not None and age >= case.limits.xids:
            yield Found(
                "warning",
                f"the replication slot {name} holds back vacuum by {age} transactions",
                "find the long query on its standby, or switch hot_standby_feedback off there",
            )


def notification_queue(case: DatabaseCase) -> Iterator[Found]:
    """The queue of notifications is drained."""
    used = case.connection.execute(sa.select(sa.func.pg_notification_queue_usage())).scalar_one()
    if used >= min(case.limits.notify, _QUEUE_NEARLY_FULL):
        level: Level = "error" if used >= _QUEUE_NEARLY_FULL else "warning"
        yield Found(
            level,
            f"the queue of notifications is {used:.0%} full; when it is full, COMMITs that notify "
            "fail",
            "end the listener that stands in a transaction (the server's log names its pid)",
        )


CHECKS: Final[tuple[Check[DatabaseCase], ...]] = (
    Check(
        "postgresql.positions",
        "the sequences behind our positions: CACHE, INCREMENT, CYCLE",
        "Positions come in another order than they were asked for, and so do messages of one key.",
        ("error",),
        positions,
    ),
    Check(
        "postgresql.autovacuum",
        "`autovacuum`, `track_counts`, and our tables' own setting",
        "What was published is removed, and never cleaned away: each look takes longer than the "
        "one before.",
        ("warning",),
        autovacuum,
    ),
    Check(
        "postgresql.old_transactions",
        "transactions open for longer than 5 minutes, in any database, and prepared ones",
        "They hold back vacuum everywhere and may hold the locks of keys.",
        ("warning",),
        old_transactions,
    ),
    Check(
        "postgresql.replication_slots",
        "replication slots that nobody uses, or that lie far behind",
        "They keep the log until the disk is full, or hold back vacuum.",
        ("warning",),
        replication_slots,
    ),
    Check(
        "postgresql.notification_queue",
        "`pg_notification_queue_usage()`",
        "When the queue is full, COMMITs that notify fail.",
        ("error", "warning"),
        notification_queue,
    ),
)
