"""One attempt of a step: what its function is given, and what its answer says."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from dataclasses import replace
from typing import Any

from outbox_saga.calling import NothingRan, refuse_coroutine, told
from outbox_saga.ids import idempotency_key
from outbox_saga.instances import Direction
from outbox_saga.results import Failure, Success
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.happened import (
    Call,
    Done,
    Errored,
    Happened,
    NotFound,
    Refused,
    Run,
)
from outbox_saga.saga.steps import Action, Step
from outbox_saga.unit_of_work import UnitOfWork

logger = logging.getLogger("outbox_saga.saga")


def action_of(step: Step, direction: Direction) -> Action:
    """The function that carries the step out, or undoes it."""
    if direction == "do":
        return step.action
    assert callable(step.compensation)
    return step.compensation


def context_of(kind: type[Any], hand: Hand, todo: Run | Call, uow: UnitOfWork[Any] | None) -> Any:
    """What the function is given."""
    instance = hand.instance
    state = instance.state.steps[todo.step]
    data = (
        state.input if isinstance(todo, Call) and state.input is not None else instance.state.data
    )
    return kind(
        saga_id=instance.id,
        saga=instance.name,
        step=todo.step,
        direction=todo.direction,
        attempt=todo.attempt,
        key=idempotency_key(
            instance.id, todo.step, todo.direction, state.key_number(todo.direction)
        ),
        data=hand.definition.load(data),
        source=instance.source,
        correlation_id=instance.correlation_id,
        uow=uow,
    )


def answered(todo: Run | Call, answer: object, started: dt.datetime | None) -> Happened:
    """What its answer says."""
    refuse_coroutine(answer)
    if isinstance(answer, Failure):
        return Refused(todo.step, todo.direction, todo.attempt, str(answer.error), started)
    added = answer.value if isinstance(answer, Success) else answer
    if todo.direction == "undo":
        added = None
    return Done(todo.step, todo.direction, todo.attempt, added, started)


def found(todo: Run | Call, answer: object, started: dt.datetime | None) -> Happened:
    """What the answer of a query says about the call: None is that it was not carried out.

    A business no is no answer to the question.
    """
    refuse_coroutine(answer)
    if answer is None:
        return NotFound(todo.step, todo.attempt)
    if isinstance(answer, Failure):
        no = "its query answered Failure: answer None if it was not carried out, Success if it was"
        return replace(errored(todo, no, started, unknown=True), asked=False)
    return answered(todo, answer, started)


def errored(
    todo: Run | Call,
    error: str,
    started: dt.datetime | None,
    *,
    unknown: bool = False,
    code: str = "error",
) -> Errored:
    """What an exception, or no answer in time, says."""
    step, direction, attempt = todo.step, todo.direction, todo.attempt
    return Errored(step, direction, attempt, error, unknown, started, code=code)


def outcome_of(todo: Call, ended: asyncio.Future[Any]) -> Happened:
    """What a call said that ended after its time."""
    if ended.cancelled() or ended.exception() is not None:
        return errored(todo, "ended late, with an error", None, unknown=True)
    try:
        return answered(todo, ended.result(), None)
    except NothingRan as error:
        return errored(todo, told(error), None)


async def has_ended(earlier: asyncio.Future[Any], *, within: float) -> bool:
    """Whether it ends within so many seconds; whoever waits is back as soon as it does."""
    await asyncio.wait({earlier}, timeout=within)
    return earlier.done()


def note_late_end(future: asyncio.Future[Any]) -> None:
    """Of a thread or a call that nobody waits for any more."""
    if not future.cancelled() and (error := future.exception()) is not None:
        logger.info("a step that had timed out ended with %s", type(error).__name__)
