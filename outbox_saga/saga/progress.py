"""What happens next: `decide(definition, state, what_happened) -> (state', what_to_do)`. Pure.

No clock, no I/O.

Forward: a step starts when all it waits for are done. A business no, or technical failures until
no attempt is left, turn the saga to compensating: what has not started is not started, what runs
settles first, then what was done is undone in reverse order of dependency. An external call whose
outcome is unknown is repeated under its key until it is definite, before anything is undone. What
cannot be undone ends in `stuck`, and holds up only what depends on it.

A process that dies reports nothing. Calls are counted when they begin, so a call that kills its
process ends as one that is never answered. Local steps and questions are counted when they end:
they are charged an attempt for each death from the tenth on, since of all that a process had in
hand only one thing killed it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from outbox_saga.errors import MessageRefused
from outbox_saga.instances import (
    ENDED,
    OVER_FOR_GOOD,
    Entry,
    SagaState,
    StepState,
)
from outbox_saga.payloads import storable
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
    Decision,
    Done,
    Errored,
    Happened,
    NotFound,
    Query,
    Refused,
    Run,
    Surroundings,
    Unusable,
)
from outbox_saga.saga.onward import (
    SETTLING,
    asks_now,
    next_decision,
    settled_in_vain,
    settling_attempt,
)

FATAL_DEATHS = 10  # from so many on, without a report between, each costs an attempt


def initial(definition: Saga[Any], data: dict[str, Any]) -> SagaState:
    """The state of an instance that was just started."""
    return SagaState("running", data, {name: StepState() for name in definition.steps})


def decide(
    definition: Saga[Any], state: SagaState, happened: Happened, around: Surroundings
) -> Decision:
    """The next state of the instance and what to do about it.

    Raises:
        MessageRefused: What a step returned does not fit the saga's data; nothing was decided.
    """
    entries: list[Entry] = []
    if state.parked is not None:
        # whoever decides has the definition
        state = replace(state, parked=None)
        entries.append(Entry("UNPARKED"))
    if isinstance(happened, Done | Refused | Errored) and _is_overtaken(
        definition, state, happened
    ):
        state = _ignored(state, happened, entries)
    elif isinstance(happened, Done):
        state = _done(definition, state, happened, entries)
    elif isinstance(happened, Refused):
        state = _refused(definition, state, happened, entries)
    elif isinstance(happened, Errored):
        state = _errored(definition, state, happened, around, entries)
    elif isinstance(happened, NotFound):
        state = _not_found(definition, state, happened, around, entries)
    elif isinstance(happened, Unusable):
        state = _unusable(definition, state, happened, entries)
    elif happened.deaths >= FATAL_DEATHS:
        state = _charged(definition, state, happened.deaths, around, entries)
    return next_decision(definition, state, around, entries)


# --- taking it in --------------------------------------------------------------------------------


def _done(
    definition: Saga[Any], state: SagaState, happened: Done, entries: list[Entry]
) -> SagaState:
    name, step = happened.step, state.steps[happened.step]
    rule = definition.steps[name]
    if happened.direction == "undo":
        if step.phase not in ("done", "undoing", "stuck"):
            return _ignored(state, happened, entries)
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
        )
    # what has ended undoes nothing by itself
    over = rule.external and state.status in ENDED
    if step.phase == "calling" or (step.phase == "waiting" and not over):
        attempt, started = happened.attempt, happened.started_at
        return finish(
            definition,
            state,
            name,
            happened.added,
            entries,
            None,
            attempt=attempt,
            started_at=started,
        )
    # under one key it is the effect that has been undone; and so is the call that was found done
    same = rule.idempotent or happened.attempt == step.attempts
    undone = step.phase == "undone" and same
    if rule.external and step.phase in ("waiting", "failed", "undone") and not undone:
        # A late success: nobody expected it any more, but the effect is there and must be undone
        data = definition.merge(state.data, happened.added, rule.writes)
        entries.append(
            Entry("STEP_COMPLETED", name, happened.attempt, "late", happened.started_at)
        )
        changes: dict[str, Any] = {"phase": "done", "due": None, "input": None, "unknown": False}
        if step.phase == "undone":
            # another effect than the one that was undone: the other side would take its undoing,
            # under the same key, for that one's
            changes |= {"reopened": step.reopened + 1, "undo_attempts": 0}
        state = state.with_step(name, **changes)
        return replace(turn_back(state, "a late success", entries, code="late"), data=data)
    return _ignored(state, happened, entries)


def _is_overtaken(
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


def _unusable(
    definition: Saga[Any], state: SagaState, happened: Unusable, entries: list[Entry]
) -> SagaState:
    state = _done(definition, state, Done(happened.step, "do", happened.attempt), entries)
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


def arrived(
    definition: Saga[Any], state: SagaState, name: str, brought: Mapping[str, Any] | str
) -> tuple[SagaState, tuple[Entry, ...]]:
    """The state after the event of this step has come; what follows, `decide` says.

    Args:
        brought: The fields of the data that it brings; or why the step fails, if it says that the
            awaited one will not come.

    Raises:
        MessageRefused: They do not fit the saga's data; nothing was decided.
    """
    entries: list[Entry] = []
    step = state.steps[name]
    open_ = not step.heard
    if state.status == "running" and step.phase == "listening":
        if isinstance(brought, str):
            state = fail(definition, state, name, 0, brought, entries, None, code="failure")
        else:
            state = finish(definition, state, name, brought, entries, None)
    elif open_ and (
        (_goes_forward(state) and step.phase == "waiting")
        or (step.phase in ("waiting", "listening") and _may_go_forward(definition, state))
    ):
        # one that listens hears it as soon as the saga goes forward
        state = state.with_step(name, due=None)
        if isinstance(brought, str):
            entries.append(Entry("EVENT_STORED", name, None, brought))
            return state.with_step(name, early_no=brought), tuple(entries)
        definition.merge(state.data, brought, definition.steps[name].writes)
        entries.append(Entry("EVENT_STORED", name, None, "it came before the step began"))
        state = state.with_step(name, early=dict(brought))
    else:
        entries.append(Entry("IGNORED", name, None, "its event came too late, or again"))
    return state, tuple(entries)


def replied(
    definition: Saga[Any],
    state: SagaState,
    happened: Done | Refused,
    generation: int,
    around: Surroundings,
) -> tuple[SagaState, tuple[Entry, ...]]:
    """The state after a participant's answer has come; what follows, `decide` says.

    One that comes late, again, or for something else changes nothing but the history.
    """
    entries: list[Entry] = []
    name = happened.step
    step, rule = state.steps.get(name), definition.steps.get(name)
    asked = rule is not None and rule.asks(happened.direction)
    if (
        step is None
        or rule is None
        or not asked
        or step.key_number(happened.direction) != generation
    ):
        return _ignored(state, happened, entries), tuple(entries)
    if happened.direction == "do" and step.stuck == "do" and step.unknown:
        # the answer that a person was waited for about: it is definite, and the saga goes on
        state = unstuck(state).with_step(name, phase="calling", stuck=None)
    if isinstance(happened, Done):
        try:
            state = _done(definition, state, happened, entries)
        except MessageRefused as refused:
            reason = f"its answer does not fit the saga's data ({refused.path})"
            state = _unusable(definition, state, Unusable(name, happened.attempt, reason), entries)
    elif happened.direction == "do":
        state = _refused(definition, state, happened, entries)
    else:
        # the other side may do what it would not do now: it has not undone anything
        no = Errored(name, "undo", happened.attempt, happened.reason, code="failure")
        state = _errored(definition, state, no, around, entries)
    return state, tuple(entries)


def came_late(
    definition: Saga[Any],
    state: SagaState,
    happened: Done,
    generation: int,
    *,
    usable: bool = True,
) -> tuple[SagaState, tuple[Entry, ...]]:
    """The state after a call has succeeded that was made by whoever had the instance before, and
    what follows, `decide` says.

    If nobody expected it any more, it is undone.

    Args:
        generation: Of the key that it was made under. Under a new one a person has it called
            again because it certainly had not acted; which of both is true, only a person can say.
        usable: Its answer is for the data as it is now; otherwise it is undone.
    """
    entries: list[Entry] = []
    step = state.steps[happened.step]
    if step.generation != generation or step.doubt:
        return _ignored(state, happened, entries), tuple(entries)
    if step.stuck == "do" and definition.steps[happened.step].external:
        # what a person was waited for about is known now
        state = unstuck(state).with_step(happened.step, phase="calling", stuck=None)
    reason = None if usable else "its answer is for the data of an older version"
    try:
        # of one that cannot be used, whether anything comes of it at all
        done = _done(definition, state, happened if usable else _bare(happened), entries)
    except MessageRefused as refused:
        reason, done = f"its answer does not fit the saga's data ({refused.path})", None
    if reason is None or done == state or happened.added is None:
        assert done is not None, "an answer without data cannot be refused"
        return done, tuple(entries)
    unusable = Unusable(happened.step, happened.attempt, reason)
    entries.clear()
    state = _unusable(definition, state, unusable, entries)
    return state, tuple(entries)


def _bare(happened: Done) -> Done:
    return replace(happened, added=None)


def _may_go_forward(definition: Saga[Any], state: SagaState) -> bool:
    """Whether a pivot may be on its way while the saga waits to be undone."""
    return unstuck(state).status == "compensating" and any(
        rule.pivot
        and (
            state.steps[rule.name].phase == "calling"
            or (
                state.steps[rule.name].phase == "waiting"
                and all_is_there_for(definition, state, rule.name)
            )
        )
        for rule in definition.steps.values()
    )


def _goes_forward(state: SagaState) -> bool:
    """Now, or once a person has helped."""
    return state.status == "running" or (
        state.status == "stuck" and state.before is not None and state.before[0] == "running"
    )


def _refused(
    definition: Saga[Any], state: SagaState, happened: Refused, entries: list[Entry]
) -> SagaState:
    step = state.steps[happened.step]
    reason = storable(happened.reason, MAX_REASON)
    if happened.direction == "undo":
        if step.phase not in ("done", "undoing"):
            return _ignored(state, happened, entries)
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
        return _ignored(state, happened, entries)
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


def _errored(
    definition: Saga[Any],
    state: SagaState,
    happened: Errored,
    around: Surroundings,
    entries: list[Entry],
) -> SagaState:
    name, step, rule = happened.step, state.steps[happened.step], definition.steps[happened.step]
    error, attempt = storable(happened.error, MAX_REASON), happened.attempt
    started, code = happened.started_at, happened.code
    seed = f"{around.seed}:{name}:{happened.direction}"

    def wait(seconds: float) -> dt.datetime:
        return around.after(seconds)

    if happened.direction == "undo":
        if step.phase not in ("done", "undoing"):
            return _ignored(state, happened, entries)
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
        return _ignored(state, happened, entries)
    unknown = step.unknown or happened.unknown
    counted = step.counted(attempt)
    if not rule.retry.exhausted(counted):
        entries.append(Entry("STEP_FAILED", name, attempt, _again(error), started, code))
        due = wait(rule.retry.delay(counted, seed=seed))
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


def _charged(
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
        state = _errored(definition, state, failed, around, entries)
    return state


def _not_found(
    definition: Saga[Any],
    state: SagaState,
    happened: NotFound,
    around: Surroundings,
    entries: list[Entry],
) -> SagaState:
    step = state.steps[happened.step]
    if step.phase != "calling":
        return state
    state = state.with_step(happened.step, unknown=False, phase="waiting", due=None)
    error = step.error or "no answer, and the query found nothing"
    failed = Errored(happened.step, "do", step.attempts, error, code="not_done")
    return _errored(definition, state, failed, around, entries)


def _ignored(
    state: SagaState, happened: Done | Refused | Errored, entries: list[Entry]
) -> SagaState:
    kind = type(happened).__name__.lower()
    entries.append(
        Entry("IGNORED", happened.step, happened.attempt, f"{happened.direction} {kind}, too late")
    )
    return state


def _again(error: str) -> str:
    return f"{error} (will be tried again)"
