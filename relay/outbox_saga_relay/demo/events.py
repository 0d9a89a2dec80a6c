"""What the shop tells the world. The key of each event of an order is `order:<id>`."""

from __future__ import annotations

from outbox_saga.messages import Event


class UserOnboarded(Event, topic="shop.users"):
    """A customer has an account and was welcomed."""

    user_id: str


class OrderEvent(Event, topic="shop.orders"):
    """Something happened to an order."""

    order_id: int


class OrderPlaced(OrderEvent):
    """An order came in; nothing is decided yet."""

    customer_id: str


class OrderConfirmed(OrderEvent):
    """It is paid for and written down, and the customer knows."""

    customer_id: str
    total_cents: int


class OrderCancelled(OrderEvent):
    """It had been written down and is not valid any more."""


class OrderRefused(OrderEvent):
    """What had been reserved for it is back on the shelf."""
