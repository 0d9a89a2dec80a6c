"""What a broker adapter is tried with: a destination of a real server, looked at from outside.

A broker joins in three steps: a subclass of `BrokerUnderTest` (of `DestinationUnderTest` where
nobody can subscribe), a fixture `broker` that gives one with an empty destination of its own, and
a test module that subclasses `PublisherConformance` and `SubscriberConformance` (see
test_nats_conformance.py).

Where brokers differ, the adapter says so in its `CAPABILITIES`, and the suite tries what it says,
either way. What cannot be tried with the server at hand stands in `untried` with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final
from uuid import UUID

import pytest

from outbox_saga.brokers import (
    Accepted,
    Capabilities,
    Consuming,
    Delivery,
    Handle,
    Outcome,
    Publisher,
    Refused,
    Subscription,
    capabilities,
    open_publisher,
    open_subscriber,
)
from outbox_saga.envelopes import Envelope, seal_body
from outbox_saga.errors import BrokerError

PATIENCE = 20.0  # seconds until a signal that does not come fails the test
PROMPT = 2.0  # what a person or a supervisor calls "at once"
LONG = 300.0  # seconds, longer than any test: what comes sooner does not come by a timeout

FEATURES: Final = {
    "server": "there is a server, which may be out of reach",
    "private": "it is killed and paused at will, and what is on its disk stays",
    "missing": "the destination may not exist yet",
    "full": "the destination may be full",
    "size_limit": "a message may be too large",
}


@dataclass(frozen=True)
class Stored:
    """A message as the broker keeps it."""

    topic: str
    headers: dict[str, str]
    body: bytes

    def envelope(self) -> Envelope:
        return Envelope.from_headers(self.topic, self.headers, self.body)


class DestinationUnderTest(ABC):
    """Where a publisher's messages arrive, looked at from outside the adapter.

    It takes and keeps whatever is published to the topics orders, orders.eu-west_1 and payments;
    nobody but the suite listens to the topic "unheard".
    """

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What its adapter declares."""

    @property
    def untried(self) -> Mapping[str, str]:
        """What of FEATURES cannot be tried here, and why."""
        return {}

    @abstractmethod
    def publisher(self, *, create: bool = True, timeout: float | None = None) -> Publisher:
        """A publisher to it that is not open yet.

        Args:
            create: The adapter creates what is missing.
            timeout: Seconds for one `publish`.
        """

    @abstractmethod
    async def stored(self) -> list[Stored]:
        """All messages of it, those of a key in order."""

    async def count(self) -> int:
        """How many messages there are."""
        return len(await self.stored())

    def unreachable(self) -> Publisher:
        """A publisher to where nobody listens. [server]"""
        raise NotImplementedError

    async def create(self) -> None:
        """Creates the destination, as its operator would. [missing]"""
        raise NotImplementedError

    async def fill(self, room: int) -> int:
        """The destination takes so many more messages, or as near to it as can be. [full]

        Returns:
            How many exactly, fewer than 10.
        """
        raise NotImplementedError

    async def largest_body(self, envelope: Envelope) -> int:
        """How many bytes the body of this envelope may have at most. [size_limit]"""
        raise NotImplementedError

    def kill(self) -> None:
        """As a crash of its machine, its disk kept. [private]"""
        raise NotImplementedError

    def start(self) -> None:
        """Starts it again after `kill`. [private]"""
        raise NotImplementedError

    def pause(self) -> None:
        """It keeps its connections and answers nothing. [private]"""
        raise NotImplementedError

    def resume(self) -> None:
        """Ends the pause. [private]"""
        raise NotImplementedError


class BrokerUnderTest(DestinationUnderTest):
    """One destination of one real server that brings messages to consumers."""

    #: A URL of the same scheme where nobody listens.
    nowhere: ClassVar[str]

    @abstractmethod
    def url(
        self,
        *,
        create: bool = True,
        timeout: float | None = None,
        ack_wait: float | None = None,
        grace: float | None = None,
    ) -> str:
        """The destination's URL, in the words of its adapter.

        Args:
            create: The adapter creates what is missing.
            timeout: Seconds for connecting and for one `publish`.
            ack_wait: Seconds after which what a vanished process had in hand comes again; where
                the broker knows by itself, or has a least of its own, as soon as it can.
            grace: Seconds that handlers get to finish.
        """

    @abstractmethod
    async def put(self, topic: str, body: bytes, headers: Mapping[str, bytes]) -> None:
        """Any message at all, as another program would write it.

        Where headers are text by the broker's own rules, the nearest to these bytes it carries.
        """

    @property
    def capabilities(self) -> Capabilities:
        return capabilities(self.url())

    @property
    def consuming(self) -> Consuming:
        """How it brings messages."""
        found = self.capabilities.consuming
        assert found is not None, "declared as a broker that nobody can subscribe to"
        return found

    def publisher(self, *, create: bool = True, timeout: float | None = None) -> Publisher:
        return open_publisher(self.url(create=create, timeout=timeout))

    def unreachable(self) -> Publisher:
        return open_publisher(self.nowhere)


