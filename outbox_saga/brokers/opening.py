"""From a broker URL to its adapter.

Adapters load on first use, so importing the library loads no client. An adapter that is not ours
is found by an entry point of the group `outbox_saga.brokers`: its name is the scheme, its value
the module, an `Adapter`. Ours come first.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Final, cast

from outbox_saga.brokers.contract import (
    Adapter,
    Capabilities,
    Publisher,
    Subscriber,
    Subscription,
)
from outbox_saga.errors import ConfigurationError

GROUP: Final = "outbox_saga.brokers"

_ADAPTERS: Final = {  # scheme: (module, extra)
    "nats": ("outbox_saga.brokers.nats", "nats"),
    "tls": ("outbox_saga.brokers.nats", "nats"),
}


def _adapter(url: str) -> Adapter:
    # Not by urlsplit: it raises a ValueError that shows a malformed URL, password and all.
    scheme, is_url, _ = url.partition("://")
    scheme = scheme.lower() if is_url else ""
    try:
        if scheme in _ADAPTERS:
            return cast("Adapter", importlib.import_module(_ADAPTERS[scheme][0]))
        for found in entry_points(group=GROUP, name=scheme) if scheme else ():
            return cast("Adapter", found.load())
    except ImportError as error:
        remedy = (
            f"pip install 'outbox-saga[{_ADAPTERS[scheme][1]}]'"
            if scheme in _ADAPTERS
            else ("install what the package that brings its adapter asks for")
        )
        raise ConfigurationError(f"the {scheme} client is not installed; {remedy}") from error
    known = ", ".join(sorted(f"{name}://" for name in _ADAPTERS))
    raise ConfigurationError(f"no broker speaks {scheme!r}; use {known} or 'local'")


def capabilities(url: str) -> Capabilities:
    """What the broker of this URL gives; nothing is connected."""
    return _adapter(url).CAPABILITIES


def open_publisher(url: str) -> Publisher:
    """The publisher for this URL, not yet connected.

    Raises ConfigurationError for one nobody speaks.
    """
    return _adapter(url).publisher(url)


def open_subscriber(url: str, subscription: Subscription) -> Subscriber:
    """The subscriber for this URL, not yet connected.

    Raises ConfigurationError for one nobody speaks, or nobody can subscribe to.
    """
    adapter = _adapter(url)
    if adapter.CAPABILITIES.consuming is None:
        scheme = url.partition("://")[0]
        raise ConfigurationError(
            f"consumer {subscription.consumer!r} cannot subscribe to {scheme}://, where messages "
            "only go out; give its service another broker"
        )
    return adapter.subscriber(url, subscription)
