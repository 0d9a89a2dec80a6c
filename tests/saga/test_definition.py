"""The rules a definition keeps, each with a message that names the rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from outbox_saga import Event, Retry, Saga, hours, minutes, nothing_to_undo
from outbox_saga.errors import DefinitionError, MessageRefused


class Data(BaseModel):
    order_id: int
    total: float = 0.0
    note: str | None = None


class Paid(Event, topic="payments"):
    order_id: int


class Nowhere(Event):
    order_id: int


async def act(step: Any) -> None: ...


def test_a_decorated_function_is_a_step_and_stays_a_function() -> None:
    saga = Saga("decorated", data=Data)

    @saga.does(compensation=nothing_to_undo)
    async def reserve(step: Any) -> None: ...

    @saga.does("bill", compensation=nothing_to_undo, timeout=5.0)
    def charge(step: Any) -> None: ...

    assert list(saga.check().steps) == ["reserve", "bill"]
    assert saga.steps["reserve"].action is reserve
    assert (saga.steps["bill"].action, saga.steps["bill"].timeout) == (charge, 5.0)
    assert saga.steps["bill"].after == ("reserve",)


def saga() -> Saga[Data]:
    return Saga("fulfil", data=Data)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a saga without a name": (lambda: Saga("", data=Data), "not a saga name"),
    "a name that cannot stand in a key": (lambda: Saga("a b", data=Data), "not a saga name"),
    "data that is no model": (lambda: Saga("x", data=dict), "pydantic model"),  # type: ignore[type-var]
    "version zero": (lambda: Saga("x", data=Data, version=0), "count from 1"),
    "no steps": (lambda: saga().check(), "no steps"),
    "two steps of one name": (
        lambda: saga().step("a", act, compensation=act).step("a", act, compensation=act),
        "two steps of one name",
    ),
    "a step before the pivot without compensation": (
        lambda: saga().step("a", act).check(),
        "compensation=nothing_to_undo",
    ),
    "a step that may be done before the pivot without compensation": (
        lambda: (
            saga()
            .step("reserve", act, compensation=act)
            .step("charge", act, pivot=True)
            .step("notify", act, after="reserve")
            .check()
        ),
        "compensation=nothing_to_undo",
    ),
    "an external step that can never be settled": (
        lambda: saga().step("a", act, compensation=act, external=True),
        "idempotent=True",
    ),
    "a local step that claims to be idempotent": (
        lambda: saga().step("a", act, compensation=act, idempotent=True),
        "for external steps",
    ),
    "after= an unknown step": (
        lambda: saga().step("a", act, compensation=act, after="b"),
        "names no earlier step",
    ),
    "a timeout that never ends": (
        lambda: saga().step("a", act, compensation=act, timeout=float("inf")),
        "finite",
    ),
    "an action that is no function": (
        lambda: saga().step("a", "act", compensation=act),  # type: ignore[arg-type]
        "must be a function",
    ),
    "two pivots": (
        lambda: (
            saga().step("a", act, compensation=act, pivot=True).step("b", act, pivot=True).check()
        ),
        "one point of no return",
    ),
    "a deadline that has passed before it begins": (
        lambda: Saga("x", data=Data, deadline=0),
        "greater than 0",
    ),
    "no step at a time": (lambda: Saga("x", data=Data, max_parallel=0), "give 1 or more"),
    "a field that there is not": (
        lambda: saga().step("a", act, compensation=act, writes="amount"),
        r"writes='amount' is no field of the data; there are note, order_id, total",
    ),
    "two parallel steps that write one field": (
        lambda: (
            saga()
            .step("a", act, compensation=act, writes="note")
            .step("b", act, compensation=act, writes="note", after=())
            .check()
        ),
        "steps 'a' and 'b': they run in parallel.*'note'.*order them by after=",
    ),
    "a step that reads what a parallel one writes": (
        lambda: (
            saga()
            .step("a", act, compensation=act, writes="note")
            .step("b", act, compensation=act, reads="note", after=())
            .check()
        ),
        "they run in parallel",
    ),
    "a pivot that may be left out": (
        lambda: saga().step("a", act, pivot=True, when=lambda data: False).check(),
        "point of no return",
    ),
    "when= that cannot be asked": (
        lambda: saga().step("a", act, compensation=act, when=True),  # type: ignore[arg-type]
        "must be a function of the data",
    ),
    "an event that is waited for no time": (
        lambda: saga().wait_for("paid", Paid, timeout=0),
        "timeout is 0; give seconds, a number greater than 0",
    ),
    "an event from nowhere": (
        lambda: saga().wait_for("paid", Nowhere, timeout=9),
        "Nowhere has no topic",
    ),
    "waiting for what is no event": (
        lambda: saga().wait_for("paid", Data, timeout=9),  # type: ignore[arg-type]  # that is tried
        "can wait for an Event class",
    ),
    "a timer that never ends": (
        lambda: saga().timer("cool", float("inf")),
        "inf is no time to wait",
    ),
    "a single attempt beyond the pivot": (
        lambda: (
            saga()
            .step("a", act, compensation=act, pivot=True)
            .step("b", act, retry=Retry(max_attempts=1))
            .check()
        ),
        "only go forward",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_definition_that_breaks_a_rule_is_refused_and_told_the_rule(what: str) -> None:
    build, told = REFUSED[what]
    with pytest.raises(DefinitionError, match=told):
        build()


def test_steps_follow_each_other_unless_after_says_otherwise() -> None:
    definition = (
        saga()
        .step("a", act, compensation=act)
        .step("b", act, compensation=act)
        .step("c", act, compensation=act, after="a")
        .step("d", act, compensation=act, after=("b", "c"))
        .step("e", act, compensation=act, after=())
    )

    assert {name: step.after for name, step in definition.steps.items()} == {
        "a": (),
        "b": ("a",),
        "c": ("a",),
        "d": ("b", "c"),
        "e": (),
    }
    assert definition.before("d") == {"a", "b", "c"}


def test_what_steps_read_and_write_says_what_they_wait_for() -> None:
    definition = (
        saga()
        .step("price", act, compensation=act, writes="total")
        .step("remark", act, compensation=act, reads=(), writes="note")
        .step("charge", act, compensation=act, reads=["order_id", "total"])
        .step("rewrite", act, compensation=act, reads="total", writes="note")
        .step("correct", act, compensation=act, writes={"total"})
        .step("last", act, compensation=act)
        .check()
    )

    assert {name: step.after for name, step in definition.steps.items()} == {
        "price": (),
        "remark": (),
        "charge": ("price",),
        "rewrite": ("price", "remark"),
        "correct": ("charge", "rewrite"),  # which wait for "price" themselves
        "last": ("correct",),
    }
    assert definition.parallel_to("charge") == {"remark", "rewrite"}
    assert definition.parallel_to("last") == set()


def test_a_step_parallel_to_the_pivot_is_beyond_it_and_retried_for_long() -> None:
    definition = (
        saga()
        .step("reserve", act, compensation=act)
        .step("charge", act, compensation=act, pivot=True)
        .step("notify", act, compensation=act, after="reserve")
        .step("ship", act, after="charge")
        .check()
    )

    assert [definition.beyond_pivot(name) for name in definition.steps] == [
        False,
        False,
        True,
        True,
    ]
    assert definition.steps["ship"].retry.max_attempts == 50


def test_the_shape_is_what_running_instances_depend_on_and_nothing_else() -> None:
    def build(**changes: Any) -> str:
        options: dict[str, Any] = {"compensation": act, **changes}
        return saga().step("a", act, **options).shape

    async def other_code(step: Any) -> None: ...

    assert build() == build(timeout=5) == build(retry=Retry(max_attempts=9))
    assert build() == build(compensation=other_code)
    assert (
        len({build(), build(compensation=nothing_to_undo), build(external=True, idempotent=True)})
        == 3
    )
    assert build() != saga().step("b", act, compensation=act).shape


def test_a_definition_in_use_takes_no_further_steps() -> None:
    definition = saga().step("a", act, compensation=act).check()

    with pytest.raises(DefinitionError, match="in use already"):
        definition.step("b", act, compensation=act)


def test_what_a_step_returns_is_merged_and_validated_with_the_path_of_what_does_not_fit() -> None:
    definition = saga()
    data = definition.dump(Data(order_id=1))

    assert definition.merge(data, {"total": 2.5}) == {"order_id": 1, "total": 2.5, "note": None}
    assert definition.merge(data, None) == data
    with pytest.raises(MessageRefused, match=r"\$\.reservation: Data has no such field"):
        definition.merge(data, {"reservation": 1})
    with pytest.raises(MessageRefused, match=r"\$\.total: "):
        definition.merge(data, {"total": "much"})
    with pytest.raises(MessageRefused, match=r"\$\.total: nan is not JSON"):
        definition.merge(data, {"total": float("nan")})
    with pytest.raises(MessageRefused, match=r"\$\.note: contains NUL"):
        definition.merge(data, {"note": "a\x00b"})
    assert definition.merge(data, {"total": 2}, {"total"})["total"] == 2.0
    with pytest.raises(MessageRefused, match=r"\$\.total: .* writes= does not name it"):
        definition.merge(data, {"total": 2}, {"note"})
    with pytest.raises(MessageRefused, match="return a mapping"):
        definition.merge(data, 3)


def test_minutes_and_hours_are_seconds() -> None:
    assert (minutes(2), hours(2)) == (120.0, 7200.0)
