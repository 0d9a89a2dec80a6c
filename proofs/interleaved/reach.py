"""What each statement of the plays can see, change and hold up: where there are cuts, and which
schedules come to the same.

In words of the explorer (`outbox_saga.testing.choices`), for PostgreSQL at READ COMMITTED:

* a plain read sees what was committed of its tables when the statement begins;
* what changes or locks rows holds up others that do, and sees them, until the end of its
  transaction; what it changed is seen by plain reads from the commit on. Which rows of a table is
  not told apart, but for new rows of the outbox: they are at places that nobody else can name, so
  they are in the way of plain reads only, and of writers of the same keys;
* the first lock or change of a transaction takes its id. Ids are compared with one thing only, the
  ids of the relays' own DELETEs (`outbox_saga_relay.mark`): two others may come in either order;
* `pg_current_snapshot` tells which transactions have ended, and so does a page that asks it; that
  one has begun is told only to who compares its id;
* of two commits that nobody looks between the order is not seen, unless they are of one key;
* the plays' clock is a row (`interleaved.clock`), and whoever reads it says so.

What is written down for people and decides nothing (the moment of a letter's death, of an
operator's action, how old the oldest message is) counts as not read.

A statement is one step; what happens inside one (an id is taken before a position, a position
before the next) cannot be cut here. `tests/relay/test_mark` has a model in which it is.

None of these claims is taken on trust: `tests/relay/test_reach.py` tries small plays in every
order there is, and they come to nothing that the few tried by these words do not come to.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping

from outbox_saga.queries.outbox import lock_number
from outbox_saga.testing.interleaving import Point, Reach
from proofs.interleaved import clock

_NOTHING = Reach()
_TABLE = re.compile(r"outbox_saga_([a-z_]+)")
_CHANGED = re.compile(r"(?:INSERT INTO|UPDATE|DELETE FROM)\s+outbox_saga_([a-z_]+)")
_NEW_ROWS = "INSERT INTO outbox_saga_outbox"
_OLD_PLACE = "OVERRIDING"  # a row that is put back is one that others may know
_RELAYS_DELETE = "WITH gone AS"
_SNAPSHOT = "SELECT pg_current_snapshot"
_SEES_WHO_ENDED = "pg_visible_in_snapshot"
_OLDEST = "SELECT outbox_saga_outbox.created_at"  # its age is told to people
_NOTES = ("INSERT INTO outbox_saga_operator_action", "INSERT INTO outbox_saga_dead_letter")
_TABLES = (
    "outbox", "delayed", "blocked_key", "dead_letter", "archive", "partition_lease", "process",
    "operator_action",
)  # fmt: skip
ENDED = "transactions that have ended"
IDS = "transaction ids, compared with those of relays' DELETEs"
POSITIONS = "positions"
BROKER = "the broker"
CLOCK = "the clock"


class Reaches:
    """Asked at every point of a run, in order; `begin` before each run."""

    tables: Collection[str] = _TABLES  # those that actors tell each other things by

    def __init__(self) -> None:
        self.begin({})

    def begin(self, keys: Mapping[str, Collection[str]]) -> None:
        """A run of these actors begins, who write these keys; nobody is in a transaction."""
        self._keys = keys
        self._changed: defaultdict[str, set[str]] = defaultdict(set)  # since the last commit
        self._locked: defaultdict[str, set[str]] = defaultdict(set)

    def __call__(self, point: Point) -> Reach | None:
        """What this step reaches; None: anything."""
        if point.kind == "effect":
            assert point.statement == "send", f"what does {point} reach?"
            return Reach(changes=frozenset({BROKER}), frees=False)
        statement = " ".join(point.statement.split())
        if point.kind == "commit" or statement == "COMMIT":
            return self._ends(point.actor, committed=True)
        if point.kind == "rollback" or statement == "ROLLBACK":
            return self._ends(point.actor, committed=False)
        if statement.startswith(f"UPDATE {clock.TABLE}"):
            return Reach(changes=frozenset({CLOCK}), frees=False)
        if "pg_snapshot_xm" in statement or statement.startswith(_SNAPSHOT):
            return Reach(reads=self._of_all(ENDED), frees=False)
        if statement.startswith(_OLDEST):
            return _NOTHING
        return self._statement(point.actor, statement)

    def _statement(self, actor: str, statement: str) -> Reach:
        names = set(_TABLE.findall(statement)).intersection(self.tables)
        changed = set(_CHANGED.findall(statement)).intersection(self.tables)
        reads: set[str] = set()
        changes: set[str] = set()
        if changed or "FOR UPDATE" in statement:
            locked = {f"rows of {name}" for name in (changed or names)}
            if not self._locked[actor]:
                (changes if statement.startswith(_RELAYS_DELETE) else reads).add(IDS)
            if _NEW_ROWS in statement and _OLD_PLACE not in statement:
                changes.add(POSITIONS)
                locked.remove("rows of outbox")
                locked |= {f"lock {lock_number(key)}" for key in self._keys[actor]}
                locked.add(f"rows that {actor} adds")
            names.discard("outbox")  # new rows, or some it has read before: others do not matter
            self._changed[actor] |= changed
            self._locked[actor] |= locked
            changes |= locked
        if clock.TABLE in statement and not statement.startswith(_NOTES):
            reads.add(CLOCK)
        if _SEES_WHO_ENDED in statement:
            reads |= self._of_all(ENDED)
        reads = reads.union(*(self._of_all(name) for name in names))
        return Reach(frozenset(reads), frozenset(changes), frees=False)

    def _ends(self, actor: str, *, committed: bool) -> Reach:
        changed, locked = self._changed.pop(actor, set()), self._locked.pop(actor, set())
        if not locked:
            return _NOTHING
        told = {f"{name} by {actor}" for name in {ENDED} | (changed if committed else set())}
        return Reach(changes=frozenset(told | locked))

    def _of_all(self, name: str) -> frozenset[str]:
        return frozenset(f"{name} by {actor}" for actor in self._keys)
