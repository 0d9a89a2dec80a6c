"""A Flask application with plain `def` steps; nothing here is asynchronous.

flask --app parcels run            the HTTP API
outbox-saga run parcels:service    relay, orchestrator and consumers, beside it
"""

from __future__ import annotations

import os
from typing import Any
from uuid import UUID

from flask import Flask, jsonify, request
from pydantic import BaseModel
from sqlalchemy import String, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from outbox_saga import Event, Failure, Result, Saga, Service, Success, SyncStepContext
from outbox_saga.queries import sagas  # reading a saga's row needs no event loop


class Base(DeclarativeBase):
    type_annotation_map = {str: String(100)}  # noqa: RUF012 - SQLAlchemy's own declaration


class Parcel(Base):
    __tablename__ = "parcels"
    id: Mapped[int] = mapped_column(primary_key=True)
    address: Mapped[str]
    state: Mapped[str] = mapped_column(default="packed")


class ParcelSent(Event, topic="parcels"):
    parcel_id: int


class ParcelData(BaseModel):
    parcel_id: int
    address: str
    label: str | None = None


def print_label(step: SyncStepContext[ParcelData]) -> Result[dict[str, str], str]:
    """At the carrier's: it may block, it runs in a thread."""
    if not step.data.address.strip():
        return Failure("there is no address")
    return Success({"label": f"L-{step.key[:8]}"})


def void_label(step: SyncStepContext[ParcelData]) -> Result[None, str]:
    return Success()


def hand_over(step: SyncStepContext[ParcelData]) -> Result[None, str]:
    """In one transaction with the saga's progress and the event."""
    parcel = step.session.get_one(Parcel, step.data.parcel_id)
    if parcel.state != "packed":
        return Failure(f"the parcel is {parcel.state}")
    parcel.state = "sent"
    step.publish(ParcelSent(parcel_id=parcel.id), key=f"parcel:{parcel.id}")
    return Success()


send = (
    Saga("send", data=ParcelData)
    .step("print_label", print_label, compensation=void_label, external=True, idempotent=True)
    .step("hand_over", hand_over, pivot=True)
)

service = Service(
    "parcels", database=os.environ.get("PARCELS_DATABASE", "sqlite:///parcels.db"), sagas=[send]
)
app = Flask(__name__)

with service.database.begin() as connection:
    Base.metadata.create_all(connection)  # a real service has migrations


@app.post("/parcels")
def pack() -> Any:
    asked: dict[str, str] = request.get_json()
    with service.unit_of_work() as uow:  # the parcel and its saga, or neither
        parcel = Parcel(address=asked["address"])
        uow.session.add(parcel)
        uow.session.flush()
        data = ParcelData(parcel_id=parcel.id, address=parcel.address)
        saga = send.start(uow, data, business_key=f"parcel:{parcel.id}")
        id_ = parcel.id
    return jsonify(parcel=id_, saga=str(saga)), 202


@app.get("/sagas/<uuid:id_>")
def how_is_it(id_: UUID) -> Any:
    with service.database.engine.connect() as connection:
        seen = sagas.read(connection, service.database.tables, id_)
    if seen is None:
        return jsonify(error="there is no such saga"), 404
    return jsonify(state=seen.state.status, reason=seen.state.reason)


@app.get("/parcels")
def parcels() -> Any:
    with Session(service.database.engine) as session:
        found = session.scalars(select(Parcel).order_by(Parcel.id))
        return jsonify([{"id": parcel.id, "state": parcel.state} for parcel in found])
