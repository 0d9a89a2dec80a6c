"""Message classes: where name, version and topic come from, and what is refused."""

from __future__ import annotations

import warnings

import pytest
from pydantic import Field

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
