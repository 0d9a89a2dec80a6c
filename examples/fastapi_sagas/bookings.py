"""A booking and the saga that sees it through start in the transaction of the request, or not.

uvicorn bookings:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import String, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox_saga import Failure, Result, Saga, Service, StepContext, Success
from outbox_saga.saga.operating import SagaOperations

SEATS = 3


class Base(DeclarativeBase):
    type_annotation_map = {str: String(100)}  # noqa: RUF012 - SQLAlchemy's own declaration


class Booking(Base):
    __tablename__ = "bookings"
    id: Mapped[int] = mapped_column(primary_key=True)
    guest: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str] = mapped_column(default="asked for")


class Flight(Base):
    __tablename__ = "flights"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seats: Mapped[int]


class BookingData(BaseModel):
    booking_id: int
    receipt: str | None = None


async def take_seat(step: StepContext[BookingData]) -> Result[None, str]:
    taken = await step.session.execute(
        update(Flight).where(Flight.seats > 0).values(seats=Flight.seats - 1)
    )
    return Success() if taken.rowcount else Failure("no seat is left")  # type: ignore[attr-defined]


async def give_seat_back(step: StepContext[BookingData]) -> Result[None, str]:
    await step.session.execute(update(Flight).values(seats=Flight.seats + 1))
    return Success()


async def charge(step: StepContext[BookingData]) -> Result[dict[str, str], str]:
    return Success({"receipt": f"r-{step.key[:8]}"})  # your provider, with step.key


async def refund(step: StepContext[BookingData]) -> Result[None, str]:
    return Success()


async def confirm(step: StepContext[BookingData]) -> Result[None, str]:
    await step.session.execute(
        update(Booking).where(Booking.id == step.data.booking_id).values(state="confirmed")
    )
    return Success()


book = (
    Saga("book", data=BookingData)
    .step("take_seat", take_seat, compensation=give_seat_back)
    .step("charge", charge, compensation=refund, external=True, idempotent=True)
    .step("confirm", confirm, pivot=True)
)

service = Service(
    "bookings", database=os.environ.get("BOOKINGS_DATABASE", "sqlite:///bookings.db"), sagas=[book]
)
make_session = async_sessionmaker(service.database.async_engine, expire_on_commit=False)


async def session() -> AsyncIterator[AsyncSession]:
    """The request's transaction: committed when the endpoint returns, rolled back if it raises."""
    async with make_session() as opened, opened.begin():
        yield opened


InTransaction = Annotated[AsyncSession, Depends(session, scope="function")]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with service.database.async_begin() as connection:
        await connection.run_sync(Base.metadata.create_all)  # a real service has migrations
    async with make_session() as opened, opened.begin():
        if await opened.get(Flight, 1) is None:
            opened.add(Flight(id=1, seats=SEATS))
    async with service.running():  # or, in processes of its own: outbox-saga run bookings:service
        yield
    await service.close()


app = FastAPI(lifespan=lifespan)


class NewBooking(BaseModel):
    guest: str


class Started(BaseModel):
    booking: int
    saga: UUID


class Seen(BaseModel):
    state: str
    reason: str | None
    steps: dict[str, str]


@app.post("/bookings", status_code=202)
async def ask_for(new: NewBooking, transaction: InTransaction) -> Started:
    booking = Booking(guest=new.guest)
    transaction.add(booking)
    try:
        await transaction.flush()
    except IntegrityError:
        raise HTTPException(409, f"{new.guest} has a booking") from None
    with_us = service.work_in(transaction)
    data = BookingData(booking_id=booking.id)
    saga = book.start(with_us, data, business_key=f"booking:{booking.id}")
    return Started(booking=booking.id, saga=saga)


@app.get("/sagas/{id_}")
async def how_is_it(id_: UUID) -> Seen:
    seen, _ = await SagaOperations(service.database).show(id_)
    steps = {name: step.phase for name, step in seen.state.steps.items()}
    return Seen(state=seen.state.status, reason=seen.state.reason, steps=steps)


@app.get("/bookings")
async def bookings(transaction: InTransaction) -> list[dict[str, str]]:
    found = await transaction.scalars(select(Booking).order_by(Booking.id))
    return [{"guest": booking.guest, "state": booking.state} for booking in found]
