"""The service that takes orders, with three sagas that see them through.

By commands; by events; and by commands in haste: these are sent again, and undone, while the first
of them may still be on its way, so that their receiver gets everything twice and late.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import Failure, Result, Retry, Saga, Service, StepContext, Success
from proofs.three.messages import (
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

STEP = 2.0  # seconds of a step here: the lease of its orchestrator is to be short
PATIENCE = 60.0  # seconds for the others
HASTE = 0.4  # seconds for their answer
AGAIN = Retry(max_attempts=3, initial=0.1, max_delay=0.2)

metadata = sa.MetaData()
order = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("saga", sa.String(50), nullable=False),
    sa.Column("sku", sa.String(50), nullable=False),
    sa.Column("quantity", sa.Integer, nullable=False),
    sa.Column("customer", sa.String(50), nullable=False),
    sa.Column("cents", sa.Integer, nullable=False),
    sa.Column("state", sa.String(50), nullable=False),
)
# every change that was committed; no unique key on purpose: what happens twice must show
change = sa.Table(
    "order_changes",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("order_id", sa.Integer, nullable=False),
    sa.Column("state", sa.String(50), nullable=False),
)


class OrderData(BaseModel):
    """What the sagas know.

    Args:
        withdrawn: The customer does not want it any more when all has been reserved and paid.
    """

    order_id: int
    sku: str
    quantity: int
    customer: str
    cents: int
    withdrawn: bool = False


Context = StepContext[OrderData]


def _becomes(state: str) -> Callable[[Context], Awaitable[Result[None, str]]]:
    async def change_state(step: Context) -> Result[None, str]:
        id_ = step.data.order_id
        await step.session.execute(sa.update(order).where(order.c.id == id_).values(state=state))
        await step.session.execute(sa.insert(change).values(order_id=id_, state=state))
        return Success()

    return change_state


async def _confirm(step: Context) -> Result[None, str]:
    await _becomes("confirmed")(step)  # which is rolled back if the answer is no
    return Failure("withdrawn") if step.data.withdrawn else Success()


async def _place(step: Context) -> Result[None, str]:
    await _becomes("accepted")(step)
    data = step.data.model_dump(exclude={"withdrawn"})
    step.publish(OrderPlaced(**data), key=f"order:{step.data.order_id}")
    return Success()


async def _cancel(step: Context) -> Result[None, str]:
    await _becomes("cancelled")(step)
    step.publish(OrderCancelled(order_id=step.data.order_id), key=f"order:{step.data.order_id}")
    return Success()


def _commanding(name: str, seconds: float) -> Saga[OrderData]:
    return (
        Saga(name, data=OrderData)
        .step("accept", _becomes("accepted"), compensation=_becomes("cancelled"), timeout=STEP)
        .step("reserve", ReserveStock, compensation=ReleaseStock, timeout=seconds, retry=AGAIN)
        .step("pay", TakePayment, compensation=RefundPayment, timeout=seconds, retry=AGAIN)
        .step("confirm", _confirm, pivot=True, timeout=STEP)
    )


by_commands = _commanding("by_commands", PATIENCE)
in_haste = _commanding("in_haste", HASTE)
by_events = (
    Saga("by_events", data=OrderData)
    .step("place", _place, compensation=_cancel, timeout=STEP)
    .wait_for("reserved", StockReserved, fails_on=StockRefused, timeout=PATIENCE)
    .wait_for("paid", PaymentTaken, fails_on=PaymentFailed, timeout=PATIENCE)
    .step("confirm", _confirm, pivot=True, timeout=STEP)
)
SAGAS = {saga.name: saga for saga in (by_commands, by_events, in_haste)}

service = Service(
    "orders",
    database=os.environ["ORDERS_DATABASE"],
    broker=os.environ["BROKER"],
    sagas=SAGAS.values(),
)
