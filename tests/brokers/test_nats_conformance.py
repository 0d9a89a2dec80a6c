"""NATS keeps what every broker adapter must keep."""

from __future__ import annotations

import pytest

from outbox_saga.testing.servers import Nats
from tests.brokers.conformance import BrokerUnderTest, nothing_is_left_unhandled
from tests.brokers.nats_under_test import NatsUnderTest
from tests.brokers.publisher_conformance import PublisherConformance
from tests.brokers.subscriber_conformance import SubscriberConformance
from tests.fixtures.services import PrivateServer

__all__ = ["nothing_is_left_unhandled"]


@pytest.fixture
def broker(private_server: PrivateServer) -> BrokerUnderTest:
    return NatsUnderTest(private_server(Nats), private=True)


class TestNatsPublisher(PublisherConformance):
    """With an outcome from JetStream's own acknowledgement of each message."""


class TestNatsSubscriber(SubscriberConformance):
    """With a durable pull consumer."""
