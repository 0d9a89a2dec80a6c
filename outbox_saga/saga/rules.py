"""The rules a definition keeps; each refusal names the rule and the mend."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import combinations
from typing import Any

from pydantic import BaseModel

from outbox_saga.errors import DefinitionError
from outbox_saga.messages import Command, Event, Message
from outbox_saga.retries import Retry, is_time
from outbox_saga.saga.steps import Step, Undo, all_before, nothing_to_undo

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,99}")
# a transition may end every step and begin others, and its rows of history are numbered up to
# `queries.sagas.ENTRIES_A_REVISION`
MAX_STEPS = 300


def is_command(given: object) -> bool:
    """Whether a command carries the step out, and not a function."""
    return inspect.isclass(given) and issubclass(given, Command)


def check_model(where: str, given: object) -> None:
    """It is a model of the data.

    Raises:
        DefinitionError: It is none.
    """
    if not (inspect.isclass(given) and issubclass(given, BaseModel)):
        raise DefinitionError(f"{where}: data must be a pydantic model class, not {given!r}")


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
    if step.kind != "command":
        _check_action(where, "the action", step.action)
        check_time(where, "timeout", step.timeout)
    if step.query is not None:
        _check_action(where, "query=", step.query)
    _check_retry(where, "retry", step.retry)
    _check_waiting(where, step)
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
    _check_command(where, step, fields)
    if step.when is not None:
        check_asked(where, "when=", step.when)
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


def check_time(where: str, name: str, given: object) -> None:
    """It is seconds.

    Raises:
        DefinitionError: It is not, or no date is so far away.
    """
    if not is_time(given):
        raise DefinitionError(
            f"{where}: {name} is {given!r}; give seconds, a number greater than 0, finite and "
            "less than a century"
        )


def check_asked(where: str, name: str, given: object, of: str = "the data") -> None:
    """It is a plain function, which answers when it is asked.

    Args:
        of: What it gets.

    Raises:
        DefinitionError: It is none, or what it answers would not be looked at: that of a coroutine
            function counts as true, whatever it comes to.
    """
    if _is_lazy(given):
        raise DefinitionError(
            f"{where}: {name} must be a plain function of {of}, and {given!r} is not: nobody "
            "awaits it, so its answer would never be known; make it a `def` that returns, with "
            "no I/O"
        )
    if inspect.isclass(given) or not callable(given):
        raise DefinitionError(
            f"{where}: {name} must be a function of {of}, not {given!r}; write a `def` or a lambda"
        )


def _is_lazy(given: object) -> bool:
    """Whether a call of it gives something that has not run yet."""
    for function in (given, getattr(given, "__call__", None)):  # noqa: B004  # of an object, too
        if (
            inspect.iscoroutinefunction(function)
            or inspect.isgeneratorfunction(function)
            or inspect.isasyncgenfunction(function)
        ):
            return True
    return False


def _check_action(where: str, what: str, given: object) -> None:
    if inspect.isclass(given):
        if issubclass(given, Command):
            mend = "another service carries a command out: give the class itself as the step or "
            mend += "its compensation"
        elif issubclass(given, Message):
            mend = "a step that waits for an event is made by `wait_for`"
        else:
            mend = "write a function"
        raise DefinitionError(
            f"{where}: {what} must be a function, not the class {given.__name__}; {mend}"
        )
    if not callable(given):
        raise DefinitionError(f"{where}: {what} must be a function, not {given!r}")


def _check_retry(where: str, name: str, given: object) -> None:
    if not isinstance(given, Retry):
        raise DefinitionError(
            f"{where}: {name} is {given!r}; give a policy, {name}=Retry(max_attempts=…)"
        )


def _check_compensation(where: str, step: Step) -> None:
    check_time(where, "compensation_timeout", step.undo_timeout)
    _check_retry(where, "compensation_retry", step.compensation_retry)
    given = step.compensation
    if step.undone != "command" and not (given is None or given is nothing_to_undo):
        if not callable(given):
            raise DefinitionError(
                f"{where}: the compensation must be a function, a Command class or "
                f"nothing_to_undo, not {given!r}"
            )
        _check_action(where, "the compensation", given)
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
    if step.event is not None:
        for name, asked in (
            ("take=", step.event.take),
            ("business_key=", step.event.business_key),
        ):
            if asked is not None:
                check_asked(where, name, asked, "the event")
    if step.kind in ("command", "event"):
        check_time(where, "timeout", step.seconds)
    elif step.kind == "timer":
        _check_timer(where, step.seconds)


def _check_timer(where: str, seconds: object) -> None:
    if callable(seconds):
        check_asked(where, "seconds", seconds)
        return
    at_once = isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds == 0
    if not at_once and not is_time(seconds):
        raise DefinitionError(
            f"{where}: {seconds!r} is no time to wait; give seconds, a number from 0 to less than "
            "a century, or a function of the data that returns them"
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
    if len(steps) > MAX_STEPS:
        raise DefinitionError(
            f"saga {saga}: {len(steps)} steps; give it {MAX_STEPS} at most, for all that may "
            "happen in one transition has to have room in its history: let a step start another "
            "saga for the rest"
        )
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
