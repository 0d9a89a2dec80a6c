"""Commands, asked or plainly published: what is answered, what leaves, and who is told."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga import (
    Event,
    Failure,
    HandlerContext,
    RequestFaulted,
    RequestTimeout,
    Retry,
    Service,
    Success,
    SyncHandlerContext,
)
from outbox_saga.brokers.local import LocalPublisher
from outbox_saga.commanding import Asked
from outbox_saga.decisions import Decision
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import ConfigurationError
from outbox_saga.ids import new_id
from outbox_saga.queries import barriers
from outbox_saga.queries.clock import Clock
from outbox_saga.tables import Tables
from outbox_saga.waiting_messages import WaitingMessages
from outbox_saga_migrations import upgrade
from outbox_saga_relay.relay import Relay
from tests.fixtures.databases import Database
from tests.saga.shipping import CancelShipment, ShipOrder

pytestmark = pytest.mark.databases("sqlite", "postgres18")

ADA = Decision("ada", "a test order")


class Shipped(Event, topic="shipped"):
    order_id: int


def order(order_id: int = 7) -> ShipOrder:
    return ShipOrder(order_id=order_id, address="Lovelace Road 1")


class Shop:
    """A service that asks itself; of one that asks another it has both halves."""

    def __init__(self, url: str) -> None:
        self.service = Service("shop", database=url, requests=True)
        with self.service.database.begin() as connection:
            upgrade(connection)
        self.waiting = WaitingMessages(self.service.database)
        self.sent: list[str] = []

    async def carry(self) -> None:
        async def deliver(envelope: Envelope) -> int:
            self.sent.append(envelope.type)
            return await self.service.deliver(envelope)

        publisher = LocalPublisher(deliver, concurrency=1, timeout=30.0)
        for _ in range(3):
            await Relay(self.service.database, publisher, listen=False).run_until_empty()

    async def ask(self, command: ShipOrder, **options: Any) -> Any:
        async with self.service.unit_of_work() as uow:
            request = self.service.ask(uow, command, **options)
        await self.carry()
        return request

    async def publish(self, command: ShipOrder) -> None:
        async with self.service.unit_of_work() as uow:
            uow.publish(command, key="order:7")
        await self.carry()

    async def answer(self, request: Any) -> Any:
        return await self.service.async_reply(request, timeout=0.0)


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[Shop]:
    made = Shop(database.url)
    yield made
    await made.service.close()


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_message_in_a_success_leaves_whoever_sent_the_command(
    shop: Shop, kind: str
) -> None:
    async def in_loop(handle: HandlerContext[ShipOrder]) -> Success[Shipped]:
        return Success(Shipped(order_id=handle.message.order_id))

    def in_thread(handle: SyncHandlerContext[ShipOrder]) -> Success[Shipped]:
        return Success(Shipped(order_id=handle.message.order_id))

    shop.service.handles(ShipOrder)(in_thread if kind == "def" else in_loop)
    await shop.publish(order())
    assert shop.sent.count("Shipped") == 1
    request = await shop.ask(order())
    assert shop.sent.count("Shipped") == 2
    assert await shop.answer(request) == Success({})


async def test_a_command_that_was_plainly_published_is_done_though_nobody_wants_its_data(
    shop: Shop,
) -> None:
    done: list[int] = []

    @shop.service.handles(ShipOrder, retry=Retry(max_attempts=1))
    async def ship(handle: HandlerContext[ShipOrder]) -> dict[str, str]:
        done.append(handle.message.order_id)
        return {"parcel": "P7"}

    await shop.publish(order())
    assert (done, await shop.waiting.list()) == ([7], [])


async def test_a_no_to_a_command_that_was_plainly_published_is_kept_as_of_any_handler(
    shop: Shop,
) -> None:
    @shop.service.handles(ShipOrder, retry=Retry(max_attempts=1))
    async def ship(handle: HandlerContext[ShipOrder]) -> Failure[str]:
        return Failure("closed")

    await shop.publish(order())
    (kept,) = await shop.waiting.list()
    assert (kept.state, kept.error_code) == ("dead", "handler_refused")


def test_only_one_function_of_a_service_carries_a_command_out() -> None:
    service = Service("shop", database="sqlite:///never.db")

    async def ship(handle: HandlerContext[ShipOrder]) -> None: ...

    service.handles(ShipOrder, consumer="one")(ship)
    service.on(ShipOrder, consumer="listener")(ship)
    with pytest.raises(ConfigurationError, match=r"one function, or let one of them listen"):
        service.handles(ShipOrder, consumer="two")(ship)


# --- one id, one request -------------------------------------------------------------------------


async def asked_twice(shop: Shop, second: ShipOrder) -> tuple[Any, list[int]]:
    done: list[int] = []

    @shop.service.handles(ShipOrder)
    async def ship(handle: HandlerContext[ShipOrder]) -> dict[str, Any]:
        done.append(handle.message.order_id)
        return {"order": handle.message.order_id}

    request = await shop.ask(order(), key="orders")
    assert await shop.ask(second, key="orders", request=request) == request
    return request, done


async def test_another_command_under_the_id_of_a_request_is_a_dead_letter_and_holds_up_nothing(
    shop: Shop,
) -> None:
    request, done = await asked_twice(shop, order(8))
    (kept,) = await shop.waiting.list()
    assert (kept.state, kept.error_code, kept.holds_up_key) == ("dead", "altered", False)
    assert f"request {request} was asked before with another command" in kept.error
    assert (done, await shop.answer(request)) == ([7], Success({"order": 7}))


async def test_the_same_command_under_the_id_of_a_request_is_that_request(shop: Shop) -> None:
    request, done = await asked_twice(shop, order())
    assert (done, await shop.waiting.list()) == ([7], [])
    assert await shop.answer(request) == Success({"order": 7})


async def test_of_what_an_older_release_has_answered_nobody_knows_what_was_asked(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = barriers.note

    def as_it_was(
        connection: sa.Connection,
        tables: Tables,
        clock: Clock,
        asked: Asked,
        state: barriers.State,
        answer: str,
    ) -> None:
        kept = json.loads(answer)
        del kept["command"]
        note(connection, tables, clock, asked, state, json.dumps(kept))

    monkeypatch.setattr(barriers, "note", as_it_was)
    request, done = await asked_twice(shop, order(8))
    assert (done, await shop.waiting.list()) == ([7], [])
    assert await shop.answer(request) == Success({"order": 7})


# --- what a person discards ----------------------------------------------------------------------


async def test_who_made_a_request_is_told_that_a_person_has_discarded_it(shop: Shop) -> None:
    @shop.service.handles(ShipOrder, retry=Retry(max_attempts=20, initial=60.0))
    async def ship(handle: HandlerContext[ShipOrder]) -> None:
        raise RuntimeError("not now")

    request = await shop.ask(order())
    with pytest.raises(RequestTimeout):
        await shop.answer(request)
    (seen,) = await shop.waiting.list()
    await shop.waiting.discard(seen, ADA)
    await shop.carry()
    with pytest.raises(RequestFaulted, match="a person has discarded") as told:
        await shop.answer(request)
    assert told.value.code == "discarded"


async def test_nobody_is_told_when_what_is_discarded_is_of_one_who_only_listens(
    shop: Shop,
) -> None:
    @shop.service.on(ShipOrder, consumer="listener", retry=Retry(max_attempts=1))
    async def note(handle: HandlerContext[ShipOrder]) -> None:
        raise RuntimeError("not now")

    request = await shop.ask(order())
    (seen,) = await shop.waiting.list()
    await shop.waiting.discard(seen, ADA)
    await shop.carry()
    with pytest.raises(RequestTimeout):
        await shop.answer(request)


# --- what cannot work ----------------------------------------------------------------------------


async def test_a_service_that_takes_no_answers_in_cannot_withdraw(database: Database) -> None:
    service = Service("shop", database=database.url)
    with service.database.begin() as connection:
        upgrade(connection)
    with pytest.raises(ConfigurationError, match="requests=True"):
        async with service.unit_of_work() as uow:
            service.withdraw(uow, new_id(), CancelShipment(order_id=7))
    await service.close()


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf])
async def test_a_time_that_is_no_number_of_seconds_is_refused_before_anything_is_asked(
    shop: Shop, seconds: float
) -> None:
    for wait in (
        shop.service.async_reply(new_id(), timeout=seconds),
        shop.service.async_request(order(), timeout=seconds),
    ):
        with pytest.raises(ConfigurationError, match="timeout is"):
            await wait
    with pytest.raises(ConfigurationError, match="timeout is"):
        shop.service.reply(new_id(), timeout=seconds)
    with pytest.raises(ConfigurationError, match="timeout is"):
        shop.service.request(order(), timeout=seconds)
    await shop.carry()
    assert shop.sent == []
