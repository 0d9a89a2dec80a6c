"""One step forward of a saga instance: compare-and-set and its history.

On PostgreSQL both are one statement, sent as the outbox's INSERT is: a round trip less for each
step, and neither SQLAlchemy nor the driver's cursor has anything to do. Elsewhere they are two.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import sqlalchemy as sa

from outbox_saga.instances import ENDED, Entry, Instance, SagaState, dump_data, dump_progress
from outbox_saga.queries import sagas
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import family
from outbox_saga.queries.driver import ask
from outbox_saga.queries.outbox import is_psycopg, marks
from outbox_saga.queries.prepared import Twin, twin_of
from outbox_saga.tables import Tables

_Ending = Literal["now", "never", "as it was"]

_NOW = "clock_timestamp() + {shift} * interval '1 microsecond'"

_MOVE = """
UPDATE {saga} SET
  state = {state}, revision = {revision}, data = {data}, progress = {progress},
  reason = {reason}, due_at = {due}, updated_at = {now}{also}
WHERE id = {id} AND revision = {seen} AND epoch = {epoch}
"""
_MOVED = "{move} RETURNING 'moved'"

# The history is written for the row that moved: for none, if the compare-and-set was lost
_MOVE_AND_NOTE = """
WITH moved AS ({move} RETURNING id, revision)
INSERT INTO {history}
  (saga_id, number, revision, transition, step, attempt, started_at, at, detail, code)
SELECT moved.id, entry.number, moved.revision, entry.transition, entry.step,
  entry.attempt, entry.started_at, {now}, entry.detail, entry.code
FROM moved CROSS JOIN json_to_recordset({entries}) AS entry(
  number int, transition text, step text, attempt int, started_at timestamptz, detail text,
  code text
)
RETURNING 'moved'
"""

# All of them are sent as text, which every driver takes for every type
_TYPES = {
    "state": "text",
    "revision": "bigint",
    "data": "text",
    "progress": "text",
    "reason": "text",
    "due": "timestamptz",
    "id": "uuid",
    "seen": "bigint",
    "epoch": "bigint",
    "entries": "json",
}

_MARK = re.compile(r"\{(\w+)\}")

_ENDED_AT: dict[_Ending, str] = {
    "now": ", ended_at = {now}",
    "never": ", ended_at = NULL",
    "as it was": "",
}


class _Form(NamedTuple):
    """What sets one compiled statement apart from another."""

    ending: _Ending
    keeps_lease: bool
    keeps_deaths: bool
    noted: bool


def record(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    seen: Instance,
    state: SagaState,
    due: dt.datetime | None,
    entries: Sequence[Entry],
    *,
    keep_lease: bool,
    keep_deaths: bool,
) -> bool:
    """True when the instance was still as seen (revision and lease epoch), is now `state`, one
    revision on, and its history says how. False: nothing was written.

    Args:
        keep_lease: Its owner goes on with it.
        keep_deaths: Nothing was reported: the deaths of its owners count on.
    """
    if family(connection) == "postgresql":
        form = _Form(_ending(seen, state), keep_lease, keep_deaths, bool(entries))
        return _record_at_once(connection, tables, clock, seen, state, due, entries, form)
    if not sagas.compare_and_set(
        connection,
        tables,
        clock,
        seen,
        state,
        due,
        keep_lease=keep_lease,
        keep_deaths=keep_deaths,
    ):
        return False
    sagas.add_history(connection, tables, clock, seen.id, seen.revision + 1, entries)
    return True


def _ending(seen: Instance, state: SagaState) -> _Ending:
    if state.status in ENDED:  # what comes after the end is noted, and moves it no further
        return "as it was" if state.status == seen.state.status else "now"
    return "never" if seen.state.status in ENDED else "as it was"


def _record_at_once(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    seen: Instance,
    state: SagaState,
    due: dt.datetime | None,
    entries: Sequence[Entry],
    form: _Form,
) -> bool:
    statement, names, twin = _driver_sql(connection.dialect, tables, form, clock.microseconds())
    values = {
        "id": seen.id.hex,
        "seen": str(seen.revision),
        "epoch": str(seen.epoch),
        "state": state.status,
        "revision": str(seen.revision + 1),
        "data": dump_data(state.data),
        "progress": dump_progress(state),
        "reason": state.reason,
        "due": None if due is None else due.isoformat(),
        "entries": _dumped(seen.revision + 1, entries) if entries else None,
    }
    return ask(connection, statement, tuple(values[name] for name in names), twin)() is not None


def _dumped(revision: int, entries: Sequence[Entry]) -> str:
    rows = [
        {
            "number": revision * sagas.ENTRIES_A_REVISION + index,
            "transition": entry.transition,
            "step": entry.step,
            "attempt": entry.attempt,
            "started_at": None if entry.started_at is None else entry.started_at.isoformat(),
            "detail": entry.detail,
            "code": entry.code,
        }
        for index, entry in enumerate(entries)
    ]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))


@functools.lru_cache(maxsize=64)
def _driver_sql(
    dialect: sa.Dialect, tables: Tables, form: _Form, shift: int
) -> tuple[str, tuple[str, ...], Twin | None]:
    """The statement in the driver's own marks, what stands for them in this order, and its twin;
    made once for each of its forms.
    """
    preparer = dialect.identifier_preparer
    also = _ENDED_AT[form.ending]
    if not form.keeps_lease:
        also += ", owner = NULL, lease_until = NULL"
    if not form.keeps_deaths:
        also += ", deaths = 0"
    history = preparer.format_table(tables.saga_history)
    text = (_MOVE_AND_NOTE if form.noted else _MOVED).replace("{move}", _MOVE)
    text = text.replace("{also}", also).replace("{now}", _NOW).replace("{shift}", str(shift))
    text = text.replace("{saga}", preparer.format_table(tables.saga)).replace("{history}", history)
    names = tuple(name for name in _MARK.findall(text))
    mark = marks(dialect)
    statement = _MARK.sub(
        lambda found: f"CAST(CAST({mark('text')} AS text) AS {_TYPES[found[1]]})", text
    )
    twin = twin_of(statement, ("text",) * len(names)) if is_psycopg(dialect) else None
    return statement, names, twin
