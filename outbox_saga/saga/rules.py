"""The rules a definition keeps; each refusal names the rule and the mend."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import combinations
from typing import Any

from outbox_saga.errors import DefinitionError
from outbox_saga.messages import Command, Event
from outbox_saga.retries import Retry
from outbox_saga.saga.steps import Step, Undo, all_before, nothing_to_undo

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,99}")


def is_command(given: object) -> bool:
    """Whether a command carries the step out, and not a function."""
    return inspect.isclass(given) and issubclass(given, Command)


def check_step(
    where: str, step: Step, others: Mapping[str, Step], fields: Collection[str]
) -> None:
    """The step by itself, and among those before it.

    Args:
        where: Which saga and step, for the refusal.
        others: The steps before it.
        fields: Of the saga's data.

    Raises:
        DefinitionError: A rule is broken.
    """
    if not NAME.fullmatch(step.name):
        raise DefinitionError(f"{where}: use letters, digits, '_' and '-' in a step's name")
    if step.name in others:
        raise DefinitionError(
            f"{where}: two steps of one name; histories could not tell them apart"
        )
    if not callable(step.action):
        raise DefinitionError(f"{where}: the action must be a function, not {step.action!r}")
    if not 0 < step.timeout < float("inf"):
        raise DefinitionError(
            f"{where}: timeout is {step.timeout}; give seconds, greater than 0 and finite"
        )
    _check_compensation(where, step)
    if step.external and not step.idempotent and step.query is None:
        raise DefinitionError(
            f"{where}: an external step needs idempotent=True (the other side acts once per key) "
            "or query= (asks whether it acted), or an unknown outcome could never be settled"
        )
    if not step.external and (step.idempotent or step.query is not None):
        raise DefinitionError(
            f"{where}: idempotent= and query= are for external steps; a local step commits with "
            "the saga"
        )
    _check_waiting(where, step)
    _check_command(where, step, fields)
    if step.when is not None and not callable(step.when):
        raise DefinitionError(f"{where}: when= must be a function of the data, not {step.when!r}")
    for other in step.after:
        if other not in others:
            raise DefinitionError(
                f"{where}: after={other!r} names no earlier step; define that step first (which "
                "also rules out cycles)"
            )
    for kind, names in (("reads", step.reads), ("writes", step.writes)):
        for name in sorted(names or ()):
            if name not in fields:
                raise DefinitionError(
                    f"{where}: {kind}={name!r} is no field of the data; there are "
                    f"{', '.join(sorted(fields))}"
                )


def check_undoing(where: str, undo: Undo, retry: Retry | None, timeout: float | None) -> None:
    """What says how a step is undone says so of one that is.

    Args:
        retry: Of the compensation, as given.
        timeout: Of the compensation, as given.

    Raises:
        DefinitionError: It is of no use.
    """
    by: object = undo.by
    if (by is None or by is nothing_to_undo) and not (retry is None and timeout is None):
        raise DefinitionError(
            f"{where}: compensation_retry= and compensation_timeout= are for a compensation, and "
            "this step has none; leave them out"
        )


def _check_compensation(where: str, step: Step) -> None:
    if not 0 < step.undo_timeout < float("inf"):
        raise DefinitionError(
            f"{where}: compensation_timeout is {step.undo_timeout}; give seconds, greater than 0 "
            "and finite"
        )
    if step.compensation is not None and not (
        callable(step.compensation) or step.compensation is nothing_to_undo
    ):
        raise DefinitionError(
            f"{where}: the compensation must be a function, a Command class or nothing_to_undo, "
            f"not {step.compensation!r}"
        )
    if step.breaker is not None and not (step.external or step.undone == "external"):
        raise DefinitionError(
            f"{where}: a breaker guards calls outside this database; make the step external=True, "
            "or its compensation external(…), or leave breaker= out"
        )


def _check_waiting(where: str, step: Step) -> None:
    awaited: Any  # what users gave may be anything
    for awaited in () if step.event is None else step.event.classes:
        if not (inspect.isclass(awaited) and issubclass(awaited, Event)):
            raise DefinitionError(f"{where}: it can wait for an Event class, not {awaited!r}")
        if awaited.topic is None:
            raise DefinitionError(
                f"{where}: {awaited.__name__} has no topic, so it comes from nowhere; declare "
                f'`class {awaited.__name__}(Event, topic="…")`'
            )
    if step.kind == "action" or callable(step.seconds):
        return
    if step.kind == "command":
        if not 0 < step.seconds < float("inf"):
            raise DefinitionError(
                f"{where}: timeout is {step.seconds}; give seconds, greater than 0 and finite"
            )
        return
    at_once = step.kind == "timer" and step.seconds == 0
    if not at_once and not 0 < step.seconds < float("inf"):
        raise DefinitionError(
            f"{where}: {step.seconds} is no time to wait; give seconds, more than 0 and finite"
            + (", 0, or a function of the data that returns them" if step.kind == "timer" else "")
        )


def _check_command(where: str, step: Step, fields: Collection[str]) -> None:
    if step.command is None:
        return
    if step.external and step.kind == "command":
        raise DefinitionError(
            f"{where}: a command is carried out by another service; external= is for calls that "
            "this one makes"
        )
    for command in (step.command.do, step.command.undo):
        if command is None:
            continue
        if command.topic is None:
            raise DefinitionError(
                f"{where}: {command.__name__} has no topic, so it goes nowhere; declare "
                f'`class {command.__name__}(Command, topic="…")`'
            )
        for name, field in command.model_fields.items():
            if field.is_required() and name not in fields:
                raise DefinitionError(
                    f"{where}: {command.__name__} needs {name!r}, which is no field of the data; "
                    "add it there, or give the command's field a default"
                )


def check_graph(saga: str, steps: Mapping[str, Step]) -> None:
    """All steps together.

    Raises:
        DefinitionError: A rule is broken.
    """
    if not steps:
        raise DefinitionError(f"saga {saga}: no steps; add at least one")
    pivots = [s.name for s in steps.values() if s.pivot]
    if len(pivots) > 1:
        raise DefinitionError(f"saga {saga}: pivots {pivots}; there is one point of no return")
    for step in steps.values():
        where = f"saga {saga}, step {step.name!r}"
        after = any(p in all_before(steps, step.name) for p in pivots)
        # one that is merely parallel to the pivot may be done before it, and then be undone
        if step.compensation is None and not (after or step.pivot):
            raise DefinitionError(
                f"{where}: no compensation; give compensation=, or say "
                "compensation=nothing_to_undo"
            )
        if step.pivot and step.when is not None:
            raise DefinitionError(
                f"{where}: a pivot with when= might be left out, and there would be no point of "
                "no return; give when= to the steps behind it"
            )
        if is_beyond_pivot(steps, step.name) and step.retry.max_attempts < 2:
            raise DefinitionError(
                f"{where}: a step not before the pivot can only go forward; give it "
                "retry=Retry(max_attempts=…) of 2 or more"
            )
    for one, other in parallel_pairs(steps):
        for field in sorted(_contested(steps[one], steps[other])):
            raise DefinitionError(
                f"saga {saga}, steps {one!r} and {other!r}: they run in parallel, and one of them "
                f"writes {field!r}, which the other reads or writes; order them by after="
            )


def is_beyond_pivot(steps: Mapping[str, Step], name: str) -> bool:
    """True for a step that is not before the pivot (parallel ones too).

    It is never undone, only retried.
    """
    pivots = [s.name for s in steps.values() if s.pivot]
    return any(name != p and name not in all_before(steps, p) for p in pivots)


def parallel_pairs(steps: Mapping[str, Step]) -> Iterator[tuple[str, str]]:
    """Pairs of steps of which neither waits for the other."""
    before = {name: all_before(steps, name) for name in steps}
    for one, other in combinations(steps, 2):
        if one not in before[other] and other not in before[one]:
            yield one, other


def touched_before(step: Step, others: Mapping[str, Step]) -> tuple[str, ...]:
    """The steps that this one has to wait for, by the fields that each reads and writes.

    Only the last ones: what they wait for themselves is left out.
    """
    found = [name for name, other in others.items() if _contested(step, other)]
    implied = {early for name in found for early in all_before(others, name)}
    return tuple(name for name in found if name not in implied)


def _contested(one: Step, other: Step) -> frozenset[str]:
    def touched(step: Step) -> frozenset[str]:
        return (step.reads or frozenset()) | (step.writes or frozenset())

    return (touched(one) & (other.writes or frozenset())) | (
        touched(other) & (one.writes or frozenset())
    )
