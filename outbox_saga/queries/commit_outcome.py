"""What became of a transaction whose COMMIT was never answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.queries.dialects import family
from outbox_saga.tables import Tables

Outcome = Literal["committed", "rolled back", "in progress", "unknown"]
_STATUS: dict[str | None, Outcome] = {
    "committed": "committed",
    "aborted": "rolled back",
    "in progress": "in progress",
    None: "unknown",  # so long ago that the server has forgotten it
}
ASKED = 500  # ids a statement

# pg_xact_status refuses numbers that were not given out yet. One beyond the snapshot was: on this
# timeline the server itself told it; no transaction with it, or a later one, had ended by then.
# A crash starts the server's statistics anew
_ASK = sa.text("""
SELECT CASE WHEN asked.number < pg_snapshot_xmax(pg_current_snapshot())
            THEN pg_xact_status(asked.number) ELSE 'not ended' END AS status,
  left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline,
  COALESCE(pg_stat_get_bgwriter_stat_reset_time() < to_timestamp(:written), false) AS no_crash
FROM (SELECT CAST(CAST(:number AS text) AS xid8) AS number) AS asked
""")
_GIVEN_OUT_AGAIN = sa.text(
    "SELECT pg_current_xact_id() <= CAST(CAST(:number AS text) AS xid8) AS again"
)


def outcome_of(
    connection: sa.Connection, tables: Tables, ids: Sequence[UUID], transaction: str | None
) -> Outcome:
    """What the database says of it now.

    PostgreSQL remembers what became of a transaction by its id, on one timeline. Otherwise only
    its messages tell: where one is, it has committed; where none is, it has not, or they have left
    already.

    Args:
        transaction: Its id, its timeline and its moment, as the statement that wrote its messages
            told.
    """
    if transaction is not None and family(connection) == "postgresql":
        found = _remembered(connection, *(*transaction.split(" "), "", "")[:3])
        if found is not None:
            return found
    for start in range(0, len(ids), ASKED):
        some = ids[start : start + ASKED]
        for table in (tables.outbox, tables.delayed, tables.dead_letter, tables.archive):
            asked = sa.select(sa.literal(1)).where(table.c.id.in_(some)).limit(1)
            if connection.execute(asked).first() is not None:
                return "committed"
    return "unknown"


def _remembered(
    connection: sa.Connection, number: str, timeline: str, written: str
) -> Outcome | None:
    """What PostgreSQL remembers of a transaction; None when that may be another one's.

    A standby that is promoted numbers its transactions anew. So does a server that crashes: it
    gives out again the ids of those of which nothing had come to its log by then. They are rolled
    back, and whoever got such an id next may have committed.
    """
    asked = {"number": number, "written": float(written or 0)}
    known = connection.execute(_ASK, asked).one()
    if known.timeline != timeline:
        return None
    if known.status == "not ended":
        again = connection.execute(_GIVEN_OUT_AGAIN, asked).scalar_one()
        return "rolled back" if again else "in progress"
    found = _STATUS[known.status]
    return None if found == "committed" and not known.no_crash else found
