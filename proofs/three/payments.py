"""The service that has the customers' money."""

from __future__ import annotations

import os

from outbox_saga import Failure, HandlerContext, Result, Service, Success
from proofs.three.amounts import cancel, take, take_unless_cancelled
from proofs.three.messages import (
    OrderCancelled,
    PaymentFailed,
    PaymentTaken,
    RefundPayment,
    StockReserved,
    TakePayment,
)

service = Service(
    "payments", database=os.environ["PAYMENTS_DATABASE"], broker=os.environ["BROKER"]
)


@service.handles(TakePayment, undo=RefundPayment)
async def pay(handle: HandlerContext[TakePayment]) -> Result[None, str]:
    """Or a no: there is not so much."""
    told = handle.message
    done = await take(handle.session, told.order_id, told.customer, told.cents)
    return Success() if done else Failure(f"{told.customer} has not so much")


@service.handles(RefundPayment)
async def refund(handle: HandlerContext[RefundPayment]) -> Result[None, str]:
    """All of it."""
    told = handle.message
    await take(handle.session, told.order_id, told.customer, -told.cents)
    return Success()


@service.on(StockReserved, consumer="payments.reservations")
async def reserved(handle: HandlerContext[StockReserved]) -> PaymentTaken | PaymentFailed:
    """It is paid now."""
    told = handle.message
    if await take_unless_cancelled(handle.session, told.order_id, told.customer, told.cents):
        return PaymentTaken(order_id=told.order_id)
    return PaymentFailed(order_id=told.order_id)


@service.on(OrderCancelled, consumer="payments.cancellations")
async def give_back(handle: HandlerContext[OrderCancelled]) -> None:
    """What was paid."""
    await cancel(handle.session, handle.message.order_id)
