"""Steps that other services carry out: when their commands leave, and when no answer comes.

Pure.
"""

from __future__ import annotations

from typing import Any

from outbox_saga.instances import Direction, Entry, SagaState, StepState
from outbox_saga.saga.changes import fail, pivot_done, stick, turn_back
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.happened import Send, Surroundings
from outbox_saga.saga.steps import Step, nothing_to_undo


def send(
    definition: Saga[Any],
    state: SagaState,
    rule: Step,
    direction: Direction,
    around: Surroundings,
    entries: list[Entry],
    sends: list[Send],
) -> SagaState:
    """The command leaves with this transition; if no answer comes in time, it leaves again."""
    assert rule.command is not None
    seconds = rule.seconds if direction == "do" else rule.undo_timeout
    assert not callable(seconds)
    step = state.steps[rule.name]
    fields = step.input if is_open(step, direction) else None
    if fields is None:
        try:
            fields = rule.command.fields(direction, state.data)
        except Exception as error:  # noqa: BLE001  # users' validators
            # type only: what it says may show the data
            reason = f"its command does not take the saga's data ({type(error).__name__})"
            if direction == "do":
                return fail(
                    definition,
                    state,
                    rule.name,
                    step.attempts,
                    reason,
                    entries,
                    None,
                    code="unusable",
                )
            attempt = step.undo_attempts
            return stick(
                state,
                rule.name,
                "COMPENSATION_FAILED",
                attempt,
                reason,
                entries,
                code="unusable",
                undo=True,
            )
    changes: dict[str, Any] = {"input": fields, "due": around.after(seconds)}
    if direction == "do":
        attempt = step.attempts + 1
        changes |= {"phase": "calling", "attempts": attempt}
        entries.append(Entry("RUNNING", rule.name, attempt, "its command leaves"))
    else:
        attempt = step.undo_attempts + 1
        changes |= {"phase": "undoing", "undo_attempts": attempt}
        entries.append(Entry("COMPENSATING_STEP", rule.name, attempt, "its command leaves"))
    sends.append(Send(rule.name, direction, attempt, step.key_number(direction), fields))
    return state.with_step(rule.name, **changes)


def unanswered(
    definition: Saga[Any], state: SagaState, rule: Step, entries: list[Entry]
) -> SagaState:
    """Nobody knows whether the command was carried out, and it is not sent any more.

    It need not be known either if another command undoes it: that is the end of it, whatever came
    of it, for the participant refuses a command that comes after its undoing. What a function
    undoes has to be known first.
    """
    step = state.steps[rule.name]
    reason = (
        f"no answer within {rule.seconds:g} s to any of {step.counted(step.attempts)} commands"
    )
    if rule.compensation is None or rule.must_be_known or pivot_done(definition, state):
        state = state.with_step(rule.name, unknown=True)
        return stick(
            state, rule.name, "STEP_FAILED", step.attempts, reason, entries, code="timeout"
        )
    if rule.compensation is nothing_to_undo:
        return fail(
            definition, state, rule.name, step.attempts, reason, entries, None, code="timeout"
        )
    told = f"{reason}: it is undone"
    entries.append(Entry("STEP_FAILED", rule.name, step.attempts, told, code="timeout"))
    state = state.with_step(rule.name, phase="done", due=None, unknown=True, error=reason)
    return turn_back(state, f"{rule.name}: {reason}", entries, code="timeout")


def may_still_be_sent(rule: Step, step: StepState) -> bool:
    """Whether the command is sent again though the saga is being undone: only so can it become
    known what came of it, before a function undoes it, or where nothing does.
    """
    known_first = rule.must_be_known or rule.compensation is None
    return known_first and not rule.retry.exhausted(step.counted(step.attempts))


def is_open(step: StepState, direction: Direction) -> bool:
    """Whether an attempt has begun whose input every later one gets."""
    if direction == "undo":
        return step.phase == "undoing" and step.input is not None
    return step.input is not None
