"""Publish and subscribe.

One file a broker, all behind `Publisher` and `Subscriber` of `contract`.
"""

from __future__ import annotations

from outbox_saga.brokers.contract import (
    Accepted,
    Delivery,
    Handle,
    Outcome,
    Publisher,
    Refused,
    Subscriber,
    Subscription,
)
from outbox_saga.brokers.opening import open_publisher, open_subscriber

__all__ = [
    "Accepted",
    "Delivery",
    "Handle",
    "Outcome",
    "Publisher",
    "Refused",
    "Subscriber",
    "Subscription",
    "open_publisher",
    "open_subscriber",
]
