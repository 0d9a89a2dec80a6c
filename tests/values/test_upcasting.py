"""Bodies of older versions are read as the newest; what cannot be is refused, with the mend."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_saga.errors import DefinitionError, MessageRefused
from outbox_saga.messages import Event
from outbox_saga.upcasting import upcaster

Body = dict[str, Any]


class OrderPlaced(Event, topic="orders", version=3):
    order_id: int
    amount: int
    currency: str

    @upcaster(from_version=2)
    @staticmethod
    def rename_total(body: Body) -> Body:
        body["amount"] = body.pop("total")
        return body

    @upcaster(from_version=1)
    @staticmethod
    def name_the_currency(body: Body) -> Body:
        return {**body, "currency": "EUR"}


def declared(steps: dict[str, Any], *, version: int = 3, name: str = "Moved") -> type[Event]:
    made: type[Event] = type(name, (Event,), dict(steps), topic="t", version=version)
    return made


def same(body: Body) -> Body:
    return body


def step(from_version: int, function: Any = same) -> Any:
    return upcaster(from_version=from_version)(function)


BODIES = [
    (1, b'{"order_id": 7, "total": 5}', "EUR"),
    (2, b'{"order_id": 7, "total": 5, "currency": "CHF"}', "CHF"),
    (3, b'{"order_id": 7, "amount": 5, "currency": "SEK"}', "SEK"),
]


@pytest.mark.parametrize(("version", "body", "currency"), BODIES)
def test_a_body_of_every_version_is_read_as_the_newest(
    version: int, body: bytes, currency: str
) -> None:
    expected = OrderPlaced(order_id=7, amount=5, currency=currency)
    assert OrderPlaced.from_body(body, version=version) == expected


def test_without_a_version_the_body_is_the_class_s_own() -> None:
    with pytest.raises(MessageRefused, match="amount"):
        OrderPlaced.from_body(BODIES[0][1])


@given(st.integers(1, 6), st.integers(1, 6), st.randoms())
def test_a_body_goes_through_the_steps_from_its_version_on_in_order_however_they_are_declared(
    version: int, newest: int, random: Any
) -> None:
    newest = max(version, newest)

    def note(start: int) -> Any:
        return step(start, lambda body: {"seen": [*body["seen"], start]})

    order = list(range(1, newest))
    random.shuffle(order)
    steps = {f"step_{start}": note(start) for start in order}
    cls = declared({**steps, "__annotations__": {"seen": list[int]}}, version=newest)
    message: Any = cls.from_body(b'{"seen": []}', version=version)
    assert message.seen == list(range(version, newest))


def test_an_upcaster_is_a_plain_function_of_its_class_for_its_own_tests() -> None:
    assert OrderPlaced.name_the_currency({"total": 1}) == {"total": 1, "currency": "EUR"}
    assert OrderPlaced(order_id=1, amount=2, currency="EUR").rename_total({"total": 1}) == {
        "amount": 1
    }
    assert set(OrderPlaced.model_fields) == {"order_id", "amount", "currency"}


def test_what_is_read_is_published_as_the_newest_version() -> None:
    read = OrderPlaced.from_body(BODIES[0][1], version=1)
    assert json.loads(read.to_body()) == {"order_id": 7, "amount": 5, "currency": "EUR"}


# --- what the class statement refuses ------------------------------------------------------------


@pytest.mark.parametrize("versions", [(1,), (1, 3), (2,), (1, 2)])
def test_a_gap_between_the_oldest_upcaster_and_the_class_is_refused(
    versions: tuple[int, ...],
) -> None:
    steps = {f"from_{start}": step(start) for start in versions}
    with pytest.raises(DefinitionError, match="missing") as refused:
        declared(steps, version=4)
    (gap,) = [v for v in range(min(versions), 4) if v not in versions][:1]
    assert f"from version {gap} is missing" in str(refused.value)


def test_versions_that_can_no_longer_come_need_no_upcaster() -> None:
    cls = declared({"from_2": step(2)}, version=3)
    assert cls.from_body(b"{}", version=2) == cls()
    with pytest.raises(MessageRefused, match=r"version 1 is older than 2.*from_version=1") as old:
        cls.from_body(b"{}", version=1)
    assert old.value.path == "version"
    with pytest.raises(MessageRefused, match="mend its publisher"):
        cls.from_body(b"{}", version=0)


def test_two_upcasters_for_one_version_are_refused_by_their_names() -> None:
    def other(body: Body) -> Body:
        return body

    with pytest.raises(DefinitionError, match=r"same and .*other are both.*from version 2"):
        declared({"a": step(2), "b": step(2, other)})


@pytest.mark.parametrize("start", [3, 4])
def test_an_upcaster_from_the_class_s_own_version_or_a_newer_one_is_refused(start: int) -> None:
    with pytest.raises(DefinitionError, match=f"say version={start + 1}"):
        declared({"a": step(start)}, version=3)


@pytest.mark.parametrize("start", [0, -1, True, 1.0, "1"])
def test_a_version_that_is_none_is_refused(start: Any) -> None:
    with pytest.raises(DefinitionError, match="count from 1"):
        upcaster(from_version=start)


async def later(body: Body) -> Body:
    return body


def piecemeal(body: Body) -> Any:
    yield body


@pytest.mark.parametrize("function", [later, piecemeal, staticmethod(later)])
def test_a_function_that_answers_later_is_refused(function: Any) -> None:
    with pytest.raises(DefinitionError, match="plain function"):
        step(1, function)


@pytest.mark.parametrize("function", [classmethod(lambda cls, body: body), None])
def test_what_is_no_function_is_refused(function: Any) -> None:
    with pytest.raises(DefinitionError, match="not a function"):
        step(1, function)


def test_one_function_is_the_upcaster_of_one_version() -> None:
    with pytest.raises(DefinitionError, match="same is one already, from version 1"):
        step(2, step(1))


def test_the_decorators_may_stand_in_either_order() -> None:
    class Moved(Event, topic="t", version=2):
        @staticmethod
        @upcaster(from_version=1)
        def note(body: Body) -> Body:
            return {"noted": True}

        noted: bool

    assert Moved.from_body(b"{}", version=1).noted
    assert Moved.note({}) == {"noted": True}


# --- inheritance and names -----------------------------------------------------------------------


def test_a_subclass_does_not_inherit_upcasters_and_its_model_must_accept_old_bodies() -> None:
    class OrderPlacedAbroad(OrderPlaced):
        pass

    assert OrderPlacedAbroad.version == 3
    with pytest.raises(MessageRefused, match=r"amount.*declare upcaster\(from_version=1\)"):
        OrderPlacedAbroad.from_body(BODIES[0][1], version=1)
    assert OrderPlacedAbroad.from_body(BODIES[2][1], version=1).amount == 5


def test_a_subclass_declares_upcasters_of_its_own_and_may_take_over_its_parent_s() -> None:
    class OrderPlacedAbroad(OrderPlaced, version=2):
        total: int = 0
        amount: int = 0

        @upcaster(from_version=1)
        @staticmethod
        def name_the_currency(body: Body) -> Body:
            return OrderPlaced.name_the_currency(body)

    read = OrderPlacedAbroad.from_body(BODIES[0][1], version=1)
    assert (read.currency, read.total) == ("EUR", 5)
    assert OrderPlaced.from_body(BODIES[0][1], version=1).amount == 5


def test_one_function_may_be_the_upcaster_of_several_versions() -> None:
    cls = declared({"a": step(1), "b": step(2)})
    assert cls.from_body(b"{}", version=1) == cls()


def test_a_type_s_old_name_is_read_by_a_subclass_with_that_name() -> None:
    class OrderReceived(OrderPlaced, name="OrderPlaced", version=2):
        @upcaster(from_version=1)
        @staticmethod
        def as_the_new_type(body: Body) -> Body:
            return {"order_id": body["order_id"], "amount": body["total"], "currency": "EUR"}

    read = OrderReceived.from_body(BODIES[0][1], version=1)
    assert isinstance(read, OrderPlaced)
    assert (read.type_name, read.amount) == ("OrderPlaced", 5)
    with pytest.raises(MessageRefused, match="OrderPlaced version 3 is newer than 2"):
        OrderReceived.from_body(b"{}", version=3)


# --- what reading refuses ------------------------------------------------------------------------


def test_a_newer_version_is_refused_whether_or_not_there_are_upcasters() -> None:
    for cls in (OrderPlaced, declared({})):
        with pytest.raises(MessageRefused, match="deploy the newer consumer") as refused:
            cls.from_body(b"{}", version=4)
        assert refused.value.path == "version"


def test_without_upcasters_an_older_body_is_read_as_it_is() -> None:
    class Said(Event, topic="talk", version=2):
        word: str = "nothing"

    assert Said.from_body(b"{}", version=1) == Said()
    with pytest.raises(MessageRefused, match=r"\$\.word.*declare upcaster\(from_version=1\)"):
        Said.from_body(b'{"word": 1}', version=1)


def angry(body: Body) -> Body:
    raise LookupError(f"hush {body}")


def silent(body: Body) -> Any:
    body["amount"] = 1


def listing(body: Body) -> Any:
    return [body]


@pytest.mark.parametrize(
    ("function", "reason"),
    [(angry, r"LookupError at .*\.py:\d+"), (silent, "NoneType"), (listing, "list")],
)
def test_an_upcaster_that_raises_or_returns_no_dict_is_refused_by_name_without_values(
    function: Any, reason: str
) -> None:
    cls = declared({"a": step(1), "b": step(2, function)})
    with pytest.raises(
        MessageRefused,
        match=rf"{reason}.*correct {function.__name__}, .*Moved from version 2, deploy.*retry",
    ) as refused:
        cls.from_body(b'{"word": "hush"}', version=1)
    assert "hush" not in str(refused.value)


def test_an_upcaster_may_refuse_a_body_itself() -> None:
    def choosy(body: Body) -> Body:
        raise MessageRefused("$.currency", "there was none before 2009")

    with pytest.raises(MessageRefused, match="none before 2009") as refused:
        declared({"a": step(1, choosy)}, version=2).from_body(b"{}", version=1)
    assert refused.value.path == "$.currency"


@pytest.mark.parametrize("value", [float("nan"), object(), {1: 2}, b"x", "\ud800"])
def test_an_upcaster_that_returns_what_is_not_json_is_refused(value: object) -> None:
    cls = declared({"a": step(1, lambda body: {**body, "at": value})}, version=2)
    with pytest.raises(MessageRefused, match=r"correct .*lambda"):
        cls.from_body(b"{}", version=1)


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"{", b'{"a": 1, "a": 2}', b"\xff"])
def test_an_old_body_that_is_no_json_object_reaches_no_upcaster(body: bytes) -> None:
    cls = declared({"a": step(1, lambda _: {})}, version=2)
    with pytest.raises(MessageRefused):
        cls.from_body(body, version=1)


def test_a_model_that_does_not_take_what_the_upcasters_made_says_so() -> None:
    with pytest.raises(MessageRefused, match="version 2 after its upcasters") as refused:
        OrderPlaced.from_body(b'{"order_id": 7, "total": 5}', version=2)
    assert refused.value.path == "$.currency"


def test_what_one_upcaster_keeps_is_not_changed_by_the_next() -> None:
    kept: Body = {"tags": []}

    def add_tags(body: Body) -> Body:
        return {**body, **kept}

    def tag(body: Body) -> Body:
        body["tags"].append("old")
        return body

    class Tagged(Event, topic="t", version=3):
        tags: list[str]
        add: ClassVar[Any] = step(1, add_tags)
        put: ClassVar[Any] = step(2, tag)

    for _ in range(2):
        assert Tagged.from_body(b"{}", version=1).tags == ["old"]
    assert kept == {"tags": []}


def test_what_the_guide_shows_reads_every_version() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "handling.md").read_text()
    (shown,) = (b for b in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "upcaster" in b)
    names: dict[str, Any] = {"__name__": "guide"}
    exec(shown, names)
    for version, body, currency in BODIES:
        read = names["OrderPlaced"].from_body(body, version=version)
        assert (read.amount, read.currency) == (5, currency)
