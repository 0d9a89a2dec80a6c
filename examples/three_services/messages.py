"""What the three services say to each other. Each of them has a copy of this file."""

from __future__ import annotations

from outbox_saga import Command, Event

# --- by commands: orders tells the others what to do ---------------------------------------------


class ReserveStock(Command, topic="inventory"):
    order_id: int
    sku: str
    quantity: int


class ReleaseStock(Command, topic="inventory"):
    order_id: int


class TakePayment(Command, topic="payments"):
    order_id: int
    customer: str
    cents: int


class RefundPayment(Command, topic="payments"):
    order_id: int


# --- by events: each tells what happened, and nobody tells anybody what to do -------------------


class OrderPlaced(Event, topic="orders"):
    order_id: int
    sku: str
    quantity: int
    customer: str
    cents: int


class OrderCancelled(Event, topic="orders"):
    order_id: int


class StockReserved(Event, topic="stock"):
    order_id: int
    customer: str
    cents: int


class StockRefused(Event, topic="stock"):
    order_id: int


class PaymentTaken(Event, topic="money"):
    order_id: int


class PaymentFailed(Event, topic="money"):
    order_id: int
