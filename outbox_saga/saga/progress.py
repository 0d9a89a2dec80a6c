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

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from outbox_saga.errors import MessageRefused
from outbox_saga.instances import (
    Entry,
    SagaState,
    StepState,
)
from outbox_saga.saga import outcomes
from outbox_saga.saga.changes import (
    all_is_there_for,
    fail,
    finish,
    unstuck,
)
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.happened import (
    Decision,
    Done,
    Errored,
    Happened,
    NotFound,
    Refused,
    Surroundings,
    Unusable,
)
from outbox_saga.saga.onward import (
    next_decision,
)


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
    if isinstance(happened, Done | Refused | Errored) and outcomes.is_overtaken(
        definition, state, happened
    ):
        state = outcomes.ignored(state, happened, entries)
    elif isinstance(happened, Done):
        state = outcomes.done(definition, state, happened, entries)
    elif isinstance(happened, Refused):
        state = outcomes.refused(definition, state, happened, entries)
    elif isinstance(happened, Errored):
        state = outcomes.errored(definition, state, happened, around, entries)
    elif isinstance(happened, NotFound):
        state = outcomes.not_found(definition, state, happened, around, entries)
    elif isinstance(happened, Unusable):
        state = outcomes.unusable(definition, state, happened, entries)
    elif happened.deaths >= outcomes.FATAL_DEATHS:
        state = outcomes.charged(definition, state, happened.deaths, around, entries)
    return next_decision(definition, state, around, entries)


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
        return outcomes.ignored(state, happened, entries), tuple(entries)
    if happened.direction == "do" and step.stuck == "do" and step.unknown:
        # the answer that a person was waited for about: it is definite, and the saga goes on
        state = unstuck(state).with_step(name, phase="calling", stuck=None)
    elif happened.direction == "do" and step.phase == "done" and step.unknown:
        state = state.with_step(name, phase="calling")  # it was to be undone, whatever came of it
    if isinstance(happened, Done):
        try:
            state = outcomes.done(definition, state, happened, entries)
        except MessageRefused as refused:
            reason = f"its answer does not fit the saga's data ({refused.path})"
            state = outcomes.unusable(
                definition, state, Unusable(name, happened.attempt, reason), entries
            )
    elif happened.direction == "do":
        state = outcomes.refused(definition, state, happened, entries)
    else:
        # the other side may do what it would not do now: it has not undone anything
        no = Errored(name, "undo", happened.attempt, happened.reason, code="failure")
        state = state.with_step(name, unknown=False)
        state = outcomes.errored(definition, state, no, around, entries)
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
    if step.generation != generation or (step.doubt and step.stuck == "do"):
        return outcomes.ignored(state, happened, entries), tuple(entries)
    if step.stuck == "do" and definition.steps[happened.step].external:
        # what a person was waited for about is known now
        state = unstuck(state).with_step(happened.step, phase="calling", stuck=None)
    reason = None if usable else "its answer is for the data of an older version"
    try:
        # of one that cannot be used, whether anything comes of it at all
        done = outcomes.done(definition, state, happened if usable else _bare(happened), entries)
    except MessageRefused as refused:
        reason, done = f"its answer does not fit the saga's data ({refused.path})", None
    if reason is None or done == state or happened.added is None:
        assert done is not None, "an answer without data cannot be refused"
        return done, tuple(entries)
    unusable = Unusable(happened.step, happened.attempt, reason)
    entries.clear()
    state = outcomes.unusable(definition, state, unusable, entries)
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
