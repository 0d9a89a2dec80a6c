"""What the three services say to each other: by commands and their answers, or by events."""

from __future__ import annotations

from outbox_saga import Command, Event


class ReserveStock(Command, topic="inventory"):
    """Of one order."""

    order_id: int
    sku: str
    quantity: int


class ReleaseStock(Command, topic="inventory"):
    """What was reserved for that order."""

    order_id: int
    sku: str
    quantity: int


class TakePayment(Command, topic="payments"):
    """Of one order."""

    order_id: int
    customer: str
    cents: int


class RefundPayment(Command, topic="payments"):
    """What was taken for that order."""

    order_id: int
    customer: str
    cents: int


class OrderPlaced(Event, topic="orders"):
    """By orders."""

    order_id: int
    sku: str
    quantity: int
    customer: str
    cents: int


class OrderCancelled(Event, topic="orders"):
    """By orders; may come before anything else that is said of this order."""

    order_id: int


class StockReserved(Event, topic="stock"):
    """By inventory."""

    order_id: int
    customer: str
    cents: int


class StockRefused(Event, topic="stock"):
    """By inventory."""

    order_id: int


class PaymentTaken(Event, topic="money"):
    """By payments."""

    order_id: int


class PaymentFailed(Event, topic="money"):
    """By payments."""

    order_id: int
