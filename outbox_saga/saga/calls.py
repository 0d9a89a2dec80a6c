"""Calls outside: the intent, and how it is found out what came of one. Pure."""

from __future__ import annotations

from typing import Any

from outbox_saga.instances import Direction, Entry, SagaState, StepState
from outbox_saga.payloads import storable
from outbox_saga.retries import Retry
from outbox_saga.saga.changes import MAX_REASON, stick
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.happened import Call, Query, Run, Surroundings, ToDo
from outbox_saga.saga.sending import is_open
from outbox_saga.saga.steps import Step

# after a step's own retries, an unknown outcome is settled on this longer policy
SETTLING = Retry(max_attempts=24, initial=1.0, max_delay=60.0)
QUESTIONS = 3  # after those, to who acts once per key and answers questions, too


def held_back(
    definition: Saga[Any],
    state: SagaState,
    rule: Step,
    around: Surroundings,
    entries: list[Entry],
    todo: list[ToDo],
) -> SagaState | None:
    """The state in which the step waits for its breaker; None: its call may go."""
    if rule.breaker is None:
        return None
    asked = [definition.steps[t.step].breaker for t in todo if not isinstance(t, Run)]
    names = [each.name for each in asked if each is not None and each.name is not None]
    seed = f"{around.seed}:{rule.name}"
    until = around.gates.held_until(rule.breaker, names, around.now, seed)
    if until is None:
        return None
    entries.append(Entry("HELD_BACK", rule.name, None, f"breaker {rule.breaker.name} is open"))
    return state.with_step(rule.name, due=until)


def call(
    definition: Saga[Any],
    state: SagaState,
    rule: Step,
    direction: Direction,
    around: Surroundings,
    entries: list[Entry],
    todo: list[ToDo],
) -> SagaState:
    """The intent: the attempt and its input are committed before the call is made."""
    held = held_back(definition, state, rule, around, entries, todo)
    if held is not None:
        return held
    step = state.steps[rule.name]
    # every attempt gets what the first one got: the same key with another request is an error at
    # the other side
    changes: dict[str, Any] = {
        "input": step.input if is_open(step, direction) else dict(state.data)
    }
    if direction == "do":
        begun = step.attempts + 1
        changes |= {"phase": "calling", "attempts": begun, "called": begun}
        entries.append(Entry("RUNNING", rule.name, step.attempts + 1))
        todo.append(Call(rule.name, "do", step.attempts + 1))
    else:
        changes |= {"phase": "undoing", "undo_attempts": step.undo_attempts + 1}
        entries.append(Entry("COMPENSATING_STEP", rule.name, step.undo_attempts + 1))
        todo.append(Call(rule.name, "undo", step.undo_attempts + 1))
    changes["due"] = (
        None
        if rule.idempotent or direction == "undo"
        else around.after(around.lease + rule.timeout)
    )
    return state.with_step(rule.name, **changes)


def settle(
    definition: Saga[Any],
    state: SagaState,
    rule: Step,
    around: Surroundings,
    entries: list[Entry],
    todo: list[ToDo],
) -> SagaState:
    """A call whose outcome nobody knows.

    Ask again under the same key, or ask whether it was carried out.
    """
    step = state.steps[rule.name]
    if rule.idempotent:
        settling = settling_attempt(rule, step, step.attempts)
        if settled_in_vain(rule, settling):
            return lost(state, rule, "do", entries)
        asked = state.with_step(rule.name, unknown=True)
        if not asks_now(rule, settling):
            return call(definition, asked, rule, "do", around, entries, todo)
        if step.due is None:  # begun, and nothing was reported: it may still be on its way
            return asked.with_step(rule.name, due=around.after(around.lease + rule.timeout))
    held = held_back(definition, state, rule, around, entries, todo)
    if held is not None:
        return held
    if not step.unknown:  # a question changes nothing; that its caller died does
        entries.append(Entry("RUNNING", rule.name, step.attempts, "nobody knows its outcome"))
    todo.append(Query(rule.name, step.attempts))
    return state.with_step(rule.name, unknown=True)


def settling_attempt(rule: Step, step: StepState, attempt: int) -> int:
    """Which one this is of the attempts to find out what came of a call; the first is 1."""
    return step.counted(attempt) - rule.retry.max_attempts + 1


def asks_now(rule: Step, settling: int) -> bool:
    """Whether the other side is asked, and not called again. Who acts once per key is called as
    long as that has a chance: its answer has the data, too.
    """
    return rule.query is not None and (not rule.idempotent or SETTLING.exhausted(settling))


def settled_in_vain(rule: Step, settling: int) -> bool:
    """Whether no attempt is left to find out."""
    questions = QUESTIONS if rule.idempotent and rule.query is not None else 0
    return SETTLING.exhausted(settling - questions)


def lost(state: SagaState, rule: Step, direction: Direction, entries: list[Entry]) -> SagaState:
    """No call is left, and nobody knows what came of the last one."""
    step = state.steps[rule.name]
    attempt = step.undo_attempts if direction == "undo" else step.attempts
    error, code = step.error, "timeout"
    if step.due is None:  # begun, and nothing was reported
        before = f" (before: {error})" if error is not None else ""
        error, code = f"its process died or stood still at the last one{before}", "died"
    elif error is None:
        error = "no answer came"
    reason = storable(f"outcome unknown after {attempt} attempts: {error}", MAX_REASON)
    state = state.with_step(rule.name, unknown=True)
    if direction == "undo":
        return stick(
            state,
            rule.name,
            "COMPENSATION_FAILED",
            attempt,
            reason,
            entries,
            code=code,
            undo=True,
        )
    return stick(state, rule.name, "STEP_FAILED", attempt, reason, entries, code=code)
