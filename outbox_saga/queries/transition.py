"""One step forward of a saga instance: compare-and-set and its history.

On PostgreSQL both are one statement, in the driver's own words: a round trip less for each step,
and SQLAlchemy need not build two statements. Elsewhere they are two.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from outbox_saga.instances import ENDED, Entry, Instance, SagaState, dump_data, dump_progress
from outbox_saga.queries import sagas
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import family
from outbox_saga.tables import Tables

_Ending = Literal["now", "never", "as it was"]

_NOW = "clock_timestamp() + CAST(:shift AS bigint) * interval '1 microsecond'"

_MOVE = """
UPDATE {saga} SET
  state = :state, revision = CAST(:revision AS bigint), data = :data, progress = :progress,
  reason = :reason, due_at = CAST(:due AS timestamptz), updated_at = {now}{also}
WHERE id = CAST(:id AS uuid)
  AND revision = CAST(:seen AS bigint) AND epoch = CAST(:epoch AS bigint)
"""

# The history is written for the row that moved: for none, if the compare-and-set was lost
_MOVE_AND_NOTE = """
WITH moved AS ({move} RETURNING id)
INSERT INTO {history}
  (saga_id, number, revision, transition, step, attempt, started_at, at, detail, code)
SELECT moved.id, entry.number, CAST(:revision AS bigint), entry.transition, entry.step,
  entry.attempt, entry.started_at, {now}, entry.detail, entry.code
FROM moved CROSS JOIN unnest(
  CAST(:numbers AS int[]), CAST(:transitions AS text[]), CAST(:steps AS text[]),
  CAST(:attempts AS int[]), CAST(:starts AS timestamptz[]), CAST(:details AS text[]),
  CAST(:codes AS text[])
) AS entry(number, transition, step, attempt, started_at, detail, code)
"""

_ENDED_AT: dict[_Ending, str] = {
    "now": f", ended_at = {_NOW}",
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
    statement, order = _driver_sql(connection.dialect, tables, form)
    first = (seen.revision + 1) * sagas.ENTRIES_A_REVISION
    values: dict[str, Any] = {
        "id": str(seen.id),
        "seen": seen.revision,
        "epoch": seen.epoch,
        "state": state.status,
        "revision": seen.revision + 1,
        "data": dump_data(state.data),
        "progress": dump_progress(state),
        "reason": state.reason,
        "due": due,
        "shift": clock.microseconds(),
        "numbers": [first + index for index in range(len(entries))],
        "transitions": [entry.transition for entry in entries],
        "steps": [entry.step for entry in entries],
        "attempts": [entry.attempt for entry in entries],
        "starts": [entry.started_at for entry in entries],
        "details": [entry.detail for entry in entries],
        "codes": [entry.code for entry in entries],
    }
    return bool(
        connection.exec_driver_sql(
            statement, values if order is None else tuple(values[name] for name in order)
        ).rowcount
    )


@functools.lru_cache(maxsize=64)
def _driver_sql(
    dialect: sa.Dialect, tables: Tables, form: _Form
) -> tuple[str, tuple[str, ...] | None]:
    """The statement in the driver's own parameter style; compiled once for each of its forms."""
    preparer = dialect.identifier_preparer
    also = _ENDED_AT[form.ending]
    if not form.keeps_lease:
        also += ", owner = NULL, lease_until = NULL"
    if not form.keeps_deaths:
        also += ", deaths = 0"
    text = _MOVE.format(saga=preparer.format_table(tables.saga), also=also, now=_NOW)
    if form.noted:
        history = preparer.format_table(tables.saga_history)
        text = _MOVE_AND_NOTE.format(move=text, history=history, now=_NOW)
    compiled = sa.text(text).compile(dialect=dialect)
    order: Any = getattr(compiled, "positiontup", None)
    return str(compiled), tuple(order) if order else None
