"""The local broker keeps what every publisher must keep; nobody subscribes to it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from outbox_saga.brokers import Capabilities, Subscription, local, open_subscriber
from outbox_saga.brokers.local import LocalPublisher
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import ConfigurationError
from tests.brokers.conformance import (
    DestinationUnderTest,
    Stored,
    nothing_is_left_unhandled,
)
from tests.brokers.publisher_conformance import PublisherConformance

__all__ = ["nothing_is_left_unhandled"]


class LocalUnderTest(DestinationUnderTest):
    """Handlers that write down what they are handed, without an inbox."""

    @property
    def capabilities(self) -> Capabilities:
        return local.CAPABILITIES

    @property
    def untried(self) -> Mapping[str, str]:
        return {
            "server": "it runs in the process of its service",
            "private": "it runs in the process of its service",
            "missing": "the handlers are there when the process is",
            "full": "what takes time is waited for, no more",
            "size_limit": "a message is handed over as it is",
        }

    def __init__(self) -> None:
        self.handled: list[Envelope] = []

    async def deliver(self, envelope: Envelope) -> int:
        if envelope.topic == "unheard":
            return 0
        self.handled.append(envelope)
        return 1

    def publisher(self, *, create: bool = True, timeout: float | None = None) -> LocalPublisher:
        return LocalPublisher(self.deliver, timeout=timeout)

    async def stored(self) -> list[Stored]:
        return [Stored(each.topic, each.to_headers(), each.body) for each in self.handled]


@pytest.fixture
def broker() -> DestinationUnderTest:
    return LocalUnderTest()


class TestLocalPublisher(PublisherConformance):
    """Accepted is what the handlers took."""


def test_nobody_subscribes_to_it() -> None:
    assert local.CAPABILITIES.consuming is None
    with pytest.raises(ConfigurationError):
        open_subscriber("local", Subscription("billing", ("orders",)))
