"""The second saga of the guide: validate, reserve, pay, create the order, confirm it, or undo.

Two differences from the guide, and why. Whether the stock suffices is decided where it is
reserved, not where the order is validated: in between it may be sold to somebody else. And a
half-done reservation is released by the rollback of its step, not by code that could die half-way.
"""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import select

from outbox_saga.results import Failure, Result, Success
from outbox_saga.saga import Saga, StepContext, nothing_to_undo
from outbox_saga_relay.demo import inventory
from outbox_saga_relay.demo.client import ProviderClient
from outbox_saga_relay.demo.events import OrderCancelled, OrderConfirmed, OrderRefused
from outbox_saga_relay.demo.faults import Faults
from outbox_saga_relay.demo.pace import SOON, STEP_TIMEOUT
from outbox_saga_relay.demo.tables import Order, OrderLine, Product, User


class Line(BaseModel):
    """So many of one product, at a price, with a discount in hundredths of a percent."""

    product_id: int
    quantity: int
    unit_price_cents: int
    discount: int = 0

    @property
    def amount_cents(self) -> int:
        """What the line costs, to the cent; half a cent is rounded up."""
        return (self.quantity * self.unit_price_cents * (10_000 - self.discount) + 5_000) // 10_000


class OrderData(BaseModel):
    """What the order's saga knows; each step adds what it found out."""

    order_id: int
    customer_id: str
    lines: list[Line]
    freight_cents: int = 0
    email: str | None = None
    total_cents: int | None = None
    payment_id: str | None = None
    mail_id: str | None = None

    @property
    def key(self) -> str:
        """Of every event of this order: they arrive in the order in which they were committed."""
        return f"order:{self.order_id}"

    @property
    def due_cents(self) -> int:
        """What validation has found the order to cost."""
        assert self.total_cents is not None  # validate_order comes before everything that asks
        return self.total_cents


