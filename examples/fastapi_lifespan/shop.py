"""A shop in one process: an HTTP API, and the relay and handlers beside it, in FastAPI's lifespan.

uvicorn shop:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox_saga import Event, HandlerContext, Service

service = Service("shop", database=os.environ.get("SHOP_DATABASE", "sqlite:///shop.db"))


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str]
    confirmed: Mapped[bool] = mapped_column(default=False)


class OrderPlaced(Event, topic="orders"):
    order_id: int


@service.on(OrderPlaced, consumer="shop.confirmation")
async def confirm(handle: HandlerContext[OrderPlaced]) -> None:
    order = await handle.session.get(Order, handle.message.order_id)
    assert order is not None
    order.confirmed = True  # commits together with "this message is handled"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with service.database.async_begin() as connection:
        await connection.run_sync(Base.metadata.create_all)  # a real shop has migrations
    async with service.running():  # relay, orchestrator and consumers; drained at the end
        yield
    await service.close()


app = FastAPI(lifespan=lifespan)


class NewOrder(BaseModel):
    sku: str


@app.post("/orders", status_code=201)
async def place(new: NewOrder) -> dict[str, int]:
    async with service.unit_of_work() as uow:  # the order and its event, or neither
        order = Order(sku=new.sku)
        uow.session.add(order)
        await uow.session.flush()
        uow.publish(OrderPlaced(order_id=order.id), key=f"order:{order.id}")
        return {"id": order.id}


@app.get("/orders")
async def orders() -> list[dict[str, object]]:
    async with AsyncSession(service.database.async_engine) as session:
        found = await session.scalars(select(Order).order_by(Order.id))
        return [{"id": o.id, "sku": o.sku, "confirmed": o.confirmed} for o in found]
