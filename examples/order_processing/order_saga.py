"""An order of several items: validated, reserved, paid, created and confirmed; or nothing of it.

python order_saga.py ada ada@example.com 1x2 3x1     (product x quantity)
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from uuid import UUID

import psp
from pydantic import BaseModel
from sqlalchemy import String, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox_saga import (
    Breaker,
    Event,
    Failure,
    Result,
    Saga,
    Service,
    StepContext,
    Success,
    nothing_to_undo,
)
from outbox_saga.saga.operating import SagaOperations

DATABASE = os.environ.get("ORDERS_DATABASE", "sqlite:///orders.db")
MAIL = Path(os.environ.get("ORDERS_MAIL", "mail"))  # where letters go: one file for each


class Base(DeclarativeBase):
    type_annotation_map = {str: String(200)}  # noqa: RUF012 - SQLAlchemy's own declaration


class Product(Base):
    __tablename__ = "products"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    cents: Mapped[int]
    stock: Mapped[int]


class Reservation(Base):
    __tablename__ = "reservations"
    id: Mapped[int] = mapped_column(primary_key=True)
    product_id: Mapped[int]
    quantity: Mapped[int]


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    cents: Mapped[int]
    state: Mapped[str]


class OrderCreated(Event, topic="orders"):
    order_id: int
    cents: int


class OrderCancelled(Event, topic="orders"):
    order_id: int


class Item(BaseModel):
    product_id: int
    quantity: int


class OrderData(BaseModel):
    """What the saga knows; what steps return is merged into it."""

    customer: str
    email: str
    items: list[Item]
    total_amount: int | None = None
    reservation_ids: list[int] = []
    payment_id: str | None = None
    order_id: int | None = None


async def validate_order(step: StepContext[OrderData]) -> Result[dict[str, int], str]:
    if not step.data.items:
        return Failure("the order has no items")
    total = 0
    for item in step.data.items:
        product = await step.session.get(Product, item.product_id)
        if product is None:
            return Failure(f"there is no product {item.product_id}")
        if item.quantity < 1:
            return Failure(f"{item.quantity} is no quantity of {product.name}")
        total += product.cents * item.quantity
    return Success({"total_amount": total})


async def reserve_inventory(step: StepContext[OrderData]) -> Result[dict[str, list[int]], str]:
    """All items or none: what was reserved before a `Failure` is rolled back with it."""
    ids = []
    for item in step.data.items:
        taken = await step.session.execute(
            update(Product)
            .where(Product.id == item.product_id, Product.stock >= item.quantity)
            .values(stock=Product.stock - item.quantity)
        )
        if not taken.rowcount:  # type: ignore[attr-defined]
            return Failure(f"not enough of product {item.product_id}")
        reservation = Reservation(product_id=item.product_id, quantity=item.quantity)
        step.session.add(reservation)
        await step.session.flush()
        ids.append(reservation.id)
    return Success({"reservation_ids": ids})


async def release_inventory(step: StepContext[OrderData]) -> Result[None, str]:
    for id_ in step.data.reservation_ids:
        reservation = await step.session.get_one(Reservation, id_)
        await step.session.execute(
            update(Product)
            .where(Product.id == reservation.product_id)
            .values(stock=Product.stock + reservation.quantity)
        )
        await step.session.delete(reservation)
    return Success()


async def process_payment(step: StepContext[OrderData]) -> Result[dict[str, str], str]:
    """At another company: outside any transaction, under a key that never changes."""
    assert step.data.total_amount is not None
    paid = await asyncio.to_thread(psp.pay, step.key, step.data.customer, step.data.total_amount)
    return Failure("the payment was declined") if paid is None else Success({"payment_id": paid})


async def refund_payment(step: StepContext[OrderData]) -> Result[None, str]:
    assert step.data.total_amount is not None
    await asyncio.to_thread(psp.refund, step.key, step.data.customer, step.data.total_amount)
    return Success()


async def create_order(step: StepContext[OrderData]) -> Result[dict[str, int], str]:
    assert step.data.total_amount is not None
    order = Order(customer=step.data.customer, cents=step.data.total_amount, state="created")
    step.session.add(order)
    await step.session.flush()
    step.publish(OrderCreated(order_id=order.id, cents=order.cents), key=f"order:{order.id}")
    return Success({"order_id": order.id})


async def cancel_order(step: StepContext[OrderData]) -> Result[None, str]:
    order = await step.session.get_one(Order, step.data.order_id)
    order.state = "cancelled"
    step.publish(OrderCancelled(order_id=order.id), key=f"order:{order.id}")
    return Success()


async def send_confirmation(step: StepContext[OrderData]) -> Result[None, str]:
    if "@" not in step.data.email:
        return Failure(f"{step.data.email} is no address")
    await asyncio.to_thread(_send, step, f"Your order {step.data.order_id} is on its way.")
    return Success()


async def send_cancellation(step: StepContext[OrderData]) -> Result[None, str]:
    await asyncio.to_thread(_send, step, f"Your order {step.data.order_id} was cancelled.")
    return Success()


def _send(step: StepContext[OrderData], text: str) -> None:
    MAIL.mkdir(exist_ok=True)
    (MAIL / step.key).write_text(f"To: {step.data.email}\n\n{text}\n")


order_processing = (
    Saga("order_processing", data=OrderData)
    .step("validate_order", validate_order, compensation=nothing_to_undo)
    .step("reserve_inventory", reserve_inventory, compensation=release_inventory)
    .step(
        "process_payment",
        process_payment,
        compensation=refund_payment,
        external=True,
        idempotent=True,
        timeout=20,
        breaker=Breaker("psp"),
    )
    .step("create_order", create_order, compensation=cancel_order)
    .step(
        "send_confirmation",
        send_confirmation,
        compensation=send_cancellation,
        external=True,
        idempotent=True,
    )
)

service = Service("orders", database=DATABASE, sagas=[order_processing])

SHELF = (("tea", 450, 10), ("coffee", 990, 5), ("teapot", 4900, 2), ("samovar", 600_000, 1))


async def prepare() -> None:
    """Our tables, and something on the shelf; a real service has migrations."""
    async with service.database.async_begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(service.database.async_engine) as session, session.begin():
        if (await session.scalars(select(Product.id))).first() is None:
            for number, (name, cents, stock) in enumerate(SHELF, 1):
                session.add(Product(id=number, name=name, cents=cents, stock=stock))


async def place(data: OrderData) -> UUID:
    """Starts the saga, in the transaction of whatever else there is to write."""
    async with service.unit_of_work() as uow:
        return order_processing.start(uow, data)


async def to_the_end(id_: UUID) -> str:
    """How the saga ended, with its history printed."""
    sagas = SagaOperations(service.database)
    async with service.running():  # relay, orchestrator and consumers, in this process
        while True:
            seen, history = await sagas.show(id_)
            if seen.state.status in ("completed", "compensated", "stuck"):
                break
            await asyncio.sleep(0.05)
    for happening in history:
        entry = happening.entry
        print(entry.transition, entry.step or "", entry.detail or "")
    return seen.state.status


async def main(customer: str, email: str, *items: str) -> str:
    """One order, from the command line."""
    await prepare()
    pairs = [item.split("x") for item in items]
    wanted = [Item(product_id=int(product), quantity=int(count)) for product, count in pairs]
    id_ = await place(OrderData(customer=customer, email=email, items=wanted))
    status = await to_the_end(id_)
    await service.close()
    return status


if __name__ == "__main__":
    raise SystemExit(0 if asyncio.run(main(*sys.argv[1:])) == "completed" else 1)
