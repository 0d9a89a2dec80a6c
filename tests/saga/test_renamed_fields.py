"""An upcast that renames a field leaves parallel steps' writes of it seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from pydantic import BaseModel

from outbox_saga import Saga, nothing_to_undo
from outbox_saga.errors import MessageRefused
from outbox_saga.instances import Instance, SagaState
from outbox_saga.saga.happened import Done
from outbox_saga.saga.progress import initial
from outbox_saga.saga.taking_over import taken_over
from tests.saga.story import Story, act

By = Callable[[dict[str, Any]], Mapping[str, Any]]


class Old(BaseModel):
    n: int = 0
    address: str | None = None


class New(BaseModel):
    n: int = 0
    street: str | None = None
    address: str | None = None  # of something else now
    note: str | None = None


def branches(saga: Saga[Any]) -> Saga[Any]:
    for name in ("a", "b"):
        saga.step(name, act, compensation=nothing_to_undo, after=())
    return saga


def carried_on(by: By) -> tuple[Saga[Any], SagaState]:
    """By the newer version, after step a has returned the address."""
    older = branches(Saga("o", data=Old)).check()
    story = Story(older)
    story.state = initial(older, {"n": 0, "address": None})
    story.goes_on(Done("a", "do", 1, {"address": "Lovelace Road 1"}))
    newer = branches(Saga("o", data=New, version=2)).upcasts(1, Old, by).check()
    seen = Instance("i", "o", 1, older.shape, "s", None, "c", 1, 0, story.state)
    return newer, taken_over(newer, seen).state


def returned_by_b(newer: Saga[Any], state: SagaState, field: str) -> SagaState:
    story = Story(newer)
    story.state = state
    return story.goes_on(Done("b", "do", 1, {field: "Babbage Street 2"})).state


def test_what_two_parallel_steps_return_is_seen_under_its_new_name() -> None:
    newer, state = carried_on(lambda data: {"street": data.pop("address"), **data})
    assert state.steps["a"].wrote == ("street",)
    with pytest.raises(MessageRefused, match="both return it"):
        returned_by_b(newer, state, "street")


@pytest.mark.parametrize("field", ["address", "note", "n"])
def test_what_no_other_step_returned_is_not_refused(field: str) -> None:
    newer, state = carried_on(lambda data: {"street": data["address"], "n": data["n"]})
    value = 3 if field == "n" else "Babbage Street 2"
    story = Story(newer)
    story.state = state
    assert story.goes_on(Done("b", "do", 1, {field: value})).state.data[field] == value


def long(data: dict[str, Any]) -> dict[str, Any]:
    """Hands it on in another field than the one of a stranger."""
    known = isinstance(data["address"], str)
    return {"street" if known else "note": data["address"]}


def changed(data: dict[str, Any]) -> dict[str, Any]:
    """Hands on what is no longer what the step returned."""
    return {"street": data["address"].upper()}


@pytest.mark.parametrize("by", [long, changed])
def test_where_it_is_not_certain_where_it_went_nothing_is_refused(by: By) -> None:
    newer, state = carried_on(by)
    assert state.steps["a"].wrote == ("address",)
    for field in ("street", "note"):
        assert returned_by_b(newer, state, field).steps["b"].phase == "done"


def test_a_field_that_keeps_its_name_is_still_seen() -> None:
    newer, state = carried_on(lambda data: {**data, "note": "kept"})
    assert state.steps["a"].wrote == ("address",)
    with pytest.raises(MessageRefused, match="both return it"):
        returned_by_b(newer, state, "address")
