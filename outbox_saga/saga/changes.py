"""Changes of an instance's state that `progress` and `onward` both make, with their history."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from outbox_saga.instances import Entry, SagaState
from outbox_saga.saga.definition import Saga

MAX_REASON = 500  # characters of an error that are kept


def turn_back(state: SagaState, reason: str, entries: list[Entry]) -> SagaState:
    """From now on it is undone."""
    if state.status == "compensating":
        return state
    entries.append(Entry("COMPENSATION_STARTED", None, None, reason))
    return replace(state, status="compensating", reason=state.reason or reason)


def stick(
    state: SagaState,
    name: str,
    transition: str,
    attempt: int,
    reason: str,
    entries: list[Entry],
    *,
    undo: bool = False,
) -> SagaState:
    """This step needs a person, and holds up only what depends on it."""
    entries.append(Entry(transition, name, attempt, f"stuck: {reason}"))
    counted = {"undo_attempts": attempt} if undo else {"attempts": attempt}
    return state.with_step(name, phase="stuck", due=None, error=reason, **counted)


def fail(
    definition: Saga[Any],
    state: SagaState,
    name: str,
    attempt: int,
    reason: str,
    entries: list[Entry],
    started_at: dt.datetime | None,
) -> SagaState:
    """The step is definitely not done, and will not be tried again."""
    if pivot_done(definition, state):
        return stick(state, name, "STEP_FAILED", attempt, f"after the pivot: {reason}", entries)
    entries.append(Entry("STEP_FAILED", name, attempt, reason, started_at))
    state = state.with_step(
        name, phase="failed", attempts=attempt, due=None, unknown=False, error=reason, input=None
    )
    return turn_back(state, f"{name}: {reason}", entries)


def pivot_done(definition: Saga[Any], state: SagaState) -> bool:
    """Whether it can only go forward."""
    return any(s.pivot and state.steps[s.name].phase == "done" for s in definition.steps.values())
