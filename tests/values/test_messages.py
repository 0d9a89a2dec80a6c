"""Message classes: where name, version and topic come from, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from pydantic import ConfigDict, Field, computed_field, field_serializer, model_serializer

from outbox_saga.envelopes import seal
from outbox_saga.errors import MessageRefused
from outbox_saga.messages import Command, Event, Message, Reply


class OrderEvent(Event, topic="orders"):
    order_id: int


class OrderPlaced(OrderEvent):
    pass


class OrderMoved(OrderEvent, topic="orders.moved", name="order.moved", version=3):
    pass


class OrderMovedTwice(OrderMoved):
    pass


class Nowhere(Event):
    pass


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (OrderEvent, ("orders", "OrderEvent", 1)),
        (OrderPlaced, ("orders", "OrderPlaced", 1)),
        (OrderMoved, ("orders.moved", "order.moved", 3)),
        (OrderMovedTwice, ("orders.moved", "OrderMovedTwice", 3)),
        (Nowhere, (None, "Nowhere", 1)),
    ],
)
def test_topic_and_version_are_inherited_and_the_name_is_the_class_s_own(
    cls: type[Message], expected: tuple[str | None, str, int]
) -> None:
    assert (cls.topic, cls.type_name, cls.version) == expected


def test_the_kinds_are_told_apart() -> None:
    assert (Event.kind, Command.kind, Reply.kind) == ("event", "command", "reply")


def test_a_message_without_a_topic_cannot_leave_without_one() -> None:
    with pytest.raises(MessageRefused, match="topic") as refused:
        seal(Nowhere())
    assert refused.value.path == "topic"
    assert seal(Nowhere(), topic="somewhere").topic == "somewhere"


def test_a_message_does_not_change() -> None:
    placed = OrderPlaced(order_id=1)
    with pytest.raises(ValueError, match="frozen"):
        placed.order_id = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    "topic", ["", "a b", "a..b", ".a", "a.", "a.*", ">", "ä", "a\n", "x" * 256]
)
def test_a_topic_that_some_broker_cannot_carry_is_refused_when_the_class_is_made(
    topic: str,
) -> None:
    with pytest.raises(MessageRefused) as refused:
        type("Bad", (Event,), {}, topic=topic)
    assert refused.value.path == "topic"


@pytest.mark.parametrize("options", [{"name": "a b"}, {"name": ""}, {"version": 0}])
def test_a_name_or_version_that_cannot_travel_is_refused_when_the_class_is_made(
    options: dict[str, object],
) -> None:
    with pytest.raises(MessageRefused):
        type("Bad", (Event,), {}, **options)


@pytest.mark.parametrize("field", ["kind", "topic", "type_name", "version"])
def test_a_field_cannot_take_the_name_of_what_says_how_the_message_travels(field: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydantic's own, about the shadow
        with pytest.raises(MessageRefused) as refused:
            type("Bad", (Event,), {"__annotations__": {field: int}}, topic="t")
    assert refused.value.path == field


def test_such_a_field_travels_under_an_alias() -> None:
    class Released(Event, topic="t"):
        of: int = Field(alias="version")

    assert seal(Released(version=7)).version == 1


def test_a_body_that_does_not_fit_is_refused_with_its_path_and_without_its_values() -> None:
    with pytest.raises(MessageRefused) as refused:
        OrderPlaced.from_body(b'{"order_id": "hush-hush"}')
    assert refused.value.path == "$.order_id"
    assert "hush" not in str(refused.value)


def test_a_body_reads_back_as_the_message_that_was_written() -> None:
    placed = OrderPlaced(order_id=2**60 + 1)
    assert OrderPlaced.from_body(placed.to_body()) == placed


class Inner(Event, topic="t"):
    value: str


class Outer(Event, topic="t"):
    inner: Inner
    words: tuple[str, ...] = ()


class BySerializer(Event, topic="t"):
    value: str

    @field_serializer("value")
    def renamed(self, value: str) -> Any:
        return {1: value, "1": "twice"}


class ByModelSerializer(Event, topic="t"):
    value: str

    @model_serializer
    def renamed(self) -> dict[Any, Any]:
        return {1: self.value}


class Computed(Event, topic="t"):
    value: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def other(self) -> dict[int, str]:
        return {1: self.value}


class WithMore(Event, topic="t"):
    model_config = ConfigDict(extra="allow")

    value: str


class Inherited(Inner):
    @field_serializer("value")
    def renamed(self, value: str) -> Any:
        return {1: value}


@pytest.mark.parametrize(
    "message",
    [
        BySerializer(value="v"),
        ByModelSerializer(value="v"),
        Computed(value="v"),
        WithMore.model_validate({"value": "v", "more": {1: "x"}}),
        Inherited(value="v"),
    ],
)
def test_a_key_that_is_no_text_is_refused_whoever_brings_it_in(message: Message) -> None:
    assert Inner(value="first").to_body()  # what a class has above it says nothing about it
    for _ in range(2):
        with pytest.raises(MessageRefused, match="is not a string"):
            message.to_body()


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (Inner(value="a\x00"), "$.value"),
        (Inner(value="a\ud800"), "$.value"),
        (Outer(inner=Inner(value="a\x00")), "$.inner.value"),
        (Outer(inner=Inner(value="a"), words=("b", "\x00")), "$.words[1]"),
    ],
)
def test_what_cannot_travel_is_refused_with_its_path(message: Message, path: str) -> None:
    with pytest.raises(MessageRefused) as refused:
        message.to_body()
    assert refused.value.path == path
