"""What came of a step, taken in: done, refused, failed, not found, too late. Pure."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from outbox_saga.instances import ENDED, OVER_FOR_GOOD, Entry, SagaState
from outbox_saga.payloads import storable
from outbox_saga.saga.calls import SETTLING, asks_now, settled_in_vain, settling_attempt
from outbox_saga.saga.changes import (
    MAX_REASON,
    all_is_there_for,
    fail,
    finish,
    pivot_done,
    something_waits_for,
    stick,
    turn_back,
    unstuck,
)
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.happened import (
    Done,
    Errored,
    NotFound,
    Query,
    Refused,
    Run,
    Surroundings,
    Unusable,
)
from outbox_saga.saga.onward import next_decision

FATAL_DEATHS = 10  # from so many on, without a report between, each costs an attempt


def done(
    definition: Saga[Any], state: SagaState, happened: Done, entries: list[Entry]
) -> SagaState:
    """A step, or its undoing, succeeded; where that is too late, its effect has to be undone."""
    name, step = happened.step, state.steps[happened.step]
    rule = definition.steps[name]
    if happened.direction == "undo":
        if step.phase not in ("done", "undoing", "stuck"):
            return ignored(state, happened, entries)
        entries.append(
            Entry("STEP_COMPENSATED", name, happened.attempt, None, happened.started_at)
        )
        return unstuck(state).with_step(
            name,
            phase="undone",
            due=None,
            undo_attempts=happened.attempt,
            input=None,
            unknown=False,
            error=None,
            stuck=None,
            there=False,
        )
    attempt, started = happened.attempt, happened.started_at

    def done_in_time(told: str | None) -> SagaState:
        return finish(
            definition, state, name, happened.added, entries, told,
            attempt=attempt, started_at=started,
        )  # fmt: skip

    # what has ended undoes nothing by itself
    over = rule.external and state.status in ENDED
    if step.phase == "calling" or (step.phase == "waiting" and not over):
        return done_in_time(None)
    # under one key it is the effect that has been undone; and so is the call that was found done
    same = rule.idempotent or attempt in (step.called, step.attempts)
    undone = step.phase == "undone" and same
    if rule.external and step.phase in ("waiting", "failed", "undone") and not undone:
        # A late success: nobody expected it any more, but the effect is there and must be undone
        if pivot_done(definition, state) or unstuck(state).status == "running":
            return done_in_time("late")  # unless it has to be there
        data = definition.merge(state.data, happened.added, rule.writes)
        entries.append(Entry("STEP_COMPLETED", name, attempt, "late", started))
        changes: dict[str, Any] = {"phase": "done", "due": None, "input": None, "unknown": False}
        if step.phase == "undone":
            # another effect than the one that was undone: the other side would take its undoing,
            # under the same key, for that one's
            changes |= {"reopened": step.reopened + 1, "undo_attempts": 0}
        state = state.with_step(name, **changes)
        return replace(turn_back(state, "a late success", entries, code="late"), data=data)
    return ignored(state, happened, entries)


def is_overtaken(
    definition: Saga[Any], state: SagaState, happened: Done | Refused | Errored
) -> bool:
    """Whether a local step, or a local undoing, may not commit any more.

    Nothing is on record of one before it commits. So a branch that ends at the moment when another
    one's end has begun it may have decided what does not go together with it.
    """
    if isinstance(happened, Done) and not happened.kept:
        return True
    steps, rule = state.steps, definition.steps[happened.step]
    if happened.direction == "undo":
        if rule.undone != "local" or steps[rule.name].phase == "undoing":
            return False
        forward = unstuck(state).status in ("running", "completed")
        return forward or something_waits_for(definition, state, rule.name)
    if rule.external or rule.kind != "action" or steps[rule.name].phase != "waiting":
        return False
    undone = any(each.phase in ("undoing", "undone") for each in steps.values())
    return (
        state.status in OVER_FOR_GOOD
        or (rule.pivot and undone)
        or not all_is_there_for(definition, state, rule.name)
    )


def unusable(
    definition: Saga[Any], state: SagaState, happened: Unusable, entries: list[Entry]
) -> SagaState:
    """A step was done, and what it answered is of no use."""
    asked_with = state.steps[happened.step].input
    state = done(definition, state, Done(happened.step, "do", happened.attempt), entries)
    if state.steps[happened.step].phase == "done":
        state = state.with_step(happened.step, there=True, input=asked_with, error=happened.reason)
    if pivot_done(definition, state):
        # done, and not to be undone any more: what it answered, a person has to supply
        return stick(
            state,
            happened.step,
            "STEP_FAILED",
            happened.attempt,
            happened.reason,
            entries,
            code="unusable",
        )
    return turn_back(state, f"{happened.step}: {happened.reason}", entries, code="unusable")


def refused(
    definition: Saga[Any], state: SagaState, happened: Refused, entries: list[Entry]
) -> SagaState:
    """A business no, which is definite."""
    step = state.steps[happened.step]
    reason = storable(happened.reason, MAX_REASON)
    if happened.direction == "undo":
        if step.phase not in ("done", "undoing"):
            return ignored(state, happened, entries)
        return stick(
            state.with_step(happened.step, unknown=False),  # under one key a no is definite
            happened.step,
            "COMPENSATION_FAILED",
            happened.attempt,
            reason,
            entries,
            code="failure",
            undo=True,
        )
    if step.phase not in ("waiting", "calling"):
        return ignored(state, happened, entries)
    return fail(
        definition,
        state,
        happened.step,
        happened.attempt,
        reason,
        entries,
        happened.started_at,
        code="failure",
    )


def errored(
    definition: Saga[Any],
    state: SagaState,
    happened: Errored,
    around: Surroundings,
    entries: list[Entry],
) -> SagaState:
    """A technical failure: another attempt, or the end of them."""
    name, step, rule = happened.step, state.steps[happened.step], definition.steps[happened.step]
    error, attempt = storable(happened.error, MAX_REASON), happened.attempt
    started, code = happened.started_at, happened.code
    seed = f"{around.seed}:{name}:{happened.direction}"

    def wait(seconds: float) -> dt.datetime:
        return around.after(seconds)

    if happened.direction == "undo":
        if step.phase not in ("done", "undoing"):
            return ignored(state, happened, entries)
        state = state.with_step(name, unknown=step.unknown or happened.unknown)
        if rule.compensation_retry.exhausted(attempt):
            reason = f"gave up after {attempt} attempts: {error}"
            return stick(
                state, name, "COMPENSATION_FAILED", attempt, reason, entries, code=code, undo=True
            )
        entries.append(Entry("COMPENSATION_FAILED", name, attempt, _again(error), started, code))
        return state.with_step(
            name,
            undo_attempts=attempt,
            due=wait(rule.compensation_retry.delay(attempt, seed=seed)),
            error=error,
        )
    if step.phase not in ("waiting", "calling"):
        return ignored(state, happened, entries)
    unknown = step.unknown or happened.unknown
    counted = step.counted(attempt)
    if not rule.retry.exhausted(counted):
        entries.append(Entry("STEP_FAILED", name, attempt, _again(error), started, code))
        due = wait(rule.retry.delay(max(1, counted), seed=seed))
    elif not unknown:
        reason = f"gave up after {attempt} attempts: {error}"
        return fail(definition, state, name, attempt, reason, entries, started, code=code)
    else:
        settling = settling_attempt(rule, step, attempt)
        if settled_in_vain(rule, settling):
            reason = f"outcome unknown after {attempt} attempts: {error}"
            state = state.with_step(name, unknown=True)
            return stick(state, name, "STEP_FAILED", attempt, reason, entries, code=code)
        entries.append(Entry("STEP_FAILED", name, attempt, _again(error), started, code))
        due = wait(SETTLING.delay(settling, seed=seed))
        if rule.idempotent and asks_now(rule, settling):
            # a no is not believed before the last call can no longer be on its way
            due = max(due, wait(around.lease + rule.timeout))
    if unknown and not rule.idempotent and step.due is not None:
        due = max(
            due, step.due
        )  # the query is not believed before the call can no longer be on its way
    phase = "calling" if unknown else "waiting"
    return state.with_step(
        name,
        phase=phase,
        attempts=max(step.attempts, attempt),
        due=due,
        unknown=unknown,
        error=error,
    )


def charged(
    definition: Saga[Any],
    state: SagaState,
    deaths: int,
    around: Surroundings,
    entries: list[Entry],
) -> SagaState:
    """An attempt for each step that would be run or asked about now: one of them may be what kills
    every process. A call is not charged: its intent was counted before it was made.
    """
    error = f"its process died or stood still {deaths} times while carrying it out"
    for todo in next_decision(definition, state, around, []).todo:
        failed: Errored
        if isinstance(todo, Run):
            failed = Errored(todo.step, todo.direction, todo.attempt, error, code="died")
        elif isinstance(todo, Query):
            attempt = todo.attempt + 1
            failed = Errored(todo.step, "do", attempt, error, unknown=True, code="died")
        else:
            continue
        state = errored(definition, state, failed, around, entries)
    return state


def not_found(
    definition: Saga[Any],
    state: SagaState,
    happened: NotFound,
    around: Surroundings,
    entries: list[Entry],
) -> SagaState:
    """The other side knows nothing of the call, as far as it can be believed."""
    step = state.steps[happened.step]
    if step.phase != "calling":
        return state
    if step.there:  # it answered; called again, it might be carried out a second time
        told = "its query does not know it, though it was carried out"
        return stick(
            state, happened.step, "STEP_FAILED", step.attempts, told, entries, code="unusable"
        )
    state = state.with_step(happened.step, unknown=False, phase="waiting", due=None)
    error = step.error or "no answer, and the query found nothing"
    failed = Errored(happened.step, "do", step.attempts, error, code="not_done")
    return errored(definition, state, failed, around, entries)


def ignored(
    state: SagaState, happened: Done | Refused | Errored, entries: list[Entry]
) -> SagaState:
    """It changes nothing any more; that it came is on record."""
    kind = type(happened).__name__.lower()
    entries.append(
        Entry("IGNORED", happened.step, happened.attempt, f"{happened.direction} {kind}, too late")
    )
    return state


def _again(error: str) -> str:
    return f"{error} (will be tried again)"
