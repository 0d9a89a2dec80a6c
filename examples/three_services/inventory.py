"""The service that knows what is on the shelf.

outbox-saga run inventory:service
"""

from __future__ import annotations

import os

from messages import (
    OrderCancelled,
    OrderPlaced,
    ReleaseStock,
    ReserveStock,
    StockRefused,
    StockReserved,
)
from sqlalchemy import String, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox_saga import Failure, HandlerContext, Result, Service, Success

DATABASE = os.environ.get("INVENTORY_DATABASE", "sqlite:///inventory.db")
BROKER = os.environ.get("BROKER", "nats://127.0.0.1:4222?stream=shop&prefix=shop&create=1")

service = Service("inventory", database=DATABASE, broker=BROKER)


class Base(DeclarativeBase):
    type_annotation_map = {str: String(100)}  # noqa: RUF012 - SQLAlchemy's own declaration


class Shelf(Base):
    __tablename__ = "shelf"
    sku: Mapped[str] = mapped_column(primary_key=True)
    free: Mapped[int]
    reserved: Mapped[int]


class Reservation(Base):
    __tablename__ = "reservations"
    order_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sku: Mapped[str]
    quantity: Mapped[int]  # 0: cancelled before anything was reserved


async def _reserve(session: AsyncSession, order_id: int, sku: str, quantity: int) -> bool:
    taken = await session.execute(
        update(Shelf)
        .where(Shelf.sku == sku, Shelf.free >= quantity)
        .values(free=Shelf.free - quantity, reserved=Shelf.reserved + quantity)
    )
    if not taken.rowcount:  # type: ignore[attr-defined]
        return False
    session.add(Reservation(order_id=order_id, sku=sku, quantity=quantity))
    return True


async def _release(session: AsyncSession, order_id: int) -> None:
    reservation = await session.get(Reservation, order_id)
    if reservation is None:
        return
    back = reservation.quantity
    await session.execute(
        update(Shelf)
        .where(Shelf.sku == reservation.sku)
        .values(free=Shelf.free + back, reserved=Shelf.reserved - back)
    )
    await session.delete(reservation)


# --- by commands: the answer goes back to the saga -----------------------------------------------


@service.handles(ReserveStock, undo=ReleaseStock)
async def reserve(handle: HandlerContext[ReserveStock]) -> Result[None, str]:
    wanted = handle.message
    done = await _reserve(handle.session, wanted.order_id, wanted.sku, wanted.quantity)
    return Success() if done else Failure(f"not enough {wanted.sku}")


@service.handles(ReleaseStock)
async def release(handle: HandlerContext[ReleaseStock]) -> Result[None, str]:
    await _release(handle.session, handle.message.order_id)
    return Success()


# --- by events -----------------------------------------------------------------------------------


@service.on(OrderPlaced, consumer="inventory.orders")
async def placed(handle: HandlerContext[OrderPlaced]) -> StockReserved | StockRefused:
    order = handle.message  # what a handler returns is published, with its own transaction
    # a cancellation has a consumer of its own: nothing says which comes first
    known = await handle.session.get(Reservation, order.order_id)
    if known is None and await _reserve(handle.session, order.order_id, order.sku, order.quantity):
        return StockReserved(order_id=order.order_id, customer=order.customer, cents=order.cents)
    return StockRefused(order_id=order.order_id)


@service.on(OrderCancelled, consumer="inventory.cancellations")
async def cancelled(handle: HandlerContext[OrderCancelled]) -> None:
    order_id = handle.message.order_id
    if await handle.session.get(Reservation, order_id) is None:
        # so that an order that comes later reserves nothing
        handle.session.add(Reservation(order_id=order_id, sku="", quantity=0))
    else:
        await _release(handle.session, order_id)
