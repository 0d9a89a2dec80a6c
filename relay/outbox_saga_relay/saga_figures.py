"""`outbox-saga saga figures`: what sagas have come to, in numbers."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from outbox_saga.queries.figures import Durations, SagaFigures, StepFigures, figures
from outbox_saga.queries.schema import require_tables
from outbox_saga_relay.database_options import database_url_option, schema_option
from outbox_saga_relay.opened_database import opened_async
from outbox_saga_relay.printing import json_option, print_json, print_rows

HOUR = 3600.0
LONGEST = 876_600.0  # hours; a hundred years back, every database still has a date


@click.command("figures")
@database_url_option
@schema_option
@click.option("--name", help="Only of this saga.")
@click.option(
    "--hours",
    type=click.FloatRange(0, LONGEST, min_open=True),
    default=24.0,
    show_default=True,
    help="Of what happened in so many last hours.",
)
@json_option
def figures_(
    *, database_url: str, schema: str | None, name: str | None, hours: float, as_json: bool
) -> None:
    """Count what became of sagas: how they ended, how long they took, what failed, and why.

    It reads the rows of that time, all of them.
    """

    async def ask() -> list[SagaFigures]:
        async with opened_async(database_url, schema) as database:
            tables = database.tables
            await database.look(require_tables, tables)
            return await database.look(figures, tables, database.clock, hours * HOUR, name=name)

    found = asyncio.run(ask())
    if as_json:
        print_json({"hours": hours, "sagas": [_told(one) for one in found]})
        return
    print_rows(
        (
            *("saga", "started", "completed", "compensated", "success", "a minute"),
            *("average", "p95", "running", "compensating", "stuck", "timeouts", "trips"),
            "turned back",
        ),
        [_row(one) for one in found],
    )
    click.echo()
    print_rows(
        (
            *("saga", "step", "completed", "failed", "timeouts", "compensated", "undo failed"),
            *("average", "p95"),
        ),
        [_step_row(one.saga, step) for one in found for step in one.steps],
    )


def _row(one: SagaFigures) -> tuple[str, ...]:
    return (
        one.saga,
        str(one.started),
        str(one.ended.get("completed", 0)),
        str(one.ended.get("compensated", 0)),
        "" if one.success_rate is None else f"{one.success_rate:.1%}",
        f"{one.per_minute:.2f}",
        *_durations(one.durations),
        *(str(one.alive.get(state, 0)) for state in ("running", "compensating", "stuck")),
        str(one.timeouts),
        str(one.trips),
        ", ".join(f"{code} {count}" for code, count in sorted(one.triggers.items())),
    )


def _step_row(saga: str, step: StepFigures) -> tuple[str, ...]:
    return (
        saga,
        step.step,
        str(step.completed),
        str(step.failed),
        str(step.timeouts),
        str(step.compensated),
        str(step.undo_failed),
        *_durations(step.durations),
    )


def _durations(durations: Durations) -> tuple[str, str]:
    average, p95 = (
        "" if seconds is None else f"{seconds:.3f} s"
        for seconds in (durations.average, durations.p95)
    )
    return average, p95


def _told(one: SagaFigures) -> dict[str, Any]:
    return {
        "saga": one.saga,
        "started": one.started,
        "ended": dict(one.ended),
        "alive": dict(one.alive),
        "success_rate": one.success_rate,
        "compensation_rate": one.compensation_rate,
        "per_minute": one.per_minute,
        "seconds": _seconds(one.durations),
        "triggers": dict(one.triggers),
        "timeouts": one.timeouts,
        "breaker_trips": one.trips,
        "steps": [
            {
                "step": step.step,
                "completed": step.completed,
                "failed": step.failed,
                "timeouts": step.timeouts,
                "compensated": step.compensated,
                "undo_failed": step.undo_failed,
                "seconds": _seconds(step.durations),
            }
            for step in one.steps
        ],
    }


def _seconds(durations: Durations) -> dict[str, float | int | None]:
    return {"count": durations.count, "average": durations.average, "p95": durations.p95}