def needs(feature: str) -> pytest.MarkDecorator:
    """Of FEATURES; a fixture `broker` sees it by `request.node.get_closest_marker("needs")`."""
    assert feature in FEATURES
    return pytest.mark.needs(feature)


class Conformance:
    """Skips a test for a reason that was given, and for no other."""

    @pytest.fixture(autouse=True)
    def _is_tried(self, request: pytest.FixtureRequest, broker: DestinationUnderTest) -> None:
        for mark in request.node.iter_markers("needs"):
            if (reason := broker.untried.get(mark.args[0])) is not None:
                pytest.skip(f"{type(broker).__name__}: {reason}")


def envelope(
    body: bytes = b"{}",
    *,
    topic: str = "orders",
    key: str | None = None,
    headers: dict[str, str] | None = None,
) -> Envelope:
    return seal_body(body, type_="OrderPlaced", topic=topic, key=key, headers=headers)


def numbered(count: int, *, key: str | None = None, topic: str = "orders") -> list[Envelope]:
    return [envelope(b'{"n":%d}' % n, key=key, topic=topic) for n in range(count)]


@contextlib.asynccontextmanager
async def publishing(to: str | Publisher) -> AsyncIterator[Publisher]:
    publisher = open_publisher(to) if isinstance(to, str) else to
    try:
        await publisher.open()
        yield publisher
    finally:
        await publisher.close()


async def publish(to: str | Publisher, envelopes: Sequence[Envelope]) -> None:
    """As the relay does: of a key never two in one call, and the next when one was accepted."""
    calls: list[list[Envelope]] = []
    before = Counter[str]()
    for each in envelopes:
        turn = 0
        if each.key is not None:
            turn = before[each.key]
            before[each.key] += 1
        calls += [[] for _ in range(turn + 1 - len(calls))]
        calls[turn].append(each)
    async with publishing(to) as publisher:
        for call in calls:
            outcomes = await publisher.publish(call)
            assert [each for each in outcomes if not isinstance(each, Accepted)] == []


async def declare(
    url: str, *, consumer: str = "billing", topics: tuple[str, ...] = ("orders",)
) -> None:
    """From now on the consumer gets what is published, also while none of it runs."""
    subscriber = open_subscriber(url, Subscription(consumer, topics))
    try:
        await subscriber.open()
    finally:
        await subscriber.close()


class Running:
    """A running subscriber and what it was given."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.running: asyncio.Task[None] | None = None

    async def stopped(self) -> None:
        """Asks it to stop and waits until it has."""
        self.stop.set()
        if self.running is not None:
            await asyncio.wait_for(self.running, PATIENCE)


@contextlib.asynccontextmanager
async def consuming(
    url: str,
    handle: Handle,
    *,
    consumer: str = "billing",
    topics: tuple[str, ...] = ("orders",),
    concurrency: int = 16,
) -> AsyncIterator[Running]:
    subscriber = open_subscriber(url, Subscription(consumer, topics, concurrency))
    running = Running()
    try:
        await subscriber.open()
        running.running = asyncio.create_task(subscriber.run(handle, running.stop.wait))
        yield running
        await running.stopped()
    finally:
        if running.running is not None and not running.running.done():
            running.running.cancel()
            await asyncio.wait([running.running])
        await subscriber.close()


class Inbox:
    """Handles by writing down and acknowledging; `got(n)` waits for the n-th."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self._changed = asyncio.Condition()

    async def __call__(self, delivery: Delivery) -> None:
        await self.add(delivery.envelope)
        await delivery.acknowledge()

    async def add(self, came: Envelope) -> None:
        async with self._changed:
            self.envelopes.append(came)
            self._changed.notify_all()

    async def got(self, count: int, patience: float = PATIENCE) -> list[Envelope]:
        async with asyncio.timeout(patience), self._changed:
            await self._changed.wait_for(lambda: len(self.envelopes) >= count)
        return self.envelopes

    async def got_all(self, wanted: Sequence[Envelope], patience: float = PATIENCE) -> None:
        """Each of them at least once."""
        ids = {each.id for each in wanted}
        async with asyncio.timeout(patience), self._changed:
            await self._changed.wait_for(lambda: ids <= set(self.ids))

    @property
    def ids(self) -> list[UUID]:
        return [came.id for came in self.envelopes]

    @property
    def bodies(self) -> list[bytes]:
        return [came.body for came in self.envelopes]

    def first_bodies(self) -> list[bytes]:
        """Without what came again, as an inbox would have it."""
        return list({came.id: came.body for came in self.envelopes}.values())


def errors(outcomes: Sequence[Outcome]) -> list[BrokerError]:
    return [outcome.error for outcome in outcomes if isinstance(outcome, Refused)]


@pytest.fixture(autouse=True)
def nothing_is_left_unhandled(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """asyncio logs a task's or callback's lost exception, and nothing else of note."""
    yield
    gc.collect()
    lost = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert lost == []
