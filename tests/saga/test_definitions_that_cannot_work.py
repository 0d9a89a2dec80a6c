"""What could never work is refused where it is defined, and not found out by each instance."""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

import outbox_saga
from outbox_saga import (
    Breaker,
    Command,
    Event,
    Retry,
    Saga,
    SagaEvent,
    external,
    local,
    nothing_to_undo,
)
from outbox_saga.errors import DefinitionError
from outbox_saga.saga.events import LIFE_CYCLE, OF_STEPS
from outbox_saga.saga.rules import MAX_STEPS

HUGE = 1e12  # seconds: no date is so far away
Making = Callable[..., object]
SOON: Any = lambda _: 5  # noqa: E731
NO_TIMES: tuple[Any, ...] = (HUGE, 0, -1, float("nan"), float("inf"), True, "5", Decimal(5), None)


class Data(BaseModel):
    order_id: int = 1


class Ship(Command, topic="shipping"):
    order_id: int


class Unship(Command, topic="shipping"):
    order_id: int


class Paid(Event, topic="payments"):
    order_id: int


# as types say, none of them may stand where they are tried
UNSHIP: Any = Unship
PAID: Any = Paid
DATA: Any = Data
ANY_DICT: Any = dict


class Told(SagaEvent, topic="told"):
    """As they should be: with a field of its own."""

    shop: str = "here"


async def act(step: Any) -> None: ...


async def later(_: Any) -> bool:
    return False


def one_by_one(_: Any) -> Iterator[bool]:
    yield False


async def one_by_one_later(_: Any) -> AsyncIterator[bool]:
    yield False


class Asked:
    async def __call__(self, _: Any) -> bool:
        return False


def saga() -> Saga[Data]:
    return Saga("o", data=Data)


def step(**options: Any) -> object:
    return saga().step("x", act, **{"compensation": nothing_to_undo, **options})


TIMES: dict[str, Making] = {
    "timeout": lambda given: step(timeout=given),
    "timeout of a command": lambda given: saga().step("x", Ship, timeout=given),
    "timeout of an event": lambda given: saga().wait_for("x", Paid, timeout=given),
    "compensation_timeout": lambda given: step(compensation=act, compensation_timeout=given),
    "deadline": lambda given: Saga("o", data=Data, deadline=given),
}
MAY_BE_LEFT_OUT = ("compensation_timeout", "deadline")


@pytest.mark.parametrize(
    "given", [*NO_TIMES, SOON], ids=lambda given: "function" if callable(given) else str(given)
)
@pytest.mark.parametrize("what", TIMES)
def test_a_time_is_a_number_of_seconds_that_ends(what: str, given: Any) -> None:
    if given is None and what in MAY_BE_LEFT_OUT:
        return
    with pytest.raises(DefinitionError, match=r"(timeout|deadline) is .*give seconds"):
        TIMES[what](given)


@pytest.mark.parametrize("given", [given for given in NO_TIMES if given != 0 or given is None])
def test_a_timer_waits_for_seconds_that_end_or_for_what_a_function_says(given: Any) -> None:
    saga().timer("x", 0).timer("y", SOON).check()
    with pytest.raises(DefinitionError, match="no time to wait"):
        saga().timer("x", given)


@pytest.mark.parametrize("given", [HUGE, "5", True, Decimal(5)])
def test_policies_and_breakers_keep_the_same_bounds(given: Any) -> None:
    for make in (
        lambda: Retry(initial=given),
        lambda: Retry(max_delay=given),
        lambda: Breaker("psp", seconds=given),
    ):
        with pytest.raises(ValueError, match="less than a century"):
            make()
    for count in (True, 2.5, "3", float("nan")):
        with pytest.raises(ValueError, match="whole number"):
            Retry(max_attempts=count)  # type: ignore[arg-type]  # that is tried
        with pytest.raises(ValueError, match="whole number"):
            Breaker("psp", failures=count)  # type: ignore[arg-type]  # that is tried


@pytest.mark.parametrize("given", [5, 0, False, "twice", Retry], ids=str)
@pytest.mark.parametrize("name", ["retry", "compensation_retry"])
def test_a_policy_is_a_retry(name: str, given: Any) -> None:
    with pytest.raises(DefinitionError, match=rf"{name} is .*{name}=Retry\(max_attempts="):
        step(compensation=act, **{name: given})
    if name == "compensation_retry":
        with pytest.raises(DefinitionError, match="compensation_retry is "):
            saga().wait_for("x", Paid, timeout=5, compensation=act, compensation_retry=given)


ASKED: dict[str, Making] = {
    "when=": lambda given: step(when=given),
    "when= of an event": lambda given: saga().wait_for("x", Paid, timeout=5, when=given),
    "when= of a timer": lambda given: saga().timer("x", 5, when=given),
    "take=": lambda given: saga().wait_for("x", Paid, timeout=5, take=given),
    "business_key=": lambda given: saga().wait_for("x", Paid, timeout=5, business_key=given),
    "by=": lambda given: Saga("o", data=Data, version=2).upcasts(1, Data, given),
}
LAZY: tuple[Any, ...] = (
    later,
    one_by_one,
    one_by_one_later,
    functools.partial(later),
    Asked(),
)


@pytest.mark.parametrize("given", LAZY, ids=lambda given: type(given).__name__)
@pytest.mark.parametrize("what", [*ASKED, "seconds"])
def test_a_function_that_is_asked_answers_at_once(what: str, given: Any) -> None:
    make = {**ASKED, "seconds": lambda function: saga().timer("x", function)}[what]
    with pytest.raises(DefinitionError, match=r"plain function of .*nobody awaits it"):
        make(given)


