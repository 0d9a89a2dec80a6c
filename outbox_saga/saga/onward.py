"""What is to be done now: forward, or backward. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from outbox_saga.errors import MessageRefused
from outbox_saga.instances import (
    ENDED,
    NOTHING_LEFT,
    OVER,
    Entry,
    Phase,
    SagaState,
    Status,
    StepState,
)
from outbox_saga.retries import MAX_SECONDS
from outbox_saga.saga import calls
from outbox_saga.saga.changes import (
    all_is_there_for,
    fail,
    finish,
    pivot_done,
    something_waits_for,
    stick,
    turn_back,
    without_what_was_undone,
)
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.happened import Decision, Run, Send, Surroundings, ToDo
from outbox_saga.saga.sending import may_still_be_sent, send, unanswered
from outbox_saga.saga.steps import Step, nothing_to_undo


def next_decision(
    definition: Saga[Any], state: SagaState, around: Surroundings, entries: list[Entry]
) -> Decision:
    """What follows from the state as it is now."""
    todo: list[ToDo] = []
    sends: list[Send] = []
    ends = _deadline(definition, state, around)
    if ends is not None and ends <= around.now:
        late = f"its deadline of {definition.deadline:g} s has passed"
        state = turn_back(state, late, entries, code="deadline")
    if state.status == "running":
        state = _forward(definition, state, around, entries, todo, sends)
        over = all(s.phase in OVER for s in state.steps.values())
        if over and state.status == "running":  # it may have turned back just now
            entries.append(Entry("COMPLETED"))
            return Decision(replace(state, status="completed"), tuple(entries), (), None)
    if state.status == "compensating":
        # a branch may have failed as it began, just now: no other one begins beside the undoing
        todo = [each for each in todo if not isinstance(each, Run)]
        state = _backward(definition, state, around, entries, todo, sends)
    if state.status in ENDED:
        return Decision(state, tuple(entries), (), None)
    told = tuple(sends)
    if todo or around.in_flight:
        held = {name for name, _ in around.in_flight} | {each.step for each in todo}
        moments = [*_moments(definition, state, held), _deadline(definition, state, around)]
        # those that have come by now are in this decision, as far as there is room for them
        later = min((m for m in moments if m is not None and m > around.now), default=None)
        return Decision(
            state, tuple(entries), tuple(todo), around.now, busy=True, sends=told, look_at=later
        )
    if around.stopping:
        return Decision(state, tuple(entries), (), around.now, sends=told)
    due = min(_moments(definition, state), default=None)
    if due is not None and (ends := _deadline(definition, state, around)) is not None:
        due = min(due, ends)
    if due is None:
        # nothing runs, nothing is due, nothing can start: only a person can help
        if state.status == "running":
            state = without_what_was_undone(state, entries)
        reason = "; ".join(f"{n}: {s.error}" for n, s in state.steps.items() if s.phase == "stuck")
        entries.append(Entry("FAILED", None, None, reason))
        before = (state.status, state.reason)
        stuck = replace(state, status="stuck", reason=reason, before=before)
        return Decision(stuck, tuple(entries), (), None)
    return Decision(state, tuple(entries), (), due, sends=told)


def _deadline(definition: Saga[Any], state: SagaState, around: Surroundings) -> dt.datetime | None:
    """When the instance turns back by itself; None: it does not, or has."""
    if (
        definition.deadline is None
        or around.started_at is None
        or state.status != "running"
        or pivot_done(definition, state)
    ):
        return None
    return around.started_at + dt.timedelta(seconds=definition.deadline)


_WAITS: dict[Status, tuple[Phase, ...]] = {
    "running": ("waiting", "calling", "listening"),
    "compensating": ("calling", "done", "undoing"),
}


def _moments(
    definition: Saga[Any], state: SagaState, held: Collection[str] = ()
) -> Iterator[dt.datetime]:
    """When the steps are due that wait for their time, without those that are being carried out
    and say so when they end.
    """
    unsettled = _unsettled(state)
    for name, step in state.steps.items():
        if step.due is None or step.phase not in _WAITS[state.status] or name in held:
            continue
        # what cannot be undone yet, or begin, waits for others, whatever its own time is
        if step.phase in ("done", "undoing"):
            others = unsettled or something_waits_for(definition, state, name)
        else:
            others = step.phase == "waiting" and not all_is_there_for(definition, state, name)
        if not others:
            yield step.due


def _forward(
    definition: Saga[Any],
    state: SagaState,
    around: Surroundings,
    entries: list[Entry],
    todo: list[ToDo],
    sends: list[Send],
) -> SagaState:
    for rule in definition.steps.values():
        step = state.steps[rule.name]
        if (rule.name, "do") in around.in_flight or not _is_due(step, around):
            continue
        if step.phase == "waiting" and all(state.steps[d].phase in OVER for d in rule.after):
            state = _begin(definition, state, rule, around, entries, todo, sends)
        elif step.phase == "calling" and rule.kind == "command":
            if rule.retry.exhausted(step.counted(step.attempts)):
                state = unanswered(definition, state, rule, entries)
            else:
                state = send(definition, state, rule, "do", around, entries, sends)
        elif step.phase == "calling" and _has_room(definition, around, todo):
            state = calls.settle(definition, state, rule, around, entries, todo)
        elif step.phase == "listening" and step.heard:
            state = _listen(definition, state, rule, around, entries)
        elif step.phase == "listening":
            state = _heard_nothing(definition, state, rule, entries)
        if state.status != "running":
            return state
    return state


def _begin(
    definition: Saga[Any],
    state: SagaState,
    rule: Step,
    around: Surroundings,
    entries: list[Entry],
    todo: list[ToDo],
    sends: list[Send],
) -> SagaState:
    """All that the step waits for is over."""
    step = state.steps[rule.name]
    if rule.when is not None and not step.chosen:
        state = _choose(definition, state, rule, entries)
        step = state.steps[rule.name]
        if state.status != "running" or step.phase != "waiting":
            return state
    if rule.kind == "command":
        return send(definition, state, rule, "do", around, entries, sends)
    if rule.kind != "action":
        return _listen(definition, state, rule, around, entries)
    if _has_room(definition, around, todo):
        if rule.external:
            return calls.call(definition, state, rule, "do", around, entries, todo)
        todo.append(Run(rule.name, "do", step.attempts + 1))
    return state


def _listen(
    definition: Saga[Any], state: SagaState, rule: Step, around: Surroundings, entries: list[Entry]
) -> SagaState:
    """The step begins to wait; or is done at once, if its event was there before."""
    step = state.steps[rule.name]
    if step.early_no is not None:
        return fail(definition, state, rule.name, 0, step.early_no, entries, None, code="failure")
    if step.early is not None:
        try:
            return finish(
                definition, state, rule.name, step.early, entries, "its event came early"
            )
        except MessageRefused as refused:  # it did when it came; the data has changed since
            reason = f"what its event brought does not fit ({refused.path})"
            return fail(definition, state, rule.name, 0, reason, entries, None, code="unusable")
    try:
        seconds = _time_of(definition, state, rule)
    except Exception as error:  # noqa: BLE001  # users' code
        reason = f"how long to wait could not be told ({type(error).__name__})"
        return fail(definition, state, rule.name, 0, reason, entries, None, code="error")
    due = around.after(seconds)
    entries.append(Entry("RUNNING", rule.name, None, f"waits for {seconds:g} s"))
    return state.with_step(rule.name, phase="listening", due=due)


def _time_of(definition: Saga[Any], state: SagaState, rule: Step) -> float:
    asked = rule.seconds
    seconds = float(asked(definition.load(state.data)) if callable(asked) else asked)
    if not 0 <= seconds < MAX_SECONDS:
        raise ValueError(seconds)
    return seconds


def _heard_nothing(
    definition: Saga[Any], state: SagaState, rule: Step, entries: list[Entry]
) -> SagaState:
    """The time of a step that waits is over."""
    if rule.event is None:
        return finish(definition, state, rule.name, None, entries, None)
    reason = f"no {rule.event.message_class.type_name} came within {rule.seconds:g} s"
    return fail(definition, state, rule.name, 0, reason, entries, None, code="timeout")


def _has_room(definition: Saga[Any], around: Surroundings, todo: list[ToDo]) -> bool:
    return not around.stopping and len(todo) + len(around.in_flight) < definition.max_parallel


def _choose(
    definition: Saga[Any], state: SagaState, rule: Step, entries: list[Entry]
) -> SagaState:
    assert rule.when is not None
    try:
        chosen = bool(rule.when(definition.load(state.data)))
    except Exception as error:  # noqa: BLE001  # users' code
        # type only: what it says may show the data
        reason = f"its when= raised {type(error).__name__}"
        return fail(definition, state, rule.name, 0, reason, entries, None, code="error")
    if chosen:
        return state.with_step(rule.name, chosen=True)
    entries.append(Entry("STEP_SKIPPED", rule.name))
    return state.with_step(rule.name, phase="skipped")


def _backward(
    definition: Saga[Any],
    state: SagaState,
    around: Surroundings,
    entries: list[Entry],
    todo: list[ToDo],
    sends: list[Send],
) -> SagaState:
    for rule in definition.steps.values():
        step = state.steps[rule.name]
        if (
            step.phase != "calling"
            or (rule.name, "do") in around.in_flight
            or any(each.step == rule.name for each in todo)  # it begins just now
            or not _is_due(step, around)
        ):
            continue
        if rule.kind == "command":
            if may_still_be_sent(rule, step):
                state = send(definition, state, rule, "do", around, entries, sends)
            else:
                state = unanswered(definition, state, rule, entries)
        elif _has_room(definition, around, todo):
            state = calls.settle(definition, state, rule, around, entries, todo)
    if _unsettled(state) or any(direction == "do" for _, direction in around.in_flight):
        return state  # let the running settle, then undo
    for rule in reversed(list(definition.steps.values())):
        step = state.steps[rule.name]
        if step.phase not in ("done", "undoing") or (rule.name, "undo") in around.in_flight:
            continue
        if not something_waits_for(definition, state, rule.name):
            state = _undo(definition, state, rule, around, entries, todo, sends)
    if all(s.phase in NOTHING_LEFT for s in state.steps.values()):
        entries.append(Entry("COMPENSATED", None, None, state.reason))
        return replace(state, status="compensated")
    return state


def _unsettled(state: SagaState) -> bool:
    """Whether nobody knows yet what came of a call: nothing is undone before that."""
    return any(step.phase == "calling" for step in state.steps.values())


def _undo(
    definition: Saga[Any],
    state: SagaState,
    rule: Step,
    around: Surroundings,
    entries: list[Entry],
    todo: list[ToDo],
    sends: list[Send],
) -> SagaState:
    """Nothing is left of what depends on the step."""
    step = state.steps[rule.name]
    if rule.compensation is nothing_to_undo:
        entries.append(Entry("STEP_COMPENSATED", rule.name, 0, "nothing to undo"))
        return state.with_step(rule.name, phase="undone", due=None)
    if rule.compensation is None:
        reason = "was carried out, and has no compensation"
        return stick(
            state,
            rule.name,
            "COMPENSATION_FAILED",
            0,
            reason,
            entries,
            code="error",
            undo=True,
        )
    if not _is_due(step, around) or not _has_room(definition, around, todo):
        return state
    if step.phase == "undoing" and rule.compensation_retry.exhausted(step.undo_attempts):
        return calls.lost(state, rule, "undo", entries)
    if (
        step.phase == "undoing"
        and step.undo_attempts
        and (rule.undone == "command" or step.due is None)
    ):
        # the last one was not answered, or its process died: it may have arrived
        state = state.with_step(rule.name, unknown=True)
    if rule.undone == "command":
        return send(definition, state, rule, "undo", around, entries, sends)
    if rule.undone == "external":
        return calls.call(definition, state, rule, "undo", around, entries, todo)
    todo.append(Run(rule.name, "undo", step.undo_attempts + 1))
    return state


def _is_due(step: StepState, around: Surroundings) -> bool:
    return step.due is None or step.due <= around.now
