"""DELETE of what was published, COMMIT and SELECT of the next page in one round trip.

Only PostgreSQL by psycopg can do this (a pipeline); elsewhere the relay uses the statements of
`queries.relay` one by one. Rows come as the driver makes them, in binary: nothing here is in
SQLAlchemy's hands but the text of the SELECT, which is the very one of `queries.relay`.

Everything is sent by `connection.dialect.do_execute`, as SQLAlchemy sends its own statements: what
wraps that function (crash points, tracing) sees these too, COMMIT included. Inside the pipeline
"sent" means queued; the server's answers come at its end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.deadlines import transaction_limit
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.pipelines import (
    BEGIN,
    COMMIT,
    LIMITED,
    can_limit,
    milliseconds,
    told_as_sqlalchemy_does,
)
from outbox_saga.queries.relay import OutboxRow, Wanted, page_statement
from outbox_saga.tables import Tables

# Its transaction id is younger than any transaction that was open when the page before was read
_DELETE = """
WITH gone AS (
  DELETE FROM {outbox}
  WHERE position = ANY(%(positions)s::bigint[]) AND id = ANY(%(ids)s::uuid[]) {leased}
  RETURNING 1
)
SELECT pg_current_xact_id()::text::bigint, (SELECT count(*) FROM gone) {limited}
"""

# In the same statement: whoever stood still before it was passed, and changes nothing. What it
# has published its successor publishes again, under the same ids.
_LEASED = """AND partition = ANY(ARRAY(
    SELECT partition FROM {lease} WHERE owner = CAST(%(owner)s AS uuid)
    AND until > {now}))"""

# The same, and what goes is kept: one reading of the clock for all, so that within it the
# positions say what came first
_ARCHIVE = """
WITH moment AS MATERIALIZED (
  SELECT clock_timestamp() + %(shift)s::bigint * interval '1 microsecond' AS now
), gone AS (
  DELETE FROM {outbox}
  WHERE position = ANY(%(positions)s::bigint[]) AND id = ANY(%(ids)s::uuid[]) {leased}
  RETURNING id, position, partition, topic, key, headers, body, created_at
), kept AS (
  INSERT INTO {archive}
    (published_at, id, position, partition, topic, key, headers, body, created_at)
  SELECT moment.now, gone.* FROM gone CROSS JOIN moment
)
SELECT pg_current_xact_id()::text::bigint, (SELECT count(*) FROM gone) {limited}
"""

# before the page's own snapshot, so it says no more than that one would
_SNAPSHOT = "SELECT pg_current_snapshot()::text"

# after the page: only the owner itself takes such a note away, so what is not noted now was not
# when the page was read
_PUT_BACK = """
SELECT EXISTS (
  SELECT 1 FROM {lease} WHERE owner = CAST(%(owner)s AS uuid) AND revisit IS NOT NULL
)
"""


@dataclass(slots=True)
class Exchanged:
    """What one exchange gave.

    Args:
        rows: The page; bodies of more than `INLINE` bytes are None.
        transaction: The id of the transaction that removed; None when nothing was to remove.
        removed: Rows that were still there to be removed.
        oldest: The oldest transaction that was open, as of a moment before the page was read.
        in_progress: All that were, of those that are not younger than all that had ended.
        put_back: Somebody has put a row back of which the owner has not been told: the page may
            be empty for that alone, and says nothing about what there is.
    """

    rows: list[OutboxRow]
    transaction: int | None = None
    removed: int = 0
    oldest: int | None = None
    in_progress: frozenset[int] = frozenset()
    put_back: bool = False


def can_exchange(engine: sa.Engine) -> bool:
    """Whether this engine's driver and server library know pipelines."""
    if (engine.dialect.name, engine.dialect.driver) != ("postgresql", "psycopg"):
        return False
    dbapi: Any = engine.dialect.loaded_dbapi
    return bool(dbapi.Pipeline.is_supported())


def connect(engine: sa.Engine) -> sa.Connection:
    """A connection for `exchange`, to be kept between pages; it holds no transaction meanwhile."""
    connection = engine.connect()
    try:
        return connection.execution_options(isolation_level="AUTOCOMMIT")
    except BaseException:
        connection.close()
        raise


