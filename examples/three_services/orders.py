"""The service that takes orders, and whose sagas see each of them through.

outbox-saga run orders:service
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

from messages import (
    OrderCancelled,
    OrderPlaced,
    PaymentFailed,
    PaymentTaken,
    RefundPayment,
    ReleaseStock,
    ReserveStock,
    StockRefused,
    StockReserved,
    TakePayment,
)
from pydantic import BaseModel
from sqlalchemy import String, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox_saga import Result, Saga, Service, StepContext, Success, minutes

DATABASE = os.environ.get("ORDERS_DATABASE", "sqlite:///orders.db")
BROKER = os.environ.get("BROKER", "nats://127.0.0.1:4222?stream=shop&prefix=shop&create=1")


class Base(DeclarativeBase):
    type_annotation_map = {str: String(100)}  # noqa: RUF012 - SQLAlchemy's own declaration


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str]


class OrderData(BaseModel):
    """What the sagas know. Commands take their fields from here by name."""

    order_id: int
    sku: str
    quantity: int
    customer: str
    cents: int


Action = Callable[[StepContext[OrderData]], Awaitable[Result[None, str]]]


def becomes(state: str) -> Action:
    """A step that changes the order's state, in one transaction with the saga's progress."""

    async def change(step: StepContext[OrderData]) -> Result[None, str]:
        await step.session.execute(
            update(Order).where(Order.id == step.data.order_id).values(state=state)
        )
        return Success()

    return change


# --- by commands ---------------------------------------------------------------------------------

by_commands = (
    Saga("fulfil_by_commands", data=OrderData)
    .step("accept", becomes("accepted"), compensation=becomes("cancelled"))
    .step("reserve", ReserveStock, compensation=ReleaseStock, timeout=minutes(1))
    .step("pay", TakePayment, compensation=RefundPayment, timeout=minutes(1))
    .step("confirm", becomes("confirmed"), pivot=True)
)


# --- by events -----------------------------------------------------------------------------------


async def place(step: StepContext[OrderData]) -> Result[None, str]:
    await becomes("accepted")(step)
    step.publish(OrderPlaced(**step.data.model_dump()), key=f"order:{step.data.order_id}")
    return Success()


async def cancel(step: StepContext[OrderData]) -> Result[None, str]:
    await becomes("cancelled")(step)
    step.publish(OrderCancelled(order_id=step.data.order_id), key=f"order:{step.data.order_id}")
    return Success()


by_events = (
    Saga("fulfil_by_events", data=OrderData)
    .step("place", place, compensation=cancel)
    .wait_for("reserved", StockReserved, fails_on=StockRefused, timeout=minutes(1))
    .wait_for("paid", PaymentTaken, fails_on=PaymentFailed, timeout=minutes(1))
    .step("confirm", becomes("confirmed"), pivot=True)
)

service = Service("orders", database=DATABASE, broker=BROKER, sagas=[by_commands, by_events])
