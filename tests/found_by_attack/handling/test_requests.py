"""Requests whose withdrawal is refused, and services whose names are much alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from outbox_saga import (
    Failure,
    HandlerContext,
    RequestFaulted,
    RequestTimeout,
    Retry,
    Service,
    Success,
)
from outbox_saga.brokers.local import LocalPublisher
from outbox_saga.commanding import replies_topic, requests_topic
from outbox_saga.waiting_messages import WaitingMessages
from outbox_saga_migrations import upgrade
from outbox_saga_relay.relay import Relay
from tests.fixtures.databases import Database
from tests.saga.shipping import CancelShipment, ShipOrder

pytestmark = pytest.mark.databases("sqlite")


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[Service]:
    """A service that asks itself; of one that asks another it has both halves."""
    made = Service("shop", database=database.url, requests=True)
    with made.database.begin() as connection:
        upgrade(connection)
    yield made
    await made.close()


async def carry(service: Service) -> None:
    publisher = LocalPublisher(service.deliver, concurrency=1, timeout=30.0)
    for _ in range(3):
        await Relay(service.database, publisher, listen=False).run_until_empty()


async def test_a_withdrawal_that_is_refused_is_told_and_may_be_tried_again(shop: Service) -> None:
    closed = True
    undone: list[int] = []

    @shop.handles(ShipOrder, undo=CancelShipment)
    async def ship(handle: HandlerContext[ShipOrder]) -> dict[str, str]:
        return {"parcel": "P7"}

    @shop.handles(CancelShipment)
    async def cancel(handle: HandlerContext[CancelShipment]) -> Any:
        if closed:
            return Failure("closed on Sundays")
        undone.append(handle.message.order_id)
        return None

    async with shop.unit_of_work() as uow:
        request = shop.ask(uow, ShipOrder(order_id=7, address="x"))
    await carry(shop)
    async with shop.unit_of_work() as uow:
        shop.withdraw(uow, request, CancelShipment(order_id=7))
    await carry(shop)

    (told,) = await WaitingMessages(shop.database).list()
    assert told.consumer == "shop.requests"
    assert "withdraw it again" in str(told.error)

    closed = False
    async with shop.unit_of_work() as uow:
        shop.withdraw(uow, request, CancelShipment(order_id=7))
    await carry(shop)
    assert undone == [7]
    assert await shop.async_reply(request, timeout=0.0) == Success({"parcel": "P7"})


def test_what_one_service_asks_is_answered_where_no_saga_of_another_is() -> None:
    for name in ("shop", "shop.requests", "shop.replies"):
        for other in ("shop", "shop.requests", "shop.replies", "shop.replies.requests"):
            assert requests_topic(name) != replies_topic(other)


async def test_who_only_listens_to_a_request_and_gives_up_tells_nothing_about_it(
    shop: Service,
) -> None:
    @shop.on(ShipOrder, consumer="shop.audit", retry=Retry(max_attempts=1))
    async def audit(handle: HandlerContext[ShipOrder]) -> None:
        raise OSError("the disk is full")

    shipped = shop.handles(ShipOrder, retry=Retry(max_attempts=1))
    async with shop.unit_of_work() as uow:
        request = shop.ask(uow, ShipOrder(order_id=7, address="x"))
    await carry(shop)

    with pytest.raises(RequestTimeout):  # nobody has answered, and nobody who would gave it up
        await shop.async_reply(request, timeout=0.0)

    @shipped
    async def ship(handle: HandlerContext[ShipOrder]) -> Any:
        raise OSError("no lorry")

    async with shop.unit_of_work() as uow:
        request = shop.ask(uow, ShipOrder(order_id=8, address="x"))
    await carry(shop)

    with pytest.raises(RequestFaulted):
        await shop.async_reply(request, timeout=0.0)
