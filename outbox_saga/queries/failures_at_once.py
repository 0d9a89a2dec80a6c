"""Failures that get another attempt, stored in one round trip.

Only PostgreSQL by psycopg can do this, as `queries.exchange`; elsewhere, and for what is to be a
dead letter, there are the statements of `queries.failures`, which say what this one does. It is
sent as `exchange` sends its own: by the dialect's `do_execute`, COMMIT included.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.deadlines import transaction_limit
from outbox_saga.payloads import storable
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.failures import MAX_ERROR
from outbox_saga.queries.pipelines import (
    BEGIN,
    COMMIT,
    LIMITED,
    can_limit,
    milliseconds,
    told_as_sqlalchemy_does,
)
from outbox_saga.queries.relay import Failed
from outbox_saga.tables import Tables

# The leases are locked before anything else is looked at, and as their rows are by then. While we
# hold them nobody else blocks our keys; an operator may have freed one, so there may be no row.
_STORE = """
WITH failed AS MATERIALIZED (
  SELECT * FROM json_to_recordset(CAST(%(failures)s AS json)) AS failed
    (partition smallint, key text, position bigint, id uuid, attempts int, wait bigint,
     error_code text, error text)
), mine AS MATERIALIZED (
  SELECT lease.partition FROM {lease} AS lease
  JOIN json_each_text(CAST(%(epochs)s AS json)) AS epochs(partition, epoch)
    ON lease.partition = CAST(epochs.partition AS smallint)
    AND lease.epoch = CAST(epochs.epoch AS bigint)
  WHERE lease.owner = CAST(%(owner)s AS uuid) AND lease.until > {now}
  ORDER BY lease.partition
  FOR UPDATE OF lease
), held AS MATERIALIZED (
  SELECT count(*) = CAST(%(partitions)s AS int) AS all FROM mine
), there AS MATERIALIZED (
  SELECT outbox.position, outbox.id FROM {outbox} AS outbox
  WHERE (SELECT held.all FROM held)
    AND outbox.position = ANY(ARRAY(SELECT position FROM failed))
    AND (outbox.position, outbox.id) IN (SELECT position, id FROM failed)
  ORDER BY outbox.position
  FOR UPDATE OF outbox
), stored AS (
  INSERT INTO {blocked_key} AS waits
    (partition, key, position, until, attempts, error_code, error)
  SELECT failed.partition, failed.key, failed.position,
    {now} + failed.wait * interval '1 microsecond',
    failed.attempts, failed.error_code, failed.error
  FROM failed JOIN there USING (position, id)
  ON CONFLICT (partition, key, position) DO UPDATE SET
    until = excluded.until, attempts = excluded.attempts,
    error_code = excluded.error_code, error = excluded.error
  RETURNING waits.position
)
SELECT (SELECT held.all FROM held), ARRAY(SELECT position FROM stored) {limited}
"""


def store_retries(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    failures: Sequence[tuple[Failed, int]],
    *,
    owner: UUID,
    epochs: Mapping[int, int],
    limit: float | None = None,
    lease: float,
) -> list[Failed] | None:
    """As `failures.store_failures`: those that were stored. None: the leases are not all held.

    Then nothing was written. It is a transaction of its own, and committed.

    Args:
        connection: Made by `exchange.connect`. After an error nothing is known about it:
            invalidate it.
        failures: Each with a delay, and the number of its failed attempts.
        epochs: Of all partitions that the failures are of.
        limit: Seconds, the deadline, where the session has none (a pooler's).
        lease: Seconds after which the server ends it, if its COMMIT has not come; since
            PostgreSQL 17.

    Raises:
        DBAPIError: As SQLAlchemy raises it; whether they were stored is then unknown, and the
            attempts may be counted once too little.
    """
    raw: Any = connection.connection.driver_connection
    send: Any = connection.dialect.do_execute
    limited = can_limit(connection.dialect)
    values = {
        "failures": json.dumps([_told(failed, n) for failed, n in failures]),
        "epochs": json.dumps(dict(epochs)),
        "partitions": str(len(epochs)),
        "owner": str(owner),
        "milliseconds": milliseconds(lease),
    }
    with (
        told_as_sqlalchemy_does(connection, raw),
        raw.cursor() as around,
        raw.cursor() as storing,
    ):
        with raw.pipeline():
            send(around, BEGIN, None)
            if limit is not None:
                send(around, transaction_limit(limit), None)
            send(storing, _store_sql(connection.dialect, tables, clock, limited), values)
            send(around, COMMIT, None)
        held, positions = storing.fetchone()[:2]
    stored = frozenset(positions)
    return [failed for failed, _ in failures if failed.row.position in stored] if held else None


def _told(failed: Failed, attempts: int) -> dict[str, Any]:
    assert failed.delay is not None
    row = failed.row
    return {
        "partition": row.partition,
        "key": row.key or "",
        "position": row.position,
        "id": row.id.hex,
        "attempts": attempts,
        "wait": round(failed.delay * 1_000_000),
        "error_code": failed.code,
        "error": storable(failed.error, MAX_ERROR),
    }


@functools.lru_cache(maxsize=64)
def _store_sql(
    dialect: sa.Dialect,
    tables: Tables,
    clock: Clock,
    limited: bool,  # noqa: FBT001 - lru_cache keys by position
) -> str:
    named = dialect.identifier_preparer.format_table
    now = clock.now().compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    return _STORE.format(
        lease=named(tables.partition_lease),
        outbox=named(tables.outbox),
        blocked_key=named(tables.blocked_key),
        now=now,
        limited=LIMITED if limited else "",
    )
