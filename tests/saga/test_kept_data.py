"""The data of a saga as it is kept: the same in every process, whole, and never in a log."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import (
    BaseModel,
    Field,
    RootModel,
    SecretBytes,
    SecretStr,
    field_serializer,
    field_validator,
)
from pydantic_core import PydanticCustomError

from outbox_saga import Retry, Saga, Service, nothing_to_undo
from outbox_saga.errors import MessageRefused
from outbox_saga.saga.operating import SagaOperations
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database

CARD = "4111111111111111"
MAIL = "ada@example.org"


class Line(BaseModel):
    sku: str = "tea"
    price: float = 0.0


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Order(BaseModel):
    card: str = ""
    lines: list[Line] = []
    seen: dict[str, int] = {}
    by_number: dict[int, list[int]] = {}
    named: dict[str, Line] = {}
    owner: UUID | None = None
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] = Cat()
    anything: Any = None

    @field_validator("card")
    @classmethod
    def taken(cls, card: str) -> str:
        if card.startswith("4111"):
            raise ValueError(f"{card} is not a card we take")
        if card.startswith("5"):
            raise PydanticCustomError("missing", "5 begins {card}", {"card": card})
        return card


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a validator": ({"card": CARD}, "$.card", "value_error"),
    "a field in a list": (
        {"lines": [{}, {"price": CARD + "x"}]},
        "$.lines[1].price",
        "unable to parse string as a number",
    ),
    "a key": ({"seen": {MAIL: "x"}}, "$.seen[*]", "valid integer"),
    "a number as a key": ({"by_number": {int(CARD): [1, "x"]}}, "$.by_number[*][1]", "integer"),
    "a field under a key": ({"named": {MAIL: {"price": "x"}}}, "$.named[*].price", "number"),
    "what is parsed": ({"owner": f"{MAIL}"}, "$.owner", "uuid_parsing"),
    "a tag": ({"pet": {"kind": MAIL}}, "$.pet", "union_tag_invalid"),
    "no JSON": ({"anything": {MAIL: [0, float("nan")]}}, "$.anything[*][1]", "not JSON"),
    "NUL in a key": ({"anything": {f"{MAIL}\x00": 1}}, "$.anything[*]", "NUL"),
    "a key that is no text": ({"anything": {int(CARD): 1}}, "$.anything", "of type int"),
    "a field that there is not": ({MAIL: 1}, "$[*]", "has no such field"),
    "a text of its own": ({"card": "5" + MAIL}, "$.card", "Field required"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_told_without_a_value_of_it(what: str) -> None:
    saga = Saga("o", data=Order)
    returned, path, told = REFUSED[what]
    with pytest.raises(MessageRefused) as refused:
        saga.merge(saga.dump(Order()), returned)
    assert refused.value.path == path
    assert told in refused.value.reason
    assert refused.value.__suppress_context__ or refused.value.__cause__ is None
    for value in (CARD, MAIL):
        assert value not in str(refused.value)


@pytest.mark.databases("sqlite")
async def test_no_value_of_the_data_is_in_a_log_or_the_history(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="outbox_saga")

    async def act(step: Any) -> dict[str, Any]:
        return {"seen": {MAIL: "x"}} if step.data.card == "no" else {"card": CARD}

    once = Retry(max_attempts=1)
    ways: dict[str, dict[str, Any]] = {
        "local": {},
        "far": {"external": True, "idempotent": True},
    }
    sagas = [
        Saga(name, data=Order).step("x", act, compensation=nothing_to_undo, retry=once, **options)
        for name, options in ways.items()
    ]
    service = Service("s", database=database.url, broker="local", sagas=sagas)
    with service.database.begin() as connection:
        upgrade(connection)
    async with service.unit_of_work() as uow:
        ids = [saga.start(uow, Order(card=card)) for saga in sagas for card in ("no", "")]
    orchestrator = service.orchestrator()
    while await orchestrator.run_once():
        pass
    orchestrator.close()
    operations = SagaOperations(service.database)
    told = caplog.text
    for id_ in ids:
        seen, history = await operations.show(id_)
        assert seen.state.status == "compensated"
        told += str(seen.state.reason) + str(history)
    await service.close()
    assert "$.seen[*]" in told
    for value in (CARD, MAIL):
        assert value not in told


class Hidden(BaseModel):
    token: SecretStr | None = None
    raw: SecretBytes | None = None
    many: list[dict[str, SecretStr]] = []


class Revealed(BaseModel):
    token: SecretStr = SecretStr("")
    note: str = "**********"

    @field_serializer("token", when_used="json")
    def reveal(self, token: SecretStr) -> str:
        return token.get_secret_value()


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"token": "t"}, "$.token"),
        ({"raw": b"t"}, "$.raw"),
        ({"many": [{}, {MAIL: "t"}]}, "$.many[1][*]"),
    ],
)
def test_a_secret_that_would_be_kept_as_asterisks_is_refused(
    data: dict[str, Any], path: str
) -> None:
    saga = Saga("o", data=Hidden)
    for take in (saga.dump, lambda given: saga.merge({}, given)):
        with pytest.raises(MessageRefused, match="serializer that reveals it") as refused:
            take(data)
        assert refused.value.path == path


def test_a_secret_that_is_revealed_or_empty_or_asterisks_is_kept() -> None:
    saga = Saga("o", data=Revealed)
    kept = saga.dump(Revealed(token=SecretStr("t")))
    assert kept["token"] == "t"
    assert saga.load(kept).token.get_secret_value() == "t"
    assert Saga("o", data=Hidden).dump({"token": ""})["token"] == ""
    assert Saga("o", data=Hidden).dump({"token": "**********"})["token"] == "**********"


class Tag(BaseModel, frozen=True):
    name: str


class Names(RootModel[set[str]]):
    """A set, as a model of its own."""


@dataclass(frozen=True)
class Kept:
    tags: frozenset[str]


class Sets(BaseModel):
    tags: set[str]
    models: set[Tag]
    nested: frozenset[frozenset[str]]
    listed: list[set[str]]
    keyed: dict[str, set[str]]
    names: Names
    kept: Kept
    aliased: set[str] = Field(alias="Aliased", default=set(), validate_default=True)


def sets() -> dict[str, Any]:
    some = {"tea", "milk", "sugar"}
    return Saga("o", data=Sets).dump(
        Sets(
            tags=some,
            models={Tag(name=name) for name in some},
            nested=frozenset({frozenset(some), frozenset({"x", "y"})}),
            listed=[some, {"b", "a"}],
            keyed={"k": some},
            names=Names(some),
            kept=Kept(frozenset(some)),
            Aliased=some,
        )
    )


def test_a_set_is_kept_in_one_order_in_every_process() -> None:
    ordered = ["milk", "sugar", "tea"]
    assert sets() == {
        "tags": ordered,
        "models": [{"name": name} for name in ordered],
        "nested": [ordered, ["x", "y"]],
        "listed": [ordered, ["a", "b"]],
        "keyed": {"k": ordered},
        "names": ordered,
        "kept": {"tags": ordered},
        "aliased": ordered,
    }
    code = "from tests.saga.test_kept_data import sets; print(sets())"
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in range(1, 4)
    }
    assert told == {f"{sets()}\n"}
