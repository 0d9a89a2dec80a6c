"""What each statement of the plays can see, change and hold up: where there are cuts, and which
schedules come to the same.

In words of the explorer (`outbox_saga.testing.choices`), for PostgreSQL at READ COMMITTED:

* a plain read sees what was committed of its tables when the statement begins;
* what changes or locks rows holds up others that do, until the end of its transaction, and is
  seen by plain reads from the commit on;
* the first change of a transaction takes a transaction id, an insert into the outbox positions and
  the locks of its keys; `pg_snapshot_xmin` tells which transactions have ended;
* of two commits that nobody looks between the order is not seen, unless they are of one key.

A statement is one step; what happens inside one (an id is taken before a position, a position
before the next) cannot be cut here. `tests/relay/test_mark` has a model in which it is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping

from outbox_saga.testing.interleaving import Point, Reach

_NOTHING = Reach()
_TABLE = re.compile(r"outbox_saga_([a-z_]+)")
_CHANGED = re.compile(r"(?:INSERT INTO|UPDATE|DELETE FROM)\s+outbox_saga_([a-z_]+)")
_TABLES = (
    "outbox", "delayed", "blocked_key", "dead_letter", "archive", "partition_lease", "process",
    "operator_action",
)  # fmt: skip
TAKEN = "transaction ids and positions that were taken"
BROKER = "the broker"


class Reaches:
    """Asked at every point of a run, in order; `begin` before each run."""

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
            # a clock is read by whatever statement comes next, before its own cut
            return Reach(changes=frozenset({BROKER})) if point.statement == "send" else None
        statement = " ".join(point.statement.split())
        if point.kind == "commit" or statement == "COMMIT":
            return self._ends(point.actor, committed=True)
        if point.kind == "rollback":
            return self._ends(point.actor, committed=False)
        return self._statement(point.actor, statement)

    def _statement(self, actor: str, statement: str) -> Reach:
        if "pg_snapshot_xm" in statement:
            return Reach(reads=self._of_all("transactions that have ended"))
        names = set(_TABLE.findall(statement)).intersection(_TABLES)
        changed = set(_CHANGED.findall(statement)).intersection(_TABLES)
        locked: set[str] = set()
        if changed or "FOR UPDATE" in statement:
            locked = {f"rows of {name}" for name in (changed or names)}
        changes: set[str] = set()
        if changed and not self._changed[actor]:
            changes.add(TAKEN)
        self._changed[actor] |= changed
        if statement.startswith("INSERT INTO outbox_saga_outbox"):
            changes.add(TAKEN)
            if "OVERRIDING" not in statement:  # new rows, at places that nobody else can name
                locked = {f"lock of {key}" for key in self._keys[actor]}
        elif statement.startswith("WITH gone"):
            names = set()  # rows it has read before, by position and id: others come or do not
        self._locked[actor] |= locked
        seen = [self._of_all(name) for name in names]
        return Reach(frozenset().union(*seen), frozenset(changes | locked))

    def _ends(self, actor: str, *, committed: bool) -> Reach:
        changed, locked = self._changed.pop(actor, set()), self._locked.pop(actor, set())
        if not changed and not locked:
            return _NOTHING
        ended = {"transactions that have ended"} if changed else set()
        told = {f"{name} by {actor}" for name in ended | (changed if committed else set())}
        return Reach(changes=frozenset(told | locked))

    def _of_all(self, name: str) -> frozenset[str]:
        return frozenset(f"{name} by {actor}" for actor in self._keys)
