"""The service that knows what is on the shelf."""

from __future__ import annotations

import os

from outbox_saga import Failure, HandlerContext, Result, Service, Success
from proofs.three.amounts import cancel, take, take_unless_cancelled
from proofs.three.messages import (
    OrderCancelled,
    OrderPlaced,
    ReleaseStock,
    ReserveStock,
    StockRefused,
    StockReserved,
)

service = Service(
    "inventory", database=os.environ["INVENTORY_DATABASE"], broker=os.environ["BROKER"]
)


@service.handles(ReserveStock, undo=ReleaseStock)
async def reserve(handle: HandlerContext[ReserveStock]) -> Result[None, str]:
    """Or a no: there is not so much."""
    told = handle.message
    done = await take(handle.session, told.order_id, told.sku, told.quantity)
    return Success() if done else Failure(f"not enough {told.sku}")


@service.handles(ReleaseStock)
async def release(handle: HandlerContext[ReleaseStock]) -> Result[None, str]:
    """All of it."""
    told = handle.message
    await take(handle.session, told.order_id, told.sku, -told.quantity)
    return Success()


@service.on(OrderPlaced, consumer="inventory.orders")
async def placed(handle: HandlerContext[OrderPlaced]) -> StockReserved | StockRefused:
    """It is reserved."""
    told = handle.message
    if await take_unless_cancelled(handle.session, told.order_id, told.sku, told.quantity):
        return StockReserved(order_id=told.order_id, customer=told.customer, cents=told.cents)
    return StockRefused(order_id=told.order_id)


@service.on(OrderCancelled, consumer="inventory.cancellations")
async def put_back(handle: HandlerContext[OrderCancelled]) -> None:
    """What was reserved."""
    await cancel(handle.session, handle.message.order_id)
