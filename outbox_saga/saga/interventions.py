"""What a person may do to an instance, and what becomes of it: pure, as `progress` is.

Nothing here runs anything: the instance is due afterwards, and an orchestrator goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from outbox_saga.errors import ActionRefused
from outbox_saga.instances import Direction, Entry, SagaState, StepState
from outbox_saga.saga.changes import finish, pivot_done, turn_back, unstuck
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.steps import nothing_to_undo

Kind: TypeAlias = Literal["retry", "skip", "mark_done", "cancel", "resume"]


@dataclass(frozen=True, slots=True)
class Intervention:
    """One action of a person.

    Args:
        kind: `retry` tries a stuck step again; `skip` goes on without it; `mark_done` takes it as
            done by other means; `cancel` undoes a running saga; `resume` tries all stuck steps
            again.
        step: Which; None for `cancel` and `resume`.
        by: Who, and why.
        data: Of `mark_done`: what the step would have returned.
        new_key: Of `retry`: under a new idempotency key, because the other side certainly has not
            acted, or has undone it, and would answer the old one as before.
    """

    kind: Kind
    step: str | None
    by: str
    data: Mapping[str, Any] | None = None
    new_key: bool = False


def intervene(
    definition: Saga[Any], state: SagaState, action: Intervention
) -> tuple[SagaState, tuple[Entry, ...]]:
    """The state afterwards, and its history.

    Raises:
        ActionRefused: The instance, or the step, is not where this could be done.
        MessageRefused: The data does not fit the saga's.
    """
    entries: list[Entry] = []
    if action.kind == "cancel":
        return _cancelled(definition, state, action, entries), tuple(entries)
    names = _stuck(definition, state, action)
    state = unstuck(state)
    if not names:
        entries.append(Entry("RUNNING", None, None, f"again, by {action.by}"))
    for name in names:
        if action.kind in ("retry", "resume"):
            state = _retried(definition, state, name, action, entries)
        elif action.kind == "skip":
            state = _skipped(definition, state, name, action, entries)
        else:
            state = _marked(definition, state, name, action, entries)
    return state, tuple(entries)


def _cancelled(
    definition: Saga[Any], state: SagaState, action: Intervention, entries: list[Entry]
) -> SagaState:
    status = unstuck(state).status
    if state.status in ("completed", "compensated") or status != "running":
        raise ActionRefused(f"it is {state.status} already; only a running saga can be cancelled")
    if pivot_done(definition, state):
        raise ActionRefused("its pivot was carried out: it can only go forward")
    return turn_back(unstuck(state), f"cancelled by {action.by}", entries, code="cancelled")


def _stuck(definition: Saga[Any], state: SagaState, action: Intervention) -> list[str]:
    stuck = [name for name, step in state.steps.items() if step.phase == "stuck"]
    if action.kind == "resume":
        refusals = {name: _no_retry(definition, state, name, action) for name in stuck}
        able = [name for name in stuck if refusals[name] is None]
        if not able and (stuck or state.status != "stuck"):
            none = f"no step of it is stuck (it is {state.status})"
            raise ActionRefused("; ".join(str(no) for no in refusals.values()) or none)
        return able  # the others stay as they are
    if action.step is None or action.step not in definition.steps:
        raise ActionRefused(
            f"it has no step {action.step!r}; there are {', '.join(definition.steps)}"
        )
    if action.step not in stuck:
        phase = state.steps[action.step].phase
        raise ActionRefused(f"step {action.step} is {phase}, not stuck")
    return [action.step]


def _at(step: StepState) -> Direction:
    return step.stuck or "do"


def _no_retry(
    definition: Saga[Any], state: SagaState, name: str, action: Intervention
) -> str | None:
    """Why this stuck step cannot be tried again in this way; None: it can."""
    rule, step = definition.steps[name], state.steps[name]
    if action.new_key and step.unknown:
        return (
            f"nobody knows whether step {name} was carried out; under a new key it might be "
            "carried out twice. Retry it under its own key, or mark it as done"
        )
    if step.doubt and not action.new_key:
        return (
            f"nobody knows whether step {name} has been undone. Look: mark it as done if its "
            "effect is there; if it certainly is not, retry it under a new key"
        )
    if _at(step) == "do":
        return None
    if rule.compensation is None or rule.compensation is nothing_to_undo:
        return (
            f"step {name} has no compensation to try again; undo it by other means, and mark it "
            "as done"
        )
    if action.new_key and rule.kind == "command" and rule.undone == "command":
        # what it did is on record there under the key of the command, and under no other
        return (
            f"whoever carried out step {name} knows it by its key, and would find nothing to undo "
            "under a new one; retry it under its own key: an undoing that was refused is tried "
            "there again"
        )
    return None


def _retried(
    definition: Saga[Any],
    state: SagaState,
    name: str,
    action: Intervention,
    entries: list[Entry],
) -> SagaState:
    refusal = _no_retry(definition, state, name, action)
    if refusal is not None:
        raise ActionRefused(refusal)
    rule, step = definition.steps[name], state.steps[name]
    changes: dict[str, Any] = {"due": None, "stuck": None, "doubt": False}
    if action.new_key:
        changes |= {"generation": step.generation + 1, "input": None}
    if _at(step) == "undo":
        # an open call goes on under its key, and a command says under one key what it said before;
        # nobody knows whether the last one has arrived
        asked = rule.calls("undo") or rule.asks("undo")
        open_ = asked and step.input is not None and not action.new_key
        phase = "undoing" if open_ else "done"
        entries.append(Entry("COMPENSATING_STEP", name, None, f"again, by {action.by}"))
        return state.with_step(name, phase=phase, undo_attempts=0, **changes)
    # what was carried out is asked for its answer, under its key and with what it was given
    phase = "calling" if step.unknown or step.there else "waiting"
    entries.append(Entry("RUNNING", name, None, f"again, by {action.by}"))
    return state.with_step(name, phase=phase, granted=step.attempts, **changes)


def _skipped(
    definition: Saga[Any],
    state: SagaState,
    name: str,
    action: Intervention,
    entries: list[Entry],
) -> SagaState:
    if definition.steps[name].pivot and state.status == "running":
        raise ActionRefused(
            f"step {name} is the pivot: without it there would be no point of no return, and what "
            "is behind it could not be undone. Retry it, mark it as done, or cancel the saga"
        )
    if _at(state.steps[name]) == "undo":
        entries.append(Entry("COMPENSATION_SKIPPED", name, None, f"by {action.by}"))
        return state.with_step(name, phase="undone", due=None, stuck=None, doubt=True)
    entries.append(Entry("STEP_SKIPPED", name, None, f"by {action.by}"))
    phase = "skipped" if state.status == "running" else "failed"
    return state.with_step(name, phase=phase, due=None, stuck=None, unknown=False, doubt=False)


def _marked(
    definition: Saga[Any],
    state: SagaState,
    name: str,
    action: Intervention,
    entries: list[Entry],
) -> SagaState:
    told = f"by other means, says {action.by}"
    if _at(state.steps[name]) == "undo":
        if action.data:
            raise ActionRefused(f"step {name} is undone by this: there is no data to keep")
        entries.append(Entry("STEP_COMPENSATED", name, None, told))
        return state.with_step(name, phase="undone", due=None, stuck=None)
    return finish(definition, state, name, action.data, entries, told)
