"""From a broker URL to its adapter.

Adapters load on first use, so importing the library loads no client.
"""

from __future__ import annotations

import importlib

from outbox_saga.brokers.contract import Publisher, Subscriber, Subscription
from outbox_saga.errors import ConfigurationError

_ADAPTERS = {  # scheme: (module, extra)
    "nats": ("outbox_saga.brokers.nats", "nats"),
    "tls": ("outbox_saga.brokers.nats", "nats"),
}


def _adapter(url: str) -> object:
    # Not by urlsplit: it raises a ValueError that shows a malformed URL, password and all.
    scheme, is_url, _ = url.partition("://")
    scheme = scheme.lower() if is_url else ""
    if scheme not in _ADAPTERS:
        known = ", ".join(sorted(f"{name}://" for name in _ADAPTERS))
        raise ConfigurationError(f"no broker speaks {scheme!r}; use {known} or 'local'")
    module, extra = _ADAPTERS[scheme]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"the {scheme} client is not installed; pip install 'outbox-saga[{extra}]'"
        ) from error


def open_publisher(url: str) -> Publisher:
    """The publisher for this URL, not yet connected.

    Raises ConfigurationError for one nobody speaks.
    """
    publisher: Publisher = _adapter(url).publisher(url)  # type: ignore[attr-defined]
    return publisher


def open_subscriber(url: str, subscription: Subscription) -> Subscriber:
    """The subscriber for this URL, not yet connected.

    Raises ConfigurationError for one nobody speaks.
    """
    subscriber: Subscriber = _adapter(url).subscriber(url, subscription)  # type: ignore[attr-defined]
    return subscriber
