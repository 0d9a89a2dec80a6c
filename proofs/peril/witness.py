"""Triggers that write down what relays change, and whether they held the lease as they did.

I6: who holds no lease changes nothing. A row that is removed, blocked or buried has a partition;
whoever does it must own that one, and the lease must last, as the statement runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.testing.invariants import Violation

_TABLES = ("outbox", "blocked_key", "dead_letter", "archive")
_MAKE = (
    """
CREATE TABLE witness (
  number bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL, who text NOT NULL,
  what text NOT NULL, owner uuid, lasts boolean
)
""",
    """
CREATE TABLE witness_owner (who text NOT NULL, owner uuid NOT NULL, PRIMARY KEY (who, owner))
""",
    """
CREATE FUNCTION witness_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  me text := current_setting('application_name'); its smallint;
BEGIN
  IF NOT starts_with(me, 'relay') THEN RETURN NULL; END IF;
  IF TG_OP = 'DELETE' THEN its := OLD.partition; ELSE its := NEW.partition; END IF;
  INSERT INTO witness (at, who, what, owner, lasts)
    SELECT clock_timestamp(), me, TG_OP || ' ' || TG_TABLE_NAME, lease.owner,
           lease.until > clock_timestamp()
    FROM outbox_saga_partition_lease lease WHERE lease.partition = its;
  RETURN NULL;
END $$
""",
    """
CREATE FUNCTION witness_lease() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO witness_owner VALUES (current_setting('application_name'), NEW.owner)
    ON CONFLICT DO NOTHING;
  RETURN NULL;
END $$
""",
    """
CREATE TRIGGER witness AFTER UPDATE ON outbox_saga_partition_lease FOR EACH ROW
  WHEN (NEW.owner IS NOT NULL AND NEW.epoch <> OLD.epoch) EXECUTE FUNCTION witness_lease()
""",
)
_WATCH = """
CREATE TRIGGER witness AFTER INSERT OR UPDATE OR DELETE ON outbox_saga_{table}
  FOR EACH ROW EXECUTE FUNCTION witness_change()
"""
_STALE = """
SELECT w.who, w.what, w.at, w.owner, w.lasts FROM witness w
WHERE NOT coalesce(w.lasts, false) OR NOT EXISTS (
  SELECT 1 FROM witness_owner o WHERE o.who = w.who AND o.owner = w.owner
)
ORDER BY w.number
"""


@dataclass(frozen=True)
class Witness:
    """What relays whose sessions are called `relay…` do to this database (PostgreSQL)."""

    database: Database

    def begin(self) -> None:
        """From now on."""
        with self.database.begin() as connection:
            for statement in _MAKE:
                connection.exec_driver_sql(statement)
            for table in _TABLES:
                connection.exec_driver_sql(_WATCH.format(table=table))

    @property
    def changes(self) -> int:
        """How many it has seen."""
        with self.database.engine.connect() as connection:
            return int(connection.execute(sa.text("SELECT count(*) FROM witness")).scalar_one())

    def changes_of(self, who: str) -> int:
        """How many of this one."""
        asked = sa.text("SELECT count(*) FROM witness WHERE who = :who")
        with self.database.engine.connect() as connection:
            return int(connection.execute(asked, {"who": who}).scalar_one())

    def stale(self) -> list[Violation]:
        """Changes by whoever did not hold the lease."""
        with self.database.engine.connect() as connection:
            found = connection.execute(sa.text(_STALE)).all()
        return [
            Violation("I6", f"{row.who}, {row.at:%H:%M:%S.%f}", f"{row.what} without the lease")
            for row in found
        ]
