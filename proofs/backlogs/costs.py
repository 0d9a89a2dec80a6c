"""What draining costs the server, for each event: log, commits, and rows that become dead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from proofs.backlogs.filling import Place

# A backend tells of what it did when it has been idle for a while, or when it ends; ours tells
# before it asks.
_NOW = """
SELECT pg_current_wal_lsn() - '0/0'::pg_lsn AS wal,
       (SELECT wal_fpi FROM pg_stat_wal) AS images,
       (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()) AS commits,
       sum(n_tup_upd + n_tup_del)::bigint AS dead, sum(n_dead_tup)::bigint AS left_dead
FROM pg_stat_user_tables
"""


@dataclass(slots=True)
class Costs:
    """Of one run, of all tables together.

    Attributes:
        wal: Bytes of log.
        images: Whole pages in it: of each page the first time after a checkpoint that it changes.
        commits: Transactions, readers' too.
        dead: Row versions that were deleted or replaced.
        left_dead: Dead rows that had not been vacuumed when the run was over, as the server
            estimates it.
    """

    wal: int = 0
    images: int = 0
    commits: int = 0
    dead: int = 0
    left_dead: int = 0

    def of_each(self, events: int, *, tuples: bool = True) -> dict[str, float]:
        """For one event."""
        told = {
            "WAL bytes": round(self.wal / events, 1),
            "full page images": round(self.images / events, 4),
            "commits": round(self.commits / events, 5),
        }
        if not tuples:
            return told
        return {
            **told,
            "dead tuples": round(self.dead / events, 4),
            "dead tuples left": round(self.left_dead / events, 4),
        }


@contextmanager
def counted(place: Place, found: Costs | None = None) -> Iterator[Costs]:
    """What the server did while the block ran; whoever worked in it must be gone at its end."""
    found = found or Costs()
    with place.connect() as connection:
        before = _now(connection)
        yield found
        after = _now(connection)
    found.wal, found.images, found.commits, found.dead = (
        int(b) - int(a) for a, b in zip(before[:4], after[:4], strict=True)
    )
    found.left_dead = int(after[4])


def _now(connection: psycopg.Connection) -> tuple[int, ...]:
    connection.execute("SELECT pg_stat_force_next_flush()")
    connection.execute("SELECT pg_stat_clear_snapshot()")
    row = connection.execute(_NOW.encode()).fetchone()
    assert row is not None
    return row