@pytest.mark.parametrize("given", ["order_id", 5, Data], ids=str)
@pytest.mark.parametrize("what", ASKED)
def test_what_is_asked_is_a_function(what: str, given: Any) -> None:
    with pytest.raises(DefinitionError, match=r"must be a function of (the data|the event), not"):
        ASKED[what](given)


NO_ACTIONS: dict[str, tuple[Callable[[], object], str]] = {
    "external(a command)": (
        lambda: step(compensation=external(UNSHIP), external=True, idempotent=True),
        "give the class itself",
    ),
    "local(a command)": (lambda: step(compensation=local(UNSHIP)), "give the class itself"),
    "an event": (
        lambda: saga().step("x", PAID, compensation=nothing_to_undo),
        "`wait_for`",
    ),
    "an event to undo it": (
        lambda: step(compensation=Paid),
        "the compensation must be a function, not the class Paid",
    ),
    "a class": (lambda: saga().step("x", DATA, compensation=act), "not the class Data"),
    "a query that is a number": (
        lambda: step(external=True, query=5),
        "query= must be a function, not 5",
    ),
    "a query that is a command": (
        lambda: step(external=True, query=Ship),
        "query= must be a function, not the class Ship",
    ),
    "an upcast of no model": (
        lambda: Saga("o", data=Data, version=2).upcasts(1, ANY_DICT, dict),
        "data must be a pydantic model class",
    ),
}


@pytest.mark.parametrize("what", NO_ACTIONS)
def test_what_cannot_be_called_as_an_action_is_none(what: str) -> None:
    build, told = NO_ACTIONS[what]
    with pytest.raises(DefinitionError, match=told):
        build()


def test_all_that_happens_in_one_transition_has_room_in_its_history() -> None:
    many = saga()
    for number in range(MAX_STEPS):
        many.step(f"s{number}", act, compensation=nothing_to_undo, after=())
    many.step("one_more", act, compensation=nothing_to_undo, after=())
    with pytest.raises(DefinitionError, match=f"{MAX_STEPS} at most.*history.*another saga"):
        many.check()


class Short(SagaEvent, topic="told"):
    reason: str | None = Field(default=None, max_length=20)


class ShortToo(Short, topic="told"):
    """Nothing of its own, and still not right."""


class Validated(SagaEvent, topic="told"):
    @field_validator("transition")
    @classmethod
    def known(cls, given: str) -> str:
        return given


class Configured(SagaEvent, topic="told"):
    model_config = ConfigDict(str_max_length=20)


class Stripped(SagaEvent, topic="told"):
    model_config = ConfigDict(str_strip_whitespace=True)


class Particular(SagaEvent, topic="told"):
    @model_validator(mode="after")
    def with_reason(self) -> Particular:
        if self.reason is None:
            raise ValueError("no reason")
        return self


class Graded(SagaEvent, topic="told"):
    """It has forgotten one."""

    @model_validator(mode="after")
    def with_severity(self) -> Graded:
        _ = dict.fromkeys(LIFE_CYCLE - {"FAILED"} | {"STARTED"}, 1)[self.transition]
        return self


class OfTheWhole(SagaEvent, topic="told"):
    """It is made for the saga as a whole."""

    @model_validator(mode="after")
    def with_severity(self) -> OfTheWhole:
        _ = dict.fromkeys(LIFE_CYCLE | {"STARTED"}, 1)[self.transition]
        return self


class NoneOfOurs(Event, topic="told"):
    """No SagaEvent."""


@pytest.mark.parametrize(
    ("events", "told"),
    [
        (Short, "has its own 'reason'"),
        (ShortToo, "has its own 'reason'"),
        (Validated, "'transition', or a validator of it"),
        (Configured, "refuses what a saga tells"),
        (Stripped, "changes what a saga tells"),
        (Particular, "refuses what a saga tells"),
        (Graded, "refuses what a saga tells .*FAILED"),
        (NoneOfOurs, "derived from SagaEvent"),
        ("told", "derived from SagaEvent"),
    ],
)
def test_events_of_a_saga_take_whatever_there_is_to_tell(events: Any, told: str) -> None:
    Saga("o", data=Data, events=Told)
    with pytest.raises(DefinitionError, match=told):
        Saga("o", data=Data, events=events)


def test_events_of_steps_are_to_be_taken_only_where_they_are_told() -> None:
    Saga("o", data=Data, events=OfTheWhole)
    with pytest.raises(DefinitionError, match="refuses what a saga tells"):
        Saga("o", data=Data, events=OfTheWhole, step_events=True)


def test_every_transition_that_is_told_is_tried_at_the_definition() -> None:
    noted: set[str] = set()
    for source in Path(outbox_saga.__file__).parent.rglob("*.py"):
        text = source.read_text()
        noted |= set(re.findall(r'\bEntry\(\s*"([A-Z_]+)"', text))
        noted |= set(re.findall(r'"((?:STEP|COMPENSATION)_[A-Z]+)"', text))
    assert noted - {"PARKED", "UPCAST"} == LIFE_CYCLE | {"STARTED"} | OF_STEPS


@pytest.mark.parametrize("pivot_first", [True, False])
def test_a_step_beside_the_pivot_is_tried_for_long_wherever_it_is_defined(
    *, pivot_first: bool
) -> None:
    beside = saga()
    for name in ("pivot", "x") if pivot_first else ("x", "pivot"):
        beside.step(name, act, compensation=nothing_to_undo, pivot=name == "pivot", after=())
    given = Retry(max_attempts=4)
    beside.step("own", act, compensation=nothing_to_undo, after=(), retry=given)
    assert beside.check().steps["x"].retry.max_attempts == 50
    assert beside.steps["pivot"].retry.max_attempts == 3
    assert beside.steps["own"].retry == given