def exchange(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    published: Sequence[OutboxRow],
    wanted: Wanted,
    *,
    archive: bool = False,
    limit: float | None = None,
    lease: float | None = None,
    sent: Callable[[], None] | None = None,
) -> Exchanged:
    """Removes these rows, by position AND id, commits, and reads the next page as `read_page`.

    Only rows of partitions whose leases `wanted.owner` holds are removed, unless it is None.

    Args:
        connection: Made by `connect`. After an error nothing is known about it: invalidate it.
        archive: What is removed is kept in the archive, by the same statement.
        limit: Seconds, the deadline of what removes, where the session has none (a pooler's).
        lease: Seconds after which the server ends what removes, if its COMMIT has not come; since
            PostgreSQL 17. None: never.
        sent: Called when the server has all of it, before its answer is waited for.

    Raises:
        DBAPIError: As SQLAlchemy raises it; whether the rows were removed is then unknown, and
            they may be published again.
    """
    raw: Any = connection.connection.driver_connection
    send: Any = connection.dialect.do_execute
    shape = (
        tuple(wanted.partitions),
        bool(wanted.known),
        bool(wanted.held),
        wanted.look_for_blocked,
        wanted.due is not None,
        wanted.none_if_put_back,
        wanted.owner,
        bool(wanted.unless_ended),
    )
    statement, values = _page_sql(connection.dialect, tables, clock, *shape)
    values = {**values, "above": wanted.above, "limit": wanted.limit}
    if wanted.unless_ended:
        values["open"] = "{" + ",".join(map(str, wanted.unless_ended)) + "}"
        values["floors"] = "{" + ",".join(map(str, wanted.unless_ended.values())) + "}"
    if wanted.known:
        values["known"] = "{" + ",".join(map(str, wanted.known)) + "}"
    if wanted.held:
        values["held"] = list(wanted.held)
    if wanted.look_for_blocked and wanted.due is not None:
        values["due"] = "{" + ",".join(map(str, wanted.due)) + "}"
    asks = bool(wanted.limit and wanted.none_if_put_back and wanted.owner is not None)
    found = Exchanged([])
    with (
        told_as_sqlalchemy_does(connection, raw),
        raw.cursor(binary=True) as page,
        raw.cursor() as beginning,
        raw.cursor() as writing,
        raw.cursor() as snapshot,
        raw.cursor() as put_back,
    ):
        page.row_factory = _row_factory
        with raw.pipeline():
            if published:
                send(beginning, BEGIN, None)
                if limit is not None:
                    send(beginning, transaction_limit(limit), None)
                if lease is not None and not can_limit(connection.dialect):
                    lease = None
                leased, limited = wanted.owner is not None, lease is not None
                delete = _delete_sql(connection.dialect, tables, clock, archive, leased, limited)
                send(writing, delete, _done(published, clock, wanted.owner, lease))
                send(beginning, COMMIT, None)
            if wanted.limit:
                send(snapshot, _SNAPSHOT, None)
                send(page, statement, values)
            if asks:
                send(
                    put_back,
                    _put_back_sql(connection.dialect, tables),
                    {"owner": str(wanted.owner)},
                )
            if sent is not None:
                raw.pgconn.send_flush_request()  # else the end of the answer would wait for us
                raw.pgconn.flush()
                sent()
        if published:
            found.transaction, found.removed = writing.fetchone()[:2]
        if wanted.limit:
            oldest, _, in_progress = snapshot.fetchone()[0].split(":")
            found.oldest = int(oldest)
            found.in_progress = frozenset(map(int, in_progress.split(",") if in_progress else ()))
            found.rows = page.fetchall()
        if asks:
            (found.put_back,) = put_back.fetchone()
        return found


def _done(
    published: Sequence[OutboxRow], clock: Clock, owner: UUID | None, lease: float | None
) -> dict[str, str]:
    # as text: two lists of 500 cost the driver more than the rest of the statement
    return {
        "positions": "{" + ",".join([str(row.position) for row in published]) + "}",
        "ids": "{" + ",".join([row.id.hex for row in published]) + "}",
        "shift": str(clock.microseconds()),
        "owner": str(owner),
        "milliseconds": milliseconds(lease or 0.0),
    }


_new_row = functools.partial(tuple.__new__, OutboxRow)  # `_make`, without a frame for each row


def _row_factory(cursor: Any) -> Any:  # noqa: ARG001 - the driver's signature
    return _new_row


@functools.lru_cache(maxsize=64)
def _page_sql(
    dialect: sa.Dialect,
    tables: Tables,
    clock: Clock,
    partitions: tuple[int, ...],
    knows: bool,  # noqa: FBT001 - lru_cache keys by position
    holds: bool,  # noqa: FBT001
    look_for_blocked: bool,  # noqa: FBT001
    knows_due: bool,  # noqa: FBT001
    none_if_put_back: bool,  # noqa: FBT001
    owner: UUID | None,
    unless_ended: bool,  # noqa: FBT001
) -> tuple[str, dict[str, Any]]:
    """The SELECT in the driver's own words; compiled once for each shape of a page."""
    shape = Wanted(
        partitions,
        0,
        owner,
        known=(0,) if knows else (),
        held=("",) if holds else (),
        look_for_blocked=look_for_blocked,
        due=(0,) if knows_due else None,
        none_if_put_back=none_if_put_back,
        unless_ended={0: 0} if unless_ended else {},
    )
    statement = page_statement(tables, clock, shape, arrays=True)
    compiled = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    return str(compiled), dict(compiled.params)


@functools.lru_cache(maxsize=64)
def _delete_sql(
    dialect: sa.Dialect,
    tables: Tables,
    clock: Clock,
    archive: bool,  # noqa: FBT001 - lru_cache keys by position
    leased: bool,  # noqa: FBT001
    limited: bool,  # noqa: FBT001
) -> str:
    named = dialect.identifier_preparer.format_table
    now = clock.now().compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    return (_ARCHIVE if archive else _DELETE).format(
        outbox=named(tables.outbox),
        archive=named(tables.archive),
        leased=_LEASED.format(lease=named(tables.partition_lease), now=now) if leased else "",
        limited=LIMITED if limited else "",
    )


@functools.lru_cache(maxsize=64)
def _put_back_sql(dialect: sa.Dialect, tables: Tables) -> str:
    return _PUT_BACK.format(lease=dialect.identifier_preparer.format_table(tables.partition_lease))
