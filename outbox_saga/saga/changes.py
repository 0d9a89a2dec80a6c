"""Changes of an instance's state that `progress` and `onward` both make, with their history."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from outbox_saga.errors import MessageRefused
from outbox_saga.instances import NOTHING_LEFT, OVER, Direction, Entry, SagaState
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.steps import nothing_to_undo

MAX_REASON = 500  # characters of an error that are kept


def finish(
    definition: Saga[Any],
    state: SagaState,
    name: str,
    added: object,
    entries: list[Entry],
    detail: str | None,
    *,
    attempt: int | None = None,
    started_at: dt.datetime | None = None,
) -> SagaState:
    """The step is done, and the data has what it returned.

    Raises MessageRefused when that does not fit.
    """
    data = definition.merge(state.data, added, definition.steps[name].writes)
    wrote = _wrote(definition, state, name, added)
    entries.append(Entry("STEP_COMPLETED", name, attempt, detail, started_at))
    state = state.with_step(
        name,
        phase="done",
        due=None,
        attempts=max(state.steps[name].attempts, attempt or 0),
        input=None,
        early=None,
        unknown=False,
        error=None,
        wrote=wrote,
        stuck=None,
        doubt=False,
        there=False,
    )
    state = replace(state, data=data)
    return _only_forward(definition, state, entries) if definition.steps[name].pivot else state


def _only_forward(definition: Saga[Any], state: SagaState, entries: list[Entry]) -> SagaState:
    """The pivot was carried out while the saga waited to be undone: nothing may be undone now."""
    if unstuck(state).status != "compensating":
        return state
    state = unstuck(state)
    entries.append(Entry("RUNNING", None, None, "the pivot was carried out"))
    for name, step in state.steps.items():
        if step.phase == "undone" and definition.steps[name].compensation is nothing_to_undo:
            state = state.with_step(name, phase="done")  # it is there as it was
        elif step.phase == "done" and step.unknown:  # its command, which was to be undone
            state = _beside_pivot(state, name, "nobody knows whether it was done", entries)
        elif step.there and (step.phase == "done" or step.stuck == "undo"):
            state = _beside_pivot(state, name, str(step.error), entries)
        elif step.phase == "stuck" and step.stuck == "undo" and not step.unknown:
            state = state.with_step(name, phase="done", stuck=None)  # nothing of it was undone
        elif step.phase == "stuck" and step.stuck == "undo":
            state = _in_doubt(state, name, entries)
        elif step.phase == "failed":
            state = _beside_pivot(state, name, str(step.error), entries)
    return replace(state, status="running", reason=None)


def _beside_pivot(state: SagaState, name: str, why: str, entries: list[Entry]) -> SagaState:
    attempts, told = state.steps[name].attempts, f"beside the pivot: {why}"
    return stick(state, name, "STEP_FAILED", attempts, told, entries, code="beside_pivot")


def _in_doubt(state: SagaState, name: str, entries: list[Entry]) -> SagaState:
    """Its effect has to be there, and a call to undo it may have arrived."""
    state = _beside_pivot(state, name, "nobody knows whether it was undone", entries)
    return state.with_step(name, doubt=True, unknown=False)


def _to_be_done_anew(state: SagaState, name: str, entries: list[Entry]) -> SagaState:
    """Under the old key the other side would say again what it said of the effect that is gone."""
    state = _beside_pivot(state, name, "it was undone by then", entries)
    step = state.steps[name]
    return state.with_step(
        name, generation=step.generation + 1, input=None, unknown=False, granted=step.attempts
    )


def without_what_was_undone(state: SagaState, entries: list[Entry]) -> SagaState:
    """A saga that can only go forward and has nothing to go on with: of what was undone before the
    pivot was carried out, or may have been, a person decides.
    """
    for name, step in state.steps.items():
        if step.phase == "undone" and step.doubt:
            state = _in_doubt(state, name, entries)  # a person has left its undoing out
        elif step.phase == "undone":
            state = _to_be_done_anew(state, name, entries)
        elif step.phase == "undoing":
            state = _in_doubt(state, name, entries)
    return state


def _wrote(definition: Saga[Any], state: SagaState, name: str, added: object) -> tuple[str, ...]:
    """The fields that a step has returned, kept where a parallel one might return them, too.

    Raises MessageRefused if one has: which of both would stay depended on who came last.
    """
    parallel = definition.parallel_to(name)
    fields = definition.fields_of(added) if parallel else None
    if fields is None:
        return ()
    for other in sorted(parallel):
        for field in state.steps[other].wrote:
            if field in fields:
                raise MessageRefused(
                    f"$.{field}",
                    f"steps {other} and {name} run in parallel and both return it; order them by "
                    "after=, or let each return a field of its own",
                )
    return tuple(sorted(fields))


def turn_back(state: SagaState, reason: str, entries: list[Entry], *, code: str) -> SagaState:
    """From now on it is undone; also where a person was waited for, about another step."""
    if state.status == "compensating":
        return state
    entries.append(Entry("COMPENSATION_STARTED", None, None, reason, code=code))
    known = state.reason if state.before is None else state.before[1]
    return replace(state, status="compensating", reason=known or reason, before=None)


def stick(
    state: SagaState,
    name: str,
    transition: str,
    attempt: int,
    reason: str,
    entries: list[Entry],
    *,
    code: str,
    undo: bool = False,
) -> SagaState:
    """This step needs a person, and holds up only what depends on it."""
    entries.append(Entry(transition, name, attempt, f"stuck: {reason}", code=code))
    begun = max(attempt, state.steps[name].attempts)  # what is reported may be an earlier one
    counted: dict[str, Any] = {"undo_attempts": attempt} if undo else {"attempts": begun}
    at: Direction = "undo" if undo else "do"
    return state.with_step(name, phase="stuck", stuck=at, due=None, error=reason, **counted)


def fail(
    definition: Saga[Any],
    state: SagaState,
    name: str,
    attempt: int,
    reason: str,
    entries: list[Entry],
    started_at: dt.datetime | None,
    *,
    code: str,
) -> SagaState:
    """The step is definitely not done, and will not be tried again."""
    if pivot_done(definition, state):
        told = f"after the pivot: {reason}"
        state = state.with_step(name, unknown=False)
        return stick(state, name, "STEP_FAILED", attempt, told, entries, code=code)
    entries.append(Entry("STEP_FAILED", name, attempt, reason, started_at, code))
    state = state.with_step(
        name,
        phase="failed",
        attempts=max(attempt, state.steps[name].attempts),
        due=None,
        unknown=False,
        error=reason,
    )
    return turn_back(state, f"{name}: {reason}", entries, code=code)


def something_waits_for(definition: Saga[Any], state: SagaState, name: str) -> bool:
    """Whether anything is left of a step that depends on this one, past those left out."""
    return any(
        state.steps[each.name].phase not in NOTHING_LEFT
        or (
            state.steps[each.name].phase == "skipped"
            and something_waits_for(definition, state, each.name)
        )
        for each in definition.steps.values()
        if name in each.after
    )


def all_is_there_for(definition: Saga[Any], state: SagaState, name: str) -> bool:
    """Whether what the step waits for is over, and what those wait for that were left out."""
    return all(
        state.steps[each].phase in OVER
        and (state.steps[each].phase != "skipped" or all_is_there_for(definition, state, each))
        for each in definition.steps[name].after
    )


def pivot_done(definition: Saga[Any], state: SagaState) -> bool:
    """Whether it can only go forward. A pivot that nobody answered, and which is to be undone, is
    not known to be carried out; one of which the answer is of no use is.
    """
    pivots = (state.steps[s.name] for s in definition.steps.values() if s.pivot)
    return any(p.there or (p.phase == "done" and not p.unknown) for p in pivots)


def unstuck(state: SagaState) -> SagaState:
    """As it was before it got stuck."""
    if state.status != "stuck":
        return state
    status, reason = state.before or ("compensating", state.reason)
    return replace(state, status=status, reason=reason, before=None)
