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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from outbox_saga.instances import ENDED, Direction, Entry, SagaState, StepState
from outbox_saga.payloads import storable
from outbox_saga.retries import Retry
from outbox_saga.saga.definition import Saga, Step, nothing_to_undo

# after a step's own retries, an unknown outcome is settled on this longer policy
SETTLING = Retry(max_attempts=24, initial=1.0, max_delay=60.0)
MAX_REASON = 500  # characters of an error that are kept
FATAL_DEATHS = 10  # from so many on, without a report between, each costs an attempt


# --- what happened -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resumed:
    """Somebody took the instance up: at its start, when a moment came, or after a crash.

    Args:
        deaths: Owners that died with it, one after another, since anything was reported; 0 unless
            the last one did.
    """

    deaths: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """An action (or a compensation) succeeded; `added` is merged into the data."""

    step: str
    direction: Direction
    attempt: int
    added: Any = None
    started_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A business no: definitely not done, and no use in trying again."""

    step: str
    direction: Direction
    attempt: int
    reason: str
    started_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Errored:
    """A technical failure. `unknown`: it may have been done all the same."""

    step: str
    direction: Direction
    attempt: int
    error: str
    unknown: bool = False
    started_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class NotFound:
    """The query said, late enough to be believed, that the call was never carried out."""

    step: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Unusable:
    """An external step was done, but its answer does not fit the saga's data.

    It is undone with the rest.
    """

    step: str
    attempt: int
    reason: str


Happened: TypeAlias = Resumed | Done | Refused | Errored | NotFound | Unusable


# --- what to do ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """Run a local step: its effect and the transition in one transaction."""

    step: str
    direction: Direction
    attempt: int


@dataclass(frozen=True, slots=True)
class Call:
    """Call outside, under the key of this step and direction; the intent is committed."""

    step: str
    direction: Direction
    attempt: int


@dataclass(frozen=True, slots=True)
class Query:
    """Ask the other side whether it acted."""

    step: str
    attempt: int


ToDo: TypeAlias = Run | Call | Query
Flight: TypeAlias = tuple[str, Direction]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What `decide` must know and may not ask for.

    Args:
        now: By the database's clock.
        in_flight: Steps that this process is carrying out, without the one that is being reported.
        lease: Seconds after which another process takes the instance over.
        seed: Of the jitter: the instance's id.
    """

    now: dt.datetime
    in_flight: frozenset[Flight] = frozenset()
    lease: float = 30.0
    seed: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The next state, its history, and what to do.

    Args:
        due: When somebody has to look again; None once the instance has ended.
        busy: Something is to be done now, or is being done: whoever decided keeps the lease.
    """

    state: SagaState
    entries: tuple[Entry, ...]
    todo: tuple[ToDo, ...]
    due: dt.datetime | None
    busy: bool = False


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
    if isinstance(happened, Done):
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
    return _next(definition, state, around, entries)


# --- taking it in --------------------------------------------------------------------------------


def _done(
    definition: Saga[Any], state: SagaState, happened: Done, entries: list[Entry]
) -> SagaState:
    name, step = happened.step, state.steps[happened.step]
    if happened.direction == "undo":
        if step.phase not in ("done", "undoing", "stuck"):
            return _ignored(state, happened, entries)
        entries.append(
            Entry("STEP_COMPENSATED", name, happened.attempt, None, happened.started_at)
        )
        return state.with_step(
            name, phase="undone", due=None, undo_attempts=happened.attempt, input=None, error=None
        )
    if step.phase in ("waiting", "calling"):
        data = definition.merge(state.data, happened.added)
        entries.append(Entry("STEP_COMPLETED", name, happened.attempt, None, happened.started_at))
        state = state.with_step(
            name,
            phase="done",
            due=None,
            attempts=max(step.attempts, happened.attempt),
            input=None,
            unknown=False,
            error=None,
        )
        state = replace(state, data=data)
        return _only_forward(state, entries) if definition.steps[name].pivot else state
    if step.phase in ("failed", "undone") and definition.steps[name].external:
        # A late success: nobody expected it any more, but the effect is there and must be undone
        data = definition.merge(state.data, happened.added)
        entries.append(
            Entry("STEP_COMPLETED", name, happened.attempt, "late", happened.started_at)
        )
        state = state.with_step(name, phase="done", due=None, input=None)
        return replace(_compensating(state, "a late success", entries), data=data)
    return _ignored(state, happened, entries)


def _unusable(
    definition: Saga[Any], state: SagaState, happened: Unusable, entries: list[Entry]
) -> SagaState:
    state = _done(definition, state, Done(happened.step, "do", happened.attempt), entries)
    if _pivot_done(definition, state):
        # done, and not to be undone any more: what it answered, a person has to supply
        return _stuck(
            state, happened.step, "STEP_FAILED", happened.attempt, happened.reason, entries
        )
    return _compensating(state, f"{happened.step}: {happened.reason}", entries)


def _only_forward(state: SagaState, entries: list[Entry]) -> SagaState:
    """The pivot was carried out while the saga waited to be undone: nothing may be undone now."""
    if state.status != "compensating":
        return state
    entries.append(Entry("RUNNING", None, None, "the pivot was carried out"))
    for name, step in state.steps.items():
        if step.phase == "failed":
            reason = f"beside the pivot: {step.error}"
            state = _stuck(state, name, "STEP_FAILED", step.attempts, reason, entries)
    return replace(state, status="running", reason=None)


def _refused(
    definition: Saga[Any], state: SagaState, happened: Refused, entries: list[Entry]
) -> SagaState:
    step = state.steps[happened.step]
    reason = storable(happened.reason, MAX_REASON)
    if happened.direction == "undo":
        if step.phase not in ("done", "undoing"):
            return _ignored(state, happened, entries)
        return _stuck(
            state,
            happened.step,
            "COMPENSATION_FAILED",
            happened.attempt,
            reason,
            entries,
            undo=True,
        )
    if step.phase not in ("waiting", "calling"):
        return _ignored(state, happened, entries)
    return _failed(
        definition, state, happened.step, happened.attempt, reason, entries, happened.started_at
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
    seed = f"{around.seed}:{name}:{happened.direction}"

    def wait(seconds: float) -> dt.datetime:
        return around.now + dt.timedelta(seconds=seconds)

    if happened.direction == "undo":
        if step.phase not in ("done", "undoing"):
            return _ignored(state, happened, entries)
        if rule.compensation_retry.exhausted(attempt):
            reason = f"gave up after {attempt} attempts: {error}"
            return _stuck(state, name, "COMPENSATION_FAILED", attempt, reason, entries, undo=True)
        entries.append(
            Entry("COMPENSATION_FAILED", name, attempt, _again(error), happened.started_at)
        )
        return state.with_step(
            name,
            undo_attempts=attempt,
            due=wait(rule.compensation_retry.delay(attempt, seed=seed)),
            error=error,
        )
    if step.phase not in ("waiting", "calling"):
        return _ignored(state, happened, entries)
    unknown = step.unknown or happened.unknown
    if not rule.retry.exhausted(attempt):
        entries.append(Entry("STEP_FAILED", name, attempt, _again(error), happened.started_at))
        due = wait(rule.retry.delay(attempt, seed=seed))
    elif not unknown:
        reason = f"gave up after {attempt} attempts: {error}"
        return _failed(definition, state, name, attempt, reason, entries, happened.started_at)
    else:
        settling = attempt - rule.retry.max_attempts + 1
        if SETTLING.exhausted(settling):
            reason = f"outcome unknown after {attempt} attempts: {error}"
            return _stuck(state, name, "STEP_FAILED", attempt, reason, entries)
        entries.append(Entry("STEP_FAILED", name, attempt, _again(error), happened.started_at))
        due = wait(SETTLING.delay(settling, seed=seed))
    if unknown and not rule.idempotent and step.due is not None:
        due = max(
            due, step.due
        )  # the query is not believed before the call can no longer be on its way
    phase = "calling" if unknown else "waiting"
    return state.with_step(
        name, phase=phase, attempts=attempt, due=due, unknown=unknown, error=error
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
    for todo in _next(definition, state, around, []).todo:
        failed: Errored
        if isinstance(todo, Run):
            failed = Errored(todo.step, todo.direction, todo.attempt, error)
        elif isinstance(todo, Query):
            failed = Errored(todo.step, "do", todo.attempt + 1, error, unknown=True)
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
    return _errored(
        definition, state, Errored(happened.step, "do", step.attempts, error), around, entries
    )


def _failed(
    definition: Saga[Any],
    state: SagaState,
    name: str,
    attempt: int,
    reason: str,
    entries: list[Entry],
    started_at: dt.datetime | None,
) -> SagaState:
    if _pivot_done(definition, state):
        return _stuck(state, name, "STEP_FAILED", attempt, f"after the pivot: {reason}", entries)
    entries.append(Entry("STEP_FAILED", name, attempt, reason, started_at))
    state = state.with_step(
        name, phase="failed", attempts=attempt, due=None, unknown=False, error=reason, input=None
    )
    return _compensating(state, f"{name}: {reason}", entries)


def _compensating(state: SagaState, reason: str, entries: list[Entry]) -> SagaState:
    if state.status == "compensating":
        return state
    entries.append(Entry("COMPENSATION_STARTED", None, None, reason))
    return replace(state, status="compensating", reason=state.reason or reason)


def _stuck(
    state: SagaState,
    name: str,
    transition: str,
    attempt: int,
    reason: str,
    entries: list[Entry],
    *,
    undo: bool = False,
) -> SagaState:
    entries.append(Entry(transition, name, attempt, f"stuck: {reason}"))
    counted = {"undo_attempts": attempt} if undo else {"attempts": attempt}
    return state.with_step(name, phase="stuck", due=None, error=reason, **counted)


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


def _pivot_done(definition: Saga[Any], state: SagaState) -> bool:
    return any(s.pivot and state.steps[s.name].phase == "done" for s in definition.steps.values())


# --- going on ------------------------------------------------------------------------------------


def _next(
    definition: Saga[Any], state: SagaState, around: Surroundings, entries: list[Entry]
) -> Decision:
    todo: list[ToDo] = []
    if state.status == "running":
        if all(s.phase == "done" for s in state.steps.values()):
            entries.append(Entry("COMPLETED"))
            return Decision(replace(state, status="completed"), tuple(entries), (), None)
        state = _forward(definition, state, around, entries, todo)
    elif state.status == "compensating":
        state = _backward(definition, state, around, entries, todo)
    if state.status in ENDED:
        return Decision(state, tuple(entries), (), None)
    if todo or around.in_flight:
        return Decision(state, tuple(entries), tuple(todo), around.now, busy=True)
    due = min(_moments(state), default=None)
    if due is None:
        # nothing runs, nothing is due, nothing can start: only a person can help
        reason = "; ".join(f"{n}: {s.error}" for n, s in state.steps.items() if s.phase == "stuck")
        entries.append(Entry("FAILED", None, None, reason))
        return Decision(replace(state, status="stuck", reason=reason), tuple(entries), (), None)
    return Decision(state, tuple(entries), (), due)


def _moments(state: SagaState) -> Iterator[dt.datetime]:
    for step in state.steps.values():
        waits = (
            ("waiting", "calling") if state.status == "running" else ("calling", "done", "undoing")
        )
        if step.due is not None and step.phase in waits:
            yield step.due


def _forward(
    definition: Saga[Any],
    state: SagaState,
    around: Surroundings,
    entries: list[Entry],
    todo: list[ToDo],
) -> SagaState:
    for rule in definition.steps.values():
        step = state.steps[rule.name]
        if (rule.name, "do") in around.in_flight or not _is_due(step, around):
            continue
        if step.phase == "waiting" and all(state.steps[d].phase == "done" for d in rule.after):
            if rule.external:
                state = _call(state, rule, "do", around, entries, todo)
            else:
                todo.append(Run(rule.name, "do", step.attempts + 1))
        elif step.phase == "calling":
            state = _settle(state, rule, around, entries, todo)
    return state


def _backward(
    definition: Saga[Any],
    state: SagaState,
    around: Surroundings,
    entries: list[Entry],
    todo: list[ToDo],
) -> SagaState:
    for rule in definition.steps.values():
        step = state.steps[rule.name]
        if (
            step.phase == "calling"
            and (rule.name, "do") not in around.in_flight
            and _is_due(step, around)
        ):
            state = _settle(state, rule, around, entries, todo)
    unsettled = any(s.phase == "calling" for s in state.steps.values())
    if unsettled or any(direction == "do" for _, direction in around.in_flight):
        return state  # let the running settle, then undo
    for rule in reversed(list(definition.steps.values())):
        step = state.steps[rule.name]
        if step.phase not in ("done", "undoing") or (rule.name, "undo") in around.in_flight:
            continue
        dependents = [s.name for s in definition.steps.values() if rule.name in s.after]
        if any(state.steps[d].phase not in ("waiting", "failed", "undone") for d in dependents):
            continue
        if rule.compensation is nothing_to_undo:
            state = state.with_step(rule.name, phase="undone", due=None)
            entries.append(Entry("STEP_COMPENSATED", rule.name, 0, "nothing to undo"))
        elif rule.compensation is None:
            reason = "was carried out, and has no compensation"
            state = _stuck(state, rule.name, "COMPENSATION_FAILED", 0, reason, entries, undo=True)
        elif _is_due(step, around):
            if step.phase == "undoing" and rule.compensation_retry.exhausted(step.undo_attempts):
                state = _lost(state, rule, "undo", entries)
            elif rule.external:
                state = _call(state, rule, "undo", around, entries, todo)
            else:
                todo.append(Run(rule.name, "undo", step.undo_attempts + 1))
    if all(s.phase in ("waiting", "failed", "undone") for s in state.steps.values()):
        entries.append(Entry("COMPENSATED", None, None, state.reason))
        return replace(state, status="compensated")
    return state


def _is_due(step: StepState, around: Surroundings) -> bool:
    return step.due is None or step.due <= around.now


def _call(
    state: SagaState,
    rule: Step,
    direction: Direction,
    around: Surroundings,
    entries: list[Entry],
    todo: list[ToDo],
) -> SagaState:
    """The intent: the attempt and its input are committed before the call is made."""
    step = state.steps[rule.name]
    # every attempt gets what the first one got: the same key with another request is an error at
    # the other side
    changes: dict[str, Any] = {"input": step.input if _open(step, direction) else dict(state.data)}
    if direction == "do":
        changes |= {"phase": "calling", "attempts": step.attempts + 1}
        entries.append(Entry("RUNNING", rule.name, step.attempts + 1))
        todo.append(Call(rule.name, "do", step.attempts + 1))
    else:
        changes |= {"phase": "undoing", "undo_attempts": step.undo_attempts + 1}
        entries.append(Entry("COMPENSATING_STEP", rule.name, step.undo_attempts + 1))
        todo.append(Call(rule.name, "undo", step.undo_attempts + 1))
    changes["due"] = (
        None
        if rule.idempotent or direction == "undo"
        else around.now + dt.timedelta(seconds=around.lease + rule.timeout)
    )
    return state.with_step(rule.name, **changes)


def _open(step: StepState, direction: Direction) -> bool:
    if direction == "undo":
        return step.phase == "undoing" and step.input is not None
    return step.input is not None


def _settle(
    state: SagaState, rule: Step, around: Surroundings, entries: list[Entry], todo: list[ToDo]
) -> SagaState:
    """A call whose outcome nobody knows.

    Ask again under the same key, or ask whether it was carried out.
    """
    step = state.steps[rule.name]
    if rule.idempotent:
        if SETTLING.exhausted(step.attempts - rule.retry.max_attempts + 1):
            return _lost(state, rule, "do", entries)
        return _call(state.with_step(rule.name, unknown=True), rule, "do", around, entries, todo)
    if not step.unknown:  # a question changes nothing; that its caller died does
        entries.append(Entry("RUNNING", rule.name, step.attempts, "nobody knows its outcome"))
    todo.append(Query(rule.name, step.attempts))
    return state.with_step(rule.name, unknown=True)


def _lost(state: SagaState, rule: Step, direction: Direction, entries: list[Entry]) -> SagaState:
    """No call is left, and nobody knows what came of the last one."""
    step = state.steps[rule.name]
    attempt = step.undo_attempts if direction == "undo" else step.attempts
    error = step.error
    if step.due is None:  # begun, and nothing was reported
        before = f" (before: {error})" if error is not None else ""
        error = f"its process died or stood still at the last one{before}"
    reason = storable(f"outcome unknown after {attempt} attempts: {error}", MAX_REASON)
    if direction == "undo":
        return _stuck(state, rule.name, "COMPENSATION_FAILED", attempt, reason, entries, undo=True)
    return _stuck(state, rule.name, "STEP_FAILED", attempt, reason, entries)
