"""Publish and subscribe.

One file a broker, all behind `Publisher` and `Subscriber` of `contract`.
"""

from __future__ import annotations

from outbox_saga.brokers.contract import (
    Accepted,
    Adapter,
    Capabilities,
    Consuming,
    Delivery,
    Handle,
    Outcome,
    Publisher,
    Refused,
    Subscriber,
    Subscription,
)
from outbox_saga.brokers.opening import capabilities, open_publisher, open_subscriber

__all__ = [
    "Accepted",
    "Adapter",
    "Capabilities",
    "Consuming",
    "Delivery",
    "Handle",
    "Outcome",
    "Publisher",
    "Refused",
    "Subscriber",
    "Subscription",
    "capabilities",
    "open_publisher",
    "open_subscriber",
]
