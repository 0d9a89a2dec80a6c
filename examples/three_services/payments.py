"""The service that has the customers' money.

outbox-saga run payments:service
"""

from __future__ import annotations

import os

from messages import (
    OrderCancelled,
    PaymentFailed,
    PaymentTaken,
    RefundPayment,
    StockReserved,
    TakePayment,
)
from sqlalchemy import String, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox_saga import Failure, HandlerContext, Result, Service, Success

DATABASE = os.environ.get("PAYMENTS_DATABASE", "sqlite:///payments.db")
BROKER = os.environ.get("BROKER", "nats://127.0.0.1:4222?stream=shop&prefix=shop&create=1")

service = Service("payments", database=DATABASE, broker=BROKER)


class Base(DeclarativeBase):
    type_annotation_map = {str: String(100)}  # noqa: RUF012 - SQLAlchemy's own declaration


class Account(Base):
    __tablename__ = "accounts"
    customer: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]


class Payment(Base):
    __tablename__ = "payments"
    order_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer: Mapped[str]
    cents: Mapped[int]
    state: Mapped[str]  # taken, refunded, or cancelled before anything was taken


async def _take(session: AsyncSession, order_id: int, customer: str, cents: int) -> bool:
    taken = await session.execute(
        update(Account)
        .where(Account.customer == customer, Account.cents >= cents)
        .values(cents=Account.cents - cents)
    )
    if not taken.rowcount:  # type: ignore[attr-defined]
        return False
    session.add(Payment(order_id=order_id, customer=customer, cents=cents, state="taken"))
    return True


async def _refund(session: AsyncSession, payment: Payment) -> None:
    if payment.state == "taken":
        await session.execute(
            update(Account)
            .where(Account.customer == payment.customer)
            .values(cents=Account.cents + payment.cents)
        )
        payment.state = "refunded"


# --- by commands: the answer goes back to the saga -----------------------------------------------


@service.handles(TakePayment, undo=RefundPayment)
async def take(handle: HandlerContext[TakePayment]) -> Result[None, str]:
    wanted = handle.message
    done = await _take(handle.session, wanted.order_id, wanted.customer, wanted.cents)
    return Success() if done else Failure(f"{wanted.customer} has not so much")


@service.handles(RefundPayment)
async def refund(handle: HandlerContext[RefundPayment]) -> Result[None, str]:
    payment = await handle.session.get(Payment, handle.message.order_id)
    if payment is not None:
        await _refund(handle.session, payment)
    return Success()


# --- by events -----------------------------------------------------------------------------------


@service.on(StockReserved, consumer="payments.reservations")
async def reserved(handle: HandlerContext[StockReserved]) -> PaymentTaken | PaymentFailed:
    order = handle.message
    # it comes from inventory, and a cancellation from orders: nothing says which comes first
    known = await handle.session.get(Payment, order.order_id)
    if known is None and await _take(handle.session, order.order_id, order.customer, order.cents):
        return PaymentTaken(order_id=order.order_id)
    return PaymentFailed(order_id=order.order_id)


@service.on(OrderCancelled, consumer="payments.cancellations")
async def cancelled(handle: HandlerContext[OrderCancelled]) -> None:
    order_id = handle.message.order_id
    payment = await handle.session.get(Payment, order_id)
    if payment is None:  # so that a reservation that comes later takes nothing
        handle.session.add(Payment(order_id=order_id, customer="", cents=0, state="cancelled"))
    else:
        await _refund(handle.session, payment)
