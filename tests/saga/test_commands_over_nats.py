"""Two services with a database each, and NATS between them: as they run."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from outbox_saga import Failure, HandlerContext, Saga, SagaEvent, Service, nothing_to_undo
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database as Given
from tests.saga.shipping import CancelShipment, Order, ShipOrder, Shipping, pay, unpay


class Told(SagaEvent, topic="told"):
    pass


async def no(step: Any) -> Failure[str]:
    return Failure("not today")


@pytest.mark.databases("sqlite", "postgres18")
@pytest.mark.parametrize("undone", [False, True], ids=["completes", "is-undone"])
async def test_a_saga_commands_another_service_over_nats(
    database: Given, fresh_database: Any, nats_url: str, undone: bool
) -> None:
    name = f"commands-{uuid4().hex[:12]}"
    broker = f"{nats_url}?stream={name}&prefix={name}&create=1"
    shipping = Shipping(fresh_database(database.name).url, broker=broker)
    saga = (
        Saga("ordering", data=Order, events=Told)
        .step("pay", pay, compensation=unpay)
        .step("ship", ShipOrder, compensation=CancelShipment, timeout=60.0)
    )
    if undone:
        saga.step("after", no, compensation=nothing_to_undo)
    orders = Service("orders", database=database.url, broker=broker, sagas=[saga])
    with orders.database.begin() as connection:
        upgrade(connection)
    ended: asyncio.Future[Told] = asyncio.get_running_loop().create_future()

    @orders.on(Told)
    async def listen(handle: HandlerContext[Told]) -> None:
        if handle.message.transition in ("COMPLETED", "COMPENSATED") and not ended.done():
            ended.set_result(handle.message)

    async with asyncio.timeout(60), shipping.service.running(), orders.running():
        async with orders.unit_of_work() as uow:
            id_ = saga.start(uow, Order(order_id=7))
        told = await ended

    assert (told.saga_id, told.transition) == (id_, "COMPENSATED" if undone else "COMPLETED")
    assert shipping.facts() == (([], ["do", "undo"]) if undone else ([7], ["do"]))
    await orders.close()
    await shipping.service.close()