class OrderProcessing:
    """The steps of `order_processing`.

    Args:
        provider: Takes payments and sends mails.
        faults: What goes wrong with writing an order down.
    """

    def __init__(self, provider: ProviderClient, faults: Faults) -> None:
        self.provider = provider
        self.faults = faults

    def saga(self) -> Saga[OrderData]:
        """Five steps, each with its compensation."""
        return (
            Saga("order_processing", data=OrderData)
            .step(
                "validate_order",
                self.validate_order,
                compensation=nothing_to_undo,
                timeout=STEP_TIMEOUT,
                retry=SOON,
            )
            .step(
                "reserve_inventory",
                self.reserve_inventory,
                compensation=self.release_inventory,
                timeout=STEP_TIMEOUT,
                retry=SOON,
            )
            .step(
                "process_payment",
                self.process_payment,
                compensation=self.refund_payment,
                external=True,
                idempotent=True,
                timeout=STEP_TIMEOUT,
                retry=SOON,
            )
            .step(
                "create_order",
                self.create_order,
                compensation=self.cancel_order,
                timeout=STEP_TIMEOUT,
                retry=SOON,
            )
            .step(
                "send_confirmation",
                self.send_confirmation,
                compensation=self.send_cancellation,
                external=True,
                idempotent=True,
                timeout=STEP_TIMEOUT,
                retry=SOON,
            )
        )

    # --- validate -----------------------------------------------------------------------------

    async def validate_order(
        self, step: StepContext[OrderData]
    ) -> Result[dict[str, int | str], str]:
        """The customer and every product exist, and what it costs is known from here on."""
        data = step.data
        if not data.lines:
            return Failure("the order has no lines")
        user = await step.session.get(User, data.customer_id)
        if user is None:
            return Failure(f"{data.customer_id} is not a user of this shop")
        wanted = {line.product_id for line in data.lines}
        if len(wanted) < len(data.lines):
            return Failure("a product stands on two lines of the order")
        known = set(await step.session.scalars(select(Product.id).where(Product.id.in_(wanted))))
        if unknown := sorted(wanted - known):
            return Failure(f"there is no product {unknown[0]}")
        total = sum(line.amount_cents for line in data.lines) + data.freight_cents
        return Success({"email": user.email, "total_cents": total})

    # --- reserve ------------------------------------------------------------------------------

    async def reserve_inventory(self, step: StepContext[OrderData]) -> Result[None, str]:
        """Line by line; when one cannot be served, none of them is."""
        wanted = {line.product_id: line.quantity for line in step.data.lines}
        return await inventory.reserve(step.session, step.data.order_id, wanted)

    async def release_inventory(self, step: StepContext[OrderData]) -> Result[None, str]:
        """Everything that is held for the order goes back on the shelf."""
        if await inventory.release(step.session, step.data.order_id):
            step.publish(OrderRefused(order_id=step.data.order_id), key=step.data.key)
        return Success()

    # --- pay ----------------------------------------------------------------------------------

    async def process_payment(self, step: StepContext[OrderData]) -> Result[dict[str, str], str]:
        """One charge, however often it has to be asked for."""
        paid = await self.provider.charge(
            key=step.key,
            order_id=step.data.order_id,
            customer_id=step.data.customer_id,
            amount_cents=step.data.due_cents,
        )
        return paid.map(lambda payment_id: {"payment_id": payment_id})

    async def refund_payment(self, step: StepContext[OrderData]) -> Result[str, str]:
        """One refund of that charge."""
        assert step.data.payment_id is not None  # only a charge that was made is undone
        return await self.provider.refund(key=step.key, payment_id=step.data.payment_id)

    # --- create -------------------------------------------------------------------------------

    async def create_order(self, step: StepContext[OrderData]) -> Result[None, str]:
        """The order and its lines are written down, and what was reserved is sold."""
        data = step.data
        assert data.payment_id is not None  # process_payment comes before
        match self.faults.mishap(data.order_id, step.attempt):
            case "refusal":
                return Failure("the customer's credit check came back negative")
            case "error":
                raise RuntimeError("the address service did not answer")
            case None:
                pass
        order = Order(
            id=data.order_id,
            customer_id=data.customer_id,
            total_cents=data.due_cents,
            payment_id=data.payment_id,
        )
        step.session.add(order)
        await step.session.flush()  # the lines refer to it
        for line in data.lines:
            step.session.add(
                OrderLine(
                    order_id=data.order_id,
                    product_id=line.product_id,
                    quantity=line.quantity,
                    amount_cents=line.amount_cents,
                )
            )
        await inventory.sell(step.session, data.order_id)
        return Success()

    async def cancel_order(self, step: StepContext[OrderData]) -> Result[None, str]:
        """The order is cancelled and what was sold is reserved again, for the next to release."""
        order = await step.session.get(Order, step.data.order_id)
        if order is not None and order.state == "created":
            order.state = "cancelled"
            await inventory.take_back(step.session, order.id)
            step.publish(OrderCancelled(order_id=order.id), key=step.data.key)
        return Success()

    # --- confirm ------------------------------------------------------------------------------

    async def send_confirmation(self, step: StepContext[OrderData]) -> Result[dict[str, str], str]:
        """One mail; the event is committed together with the news that it was sent."""
        data = step.data
        assert data.email is not None  # validate_order comes before
        sent = await self.provider.mail(
            key=step.key, kind="confirmation", to=data.email, about=data.key
        )
        if isinstance(sent, Success):
            step.publish(
                OrderConfirmed(
                    order_id=data.order_id,
                    customer_id=data.customer_id,
                    total_cents=data.due_cents,
                ),
                key=data.key,
            )
        return sent.map(lambda mail_id: {"mail_id": mail_id})

    async def send_cancellation(self, step: StepContext[OrderData]) -> Result[str, str]:
        """A second mail that takes the first one back."""
        assert step.data.email is not None
        return await self.provider.mail(
            key=step.key, kind="cancellation", to=step.data.email, about=step.data.key
        )
