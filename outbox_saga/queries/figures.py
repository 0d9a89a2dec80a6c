"""What sagas have come to, in numbers: from their rows and their history, and nothing else.

Reads all rows of the stretch of time; on large tables that takes as long as reading them does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from outbox_saga.instances import OVER_FOR_GOOD
from outbox_saga.queries.clock import Clock
from outbox_saga.tables import Tables

P95 = 0.95
TIMED_OUT = ("timeout", "deadline")


class _Seconds(FunctionElement[float]):
    """From one moment to another, in seconds."""

    name = "outbox_saga_seconds"
    type = sa.Float()
    inherit_cache = True


@compiles(_Seconds, "postgresql")
def _postgresql(element: _Seconds, compiler: SQLCompiler, **kw: Any) -> str:
    begin, end = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"CAST(EXTRACT(epoch FROM {end} - {begin}) AS double precision)"


@compiles(_Seconds, "mysql")
@compiles(_Seconds, "mariadb")
def _mysql(element: _Seconds, compiler: SQLCompiler, **kw: Any) -> str:
    begin, end = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"(TIMESTAMPDIFF(MICROSECOND, {begin}, {end}) / 1e6)"


@compiles(_Seconds, "sqlite")
def _sqlite(element: _Seconds, compiler: SQLCompiler, **kw: Any) -> str:
    begin, end = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"((julianday({end}) - julianday({begin})) * 86400.0)"


@dataclass(frozen=True, slots=True)
class Durations:
    """Of what ended: how long it took, in seconds; None: nothing did."""

    count: int = 0
    average: float | None = None
    p95: float | None = None


@dataclass(frozen=True, slots=True)
class StepFigures:
    """One step of one saga.

    Args:
        completed: Times that it was carried out.
        failed: Failures of it on record, for whatever reason. An attempt of which nobody knew what
            came, and then that it was not carried out, is two; commands that nobody answered are
            one, when no more of them leave.
        timeouts: Of those, that ran out of time.
        compensated: Times that it was undone.
        undo_failed: Attempts of its compensation that failed.
        durations: Of attempts that succeeded, as far as their beginning is on record.
    """

    step: str
    completed: int
    failed: int
    timeouts: int
    compensated: int
    undo_failed: int
    durations: Durations


@dataclass(frozen=True, slots=True)
class SagaFigures:
    """One saga, all its versions.

    Args:
        started: Instances that were started in the stretch of time.
        ended: Those that ended in it, by how: `completed` or `compensated`.
        alive: Those that go on now, whenever they were started: `running`, `compensating`,
            `stuck`.
        durations: From the start to the end of those that ended.
        triggers: Why they turned back, by code, as in the history.
        timeouts: Steps, answers, events and sagas that ran out of time.
        trips: Times that one of their calls opened a breaker.
        seconds: The length of the stretch.
    """

    saga: str
    started: int
    ended: Mapping[str, int]
    alive: Mapping[str, int]
    durations: Durations
    triggers: Mapping[str, int]
    timeouts: int
    trips: int
    steps: Sequence[StepFigures]
    seconds: float = field(repr=False)

    @property
    def success_rate(self) -> float | None:
        """The share of the ended ones that completed; None: none has ended."""
        return self._share("completed")

    @property
    def compensation_rate(self) -> float | None:
        """The share of the ended ones that were undone."""
        return self._share("compensated")

    @property
    def per_minute(self) -> float:
        """Instances that ended in a minute, on average."""
        return sum(self.ended.values()) / self.seconds * 60.0

    def _share(self, state: str) -> float | None:
        whole = sum(self.ended.values())
        return self.ended.get(state, 0) / whole if whole else None


def figures(
    connection: sa.Connection,
    tables: Tables,
    clock: Clock,
    seconds: float,
    *,
    name: str | None = None,
) -> list[SagaFigures]:
    """What became of each saga in the last so many seconds, by name.

    Args:
        name: Only of this saga.
    """
    saga = tables.saga.c
    since = clock.now(-seconds)
    over = sa.and_(saga.state.in_(sorted(OVER_FOR_GOOD)), saga.ended_at >= since)
    alive = saga.state.not_in(sorted(OVER_FOR_GOOD))  # a stuck one has an end, and may go on
    ours = [] if name is None else [saga.name == name]
    counted = connection.execute(
        sa.select(
            saga.name,
            saga.state,
            alive.label("alive"),
            (saga.started_at >= since).label("new"),
            over.label("over"),
            sa.func.count().label("instances"),
        )
        .where(sa.or_(alive, over, saga.started_at >= since))
        .where(*ours)
        .group_by(*(sa.text(str(n)) for n in range(1, 6)))
    ).all()
    found = []
    for one in sorted({row.name for row in counted}):
        rows = [row for row in counted if row.name == one]
        transitions = _transitions(connection, tables, one, since)
        took = _Seconds(saga.started_at, saga.ended_at)
        found.append(
            SagaFigures(
                saga=one,
                started=sum(row.instances for row in rows if row.new),
                ended=_by_state(row for row in rows if row.over),
                alive=_by_state(row for row in rows if row.alive),
                durations=_durations(connection, tables.saga, took, (saga.name == one, over)),
                triggers=_triggers(transitions),
                timeouts=sum(n for t, _, code, n in transitions if _is_timeout(t, code)),
                trips=sum(n for t, _, _, n in transitions if t == "BREAKER_OPENED"),
                steps=_steps(connection, tables, one, since, transitions),
                seconds=seconds,
            )
        )
    return found


_Transitions = list[tuple[str, str | None, str | None, int]]  # transition, step, code, how often


def _transitions(
    connection: sa.Connection, tables: Tables, name: str, since: sa.ColumnElement[Any]
) -> _Transitions:
    saga, history = tables.saga.c, tables.saga_history.c
    kind = (history.transition, history.step, history.code)
    rows = connection.execute(
        sa.select(*kind, sa.func.count())
        .join_from(tables.saga_history, tables.saga, saga.id == history.saga_id)
        .where(saga.name == name, history.at >= since)
        .group_by(*kind)
    )
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def _is_timeout(transition: str, code: str | None) -> bool:
    # a deadline has no step: it is told where the saga turns back; a step's timeout where it fails
    return (transition in ("STEP_FAILED", "COMPENSATION_FAILED") and code == "timeout") or (
        transition == "COMPENSATION_STARTED" and code == "deadline"
    )


def _by_state(rows: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.state] = counts.get(row.state, 0) + row.instances
    return counts


def _triggers(transitions: _Transitions) -> dict[str, int]:
    triggers: dict[str, int] = {}
    for transition, _, code, count in transitions:
        if transition == "COMPENSATION_STARTED":
            why = code or "unknown"  # of an older release
            triggers[why] = triggers.get(why, 0) + count
    return triggers


def _steps(
    connection: sa.Connection,
    tables: Tables,
    name: str,
    since: sa.ColumnElement[Any],
    transitions: _Transitions,
) -> list[StepFigures]:
    history, saga = tables.saga_history.c, tables.saga.c
    joined = tables.saga_history.join(tables.saga, saga.id == history.saga_id)
    found = []
    for step in sorted({step for _, step, _, _ in transitions if step is not None}):
        own = [(t, code, n) for t, s, code, n in transitions if s == step]

        def count(transition: str, own: list[Any] = own) -> int:
            return sum(n for t, _, n in own if t == transition)

        told_again = sum(n for t, code, n in own if (t, code) == ("STEP_FAILED", "beside_pivot"))
        completed = (
            saga.name == name,
            history.at >= since,
            history.step == step,
            history.transition == "STEP_COMPLETED",
            history.started_at.is_not(None),
        )
        took = _Seconds(history.started_at, history.at)
        found.append(
            StepFigures(
                step=step,
                completed=count("STEP_COMPLETED"),
                # told twice: when it fails beside the pivot, and when it must not any more
                failed=count("STEP_FAILED") - told_again,
                timeouts=sum(n for t, code, n in own if _is_timeout(t, code)),
                compensated=count("STEP_COMPENSATED"),
                undo_failed=count("COMPENSATION_FAILED"),
                durations=_durations(connection, joined, took, completed),
            )
        )
    return found


def _durations(
    connection: sa.Connection, among: sa.FromClause, took: Any, which: tuple[Any, ...]
) -> Durations:
    count, average = connection.execute(
        sa.select(sa.func.count(), sa.func.avg(took)).select_from(among).where(*which)
    ).one()
    if not count:
        return Durations()
    # the nearest rank: every database has ORDER BY and OFFSET, and not all a percentile
    p95 = connection.execute(
        sa.select(took.label("took"))
        .select_from(among)
        .where(*which)
        .order_by(sa.text("took"))
        .offset(math.ceil(P95 * count) - 1)
        .limit(1)
    ).scalar_one_or_none()  # some may have gone meanwhile
    return Durations(count, float(average), None if p95 is None else float(p95))
