"""Sagas that wait for moments, and a table of when they went on, by the database's clock."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import Event, Saga, Service, StepContext, SyncStepContext, nothing_to_undo
from outbox_saga.column_types import Moment
from outbox_saga.queries.clock import DATABASE_CLOCK

TIMEOUT = 2.0  # seconds of a step: leases are longer than the longest

metadata = sa.MetaData()
passed = sa.Table(
    "passed",
    metadata,
    sa.Column("saga_id", sa.String(36), primary_key=True),
    sa.Column("step", sa.String(20), primary_key=True),
    sa.Column("at", Moment, nullable=False),
)


class Never(Event, topic="never"):
    """What is waited for in vain."""


class Times(BaseModel):
    """How long each waits, in seconds."""

    first: float
    second: float


def _note(step: Any) -> Any:
    return sa.insert(passed).values(
        saga_id=str(step.saga_id), step=step.step, at=DATABASE_CLOCK.now()
    )


async def noted(step: StepContext[Times]) -> None:
    """The moment at which the step runs."""
    await step.session.execute(_note(step))


def noted_now(step: SyncStepContext[Times]) -> None:
    """As `noted`, in a thread."""
    step.session.execute(_note(step))


waits = (
    Saga("waits", data=Times)
    .timer("first", lambda data: data.first)
    .step("after_first", noted, compensation=nothing_to_undo, timeout=TIMEOUT)
    .timer("second", lambda data: data.second)
    .step("after_second", noted_now, compensation=nothing_to_undo, timeout=TIMEOUT)
    .check()
)
times_out = (
    Saga("times_out", data=Times)
    .step("begins", noted, compensation=nothing_to_undo, timeout=TIMEOUT)
    .wait_for("never", Never, timeout=4.0)
    .check()
)
SAGAS = (waits, times_out)


def service(url: str) -> Service:
    """One that looks often, and whose leases end soon."""
    return Service("clocks", database=url, sagas=list(SAGAS), poll=0.05)
