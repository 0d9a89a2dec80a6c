"""Handlers get their class's version of messages that were published with an older one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga import Event, HandlerContext, Service, SyncHandlerContext, upcaster
from outbox_saga.archive import Archive
from outbox_saga.decisions import Decision
from outbox_saga.envelopes import seal
from outbox_saga.waiting_messages import WaitingMessages
from tests.inbox.processes import FEW, LATER
from tests.relay.house import House, till

ADA = Decision("ada", "a new reader")
OLD = b'{"total": 5,  "order_id": 7}'  # as it was written, blanks and all


class OrderPlaced(Event, topic="orders", version=3):
    order_id: int
    amount: int
    currency: str

    @upcaster(from_version=1)
    @staticmethod
    def name_the_currency(body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "currency": "EUR"}

    @upcaster(from_version=2)
    @staticmethod
    def rename_total(body: dict[str, Any]) -> dict[str, Any]:
        body["amount"] = body.pop("total")
        return body


class Careless(Event, topic="orders", name="OrderPlaced", version=3):
    """As it was deployed first, with a mistake."""

    amount: int

    @upcaster(from_version=2)
    @staticmethod
    def rename_total(body: dict[str, Any]) -> dict[str, Any]:
        body["amount"] = body.pop("sum")
        return body


def noted(handle: Any) -> str:
    seen = handle.message
    return f"{seen.order_id} {seen.amount} {seen.currency}, was {handle.envelope.version}"


async def note(handle: HandlerContext[OrderPlaced]) -> None:
    await handle.session.execute(sa.insert(till).values(note=noted(handle)))
    assert handle.envelope.body == OLD


def note_in_thread(handle: SyncHandlerContext[OrderPlaced]) -> None:
    handle.session.execute(sa.insert(till).values(note=noted(handle)))
    assert handle.envelope.body == OLD


MakeService = Callable[..., Service]


@pytest.fixture
async def serve(house: House) -> AsyncIterator[MakeService]:
    """`serve(message_class, handler, consumer)`: a release of the service."""
    made: list[Service] = []

    def make(message_class: type[Event], handler: Any, consumer: str = "listener") -> Service:
        service = Service("shop", database=house.another_database(), poll=0.01)
        service.on(message_class, consumer=consumer, retry=FEW)(handler)
        made.append(service)
        return service

    yield make
    for service in made:
        await service.close()


@pytest.mark.parametrize("handler", [note, note_in_thread])
async def test_a_handler_of_version_3_gets_what_was_published_as_1_and_replays_keep_its_bytes(
    house: House, serve: MakeService, handler: Any
) -> None:
    service = serve(OrderPlaced, handler)
    async with service.unit_of_work() as uow:
        uow.publish_body(OLD, topic="orders", type="OrderPlaced", key="order:7", version=1)
    assert await house.relay(service.publisher(), archive=True).run_until_empty() == 1
    assert house.notes() == ["7 5 EUR, was 1"]

    (kept,) = house.rows(house.tables.archive)
    assert kept.body == OLD
    assert json.loads(kept.headers)["version"] == 1

    house.advance(1)
    Archive(house.database).replay(ADA).run()
    second = serve(OrderPlaced, handler, "second")
    assert await house.relay(second.publisher()).run_until_empty() == 1
    assert house.notes() == ["7 5 EUR, was 1"] * 2


async def test_a_redelivery_of_an_older_body_is_a_repeat(house: House, serve: MakeService) -> None:
    service = serve(OrderPlaced, note)
    placed = seal(OrderPlaced(order_id=7, amount=5, currency="EUR"))
    old = replace(placed, version=1, body=OLD)
    for _ in range(2):
        await service.deliver(old)
    assert house.notes() == ["7 5 EUR, was 1"]
    assert house.set_aside() == []


async def test_what_an_upcaster_fails_on_waits_with_its_bytes_for_the_release_that_is_right(
    house: House, serve: MakeService
) -> None:
    placed = seal(OrderPlaced(order_id=7, amount=5, currency="EUR"), key="order:7")
    old = replace(placed, version=2, body=b'{"order_id": 7, "total": 5, "currency": "CHF"}')

    async def say(handle: HandlerContext[OrderPlaced]) -> None:
        await handle.session.execute(sa.insert(till).values(note=noted(handle)))

    await serve(Careless, say).deliver(old)
    (row,) = house.set_aside()
    assert (row.error_code, row.until, row.body) == ("unreadable", None, old.body)
    assert "KeyError at " in row.error
    assert "correct Careless.rename_total" in row.error
    assert house.notes() == []

    mended = serve(OrderPlaced, say)
    messages = WaitingMessages(house.database)
    (seen,) = await messages.list()
    await messages.retry(seen, Decision("ada", "deployed"))
    house.advance(LATER)
    assert await mended.waiting_room().run_once() == 1
    assert house.notes() == ["7 5 CHF, was 2"]
    assert house.set_aside() == []


async def test_a_type_that_was_renamed_goes_on_under_both_names_for_one_consumer(
    house: House, serve: MakeService
) -> None:
    class OrderReceived(OrderPlaced, name="OrderReceived", version=1):
        """The new name; the old one is read by a subclass of it."""

    class Before(OrderReceived, name="OrderPlaced", version=2):
        @upcaster(from_version=1)
        @staticmethod
        def as_received(body: dict[str, Any]) -> dict[str, Any]:
            return {"order_id": body["order_id"], "amount": body["total"], "currency": "EUR"}

    service = serve(OrderReceived, note_any)
    service.on(Before, consumer="listener")(note_any)
    new = seal(OrderReceived(order_id=8, amount=6, currency="SEK"))
    await service.deliver(replace(new, type="OrderPlaced", body=OLD, version=1))
    await service.deliver(seal(OrderReceived(order_id=8, amount=6, currency="SEK")))
    assert house.notes() == ["7 5 EUR, was 1", "8 6 SEK, was 1"]


async def note_any(handle: HandlerContext[OrderPlaced]) -> None:
    await handle.session.execute(sa.insert(till).values(note=noted(handle)))
