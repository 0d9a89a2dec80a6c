"""What every broker adapter must keep, as test classes over a fixture `broker`.

A broker joins in three steps: a subclass of `BrokerUnderTest`, a fixture `broker` that gives one
with an empty destination of its own, and a test module that subclasses `PublisherConformance`
and `SubscriberConformance` (see test_nats.py). What a broker cannot do at all it leaves out of
its `features`, and the table of brokers in the documentation says so too.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar
from uuid import UUID

import pytest

from outbox_saga.brokers import (
    Accepted,
    Delivery,
    Handle,
    Outcome,
    Publisher,
    Refused,
    Subscription,
    open_publisher,
    open_subscriber,
)
from outbox_saga.envelopes import Envelope, seal_body
from outbox_saga.errors import (
    BrokerDown,
    BrokerError,
    BrokerUnavailable,
    MessageRefused,
    PublishUnconfirmed,
    Unpublishable,
)

PATIENCE = 20.0  # seconds until a signal that does not come fails the test
PROMPT = 2.0  # what a person or a supervisor calls "at once"

# A process that takes one message, says so, and never settles it.
HOLDS_ONE_MESSAGE = """
import asyncio, sys
from outbox_saga.brokers import Subscription, open_subscriber

async def main(url, consumer, topic):
    subscriber = open_subscriber(url, Subscription(consumer, (topic,)))
    await subscriber.open()
    async def handle(delivery):
        print(delivery.envelope.id, flush=True)
        await asyncio.Event().wait()
    await subscriber.run(handle, asyncio.Event().wait)

asyncio.run(main(*sys.argv[1:]))
"""


@dataclass(frozen=True)
class Stored:
    """A message as the broker keeps it."""

    topic: str
    headers: dict[str, str]
    body: bytes

    def envelope(self) -> Envelope:
        return Envelope.from_headers(self.topic, self.headers, self.body)


class BrokerUnderTest(ABC):
    """One destination of one real server, looked at from outside the adapter."""

    #: Of: deduplicates, size_limit, missing, full, private (killed and paused at will)
    features: ClassVar[frozenset[str]]
    #: A URL of the same scheme where nobody listens.
    nowhere: ClassVar[str]

    @abstractmethod
    def url(self, **options: object) -> str:
        """The destination's URL with these options; the adapter creates what is missing."""

    @abstractmethod
    def url_without_creating(self) -> str:
        """The same, but nothing is created."""

    @abstractmethod
    async def stored(self) -> list[Stored]:
        """All messages of the destination, in order."""

    @abstractmethod
    async def count(self) -> int:
        """How many messages there are."""

    @abstractmethod
    async def put(self, topic: str, body: bytes, headers: dict[str, str]) -> None:
        """Any message at all, as another program would write it."""

    @abstractmethod
    async def create(self) -> None:
        """Creates the destination, as its operator would."""

    @abstractmethod
    async def fill(self, room: int) -> None:
        """The destination now takes `room` more messages and no more."""

    @abstractmethod
    async def largest_body(self, envelope: Envelope) -> int:
        """How many bytes the body of this envelope may have at most."""

    @abstractmethod
    def kill(self) -> None:
        """As a crash of its machine, its disk kept."""

    @abstractmethod
    def start(self) -> None:
        """Starts it again after `kill`."""

    @abstractmethod
    def pause(self) -> None:
        """It keeps its connections and answers nothing."""

    @abstractmethod
    def resume(self) -> None:
        """Ends the pause."""


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
async def publishing(url: str) -> AsyncIterator[Publisher]:
    publisher = open_publisher(url)
    try:
        await publisher.open()
        yield publisher
    finally:
        await publisher.close()


async def publish(url: str, envelopes: list[Envelope]) -> None:
    async with publishing(url) as publisher:
        outcomes = await publisher.publish(envelopes)
        assert [outcome for outcome in outcomes if not isinstance(outcome, Accepted)] == []


class Consuming:
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
) -> AsyncIterator[Consuming]:
    subscriber = open_subscriber(url, Subscription(consumer, topics, concurrency))
    consumer_ = Consuming()
    try:
        await subscriber.open()
        consumer_.running = asyncio.create_task(subscriber.run(handle, consumer_.stop.wait))
        yield consumer_
        await consumer_.stopped()
    finally:
        if consumer_.running is not None and not consumer_.running.done():
            consumer_.running.cancel()
            await asyncio.wait([consumer_.running])
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

    @property
    def ids(self) -> list[UUID]:
        return [came.id for came in self.envelopes]

    @property
    def bodies(self) -> list[bytes]:
        return [came.body for came in self.envelopes]


def errors(outcomes: list[Outcome] | tuple[Outcome, ...]) -> list[BrokerError]:
    return [outcome.error for outcome in outcomes if isinstance(outcome, Refused)]


@pytest.fixture(autouse=True)
def nothing_is_left_unhandled(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """asyncio logs a task's or callback's lost exception, and nothing else of note."""
    yield
    import gc

    gc.collect()
    lost = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert lost == []


AWKWARD = [
    envelope(),
    replace(envelope(), body=b"\x00\xff\r\n\r\n not JSON", content_type="application/x-raw"),
    envelope(key="order:1"),
    envelope(key="заказ №7 – 注文"),
    envelope(key="100%25 of %zz"),
    envelope(key="  padded  "),
    envelope(headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}),
    envelope(headers={"note": "a value with spaces: and a colon", "empty": "", "blank": "  "}),
    envelope(headers={"note": "é % =?utf-8?q?x?= \"quoted\" 'single'"}),
    replace(
        envelope(b'{"a": "\\u00e9"}', topic="orders.eu-west_1"),
        kind="reply",
        version=7,
        source="shop №1",
        correlation_id="corr 1%",
        causation_id=str(envelope().id),
    ),
]


class PublisherConformance:
    """`Accepted` means stored; everything else is refused with an error of the right class."""

    async def test_what_is_accepted_is_stored_with_the_same_bytes_and_headers(
        self, broker: BrokerUnderTest
    ) -> None:
        await publish(broker.url(), AWKWARD)

        assert [stored.envelope() for stored in await broker.stored()] == AWKWARD

    async def test_every_message_of_a_large_batch_has_its_own_outcome(
        self, broker: BrokerUnderTest
    ) -> None:
        batch = numbered(1500)
        batch[700] = replace(batch[700], topic="not a topic")
        async with publishing(broker.url()) as publisher:
            outcomes = await publisher.publish(batch)

        refused = [index for index, outcome in enumerate(outcomes) if outcome != Accepted()]
        assert refused == [700]
        assert len(await broker.stored()) == 1499

    async def test_an_empty_batch_has_no_outcomes(self, broker: BrokerUnderTest) -> None:
        async with publishing(broker.url()) as publisher:
            assert list(await publisher.publish([])) == []

    async def test_two_batches_at_the_same_time_do_not_mix_their_outcomes(
        self, broker: BrokerUnderTest
    ) -> None:
        good, bad = numbered(300), [replace(each, topic="a..b") for each in numbered(300)]
        async with publishing(broker.url()) as publisher:
            accepted, refused = await asyncio.gather(
                publisher.publish(good), publisher.publish(bad)
            )

        assert all(isinstance(outcome, Accepted) for outcome in accepted)
        assert all(isinstance(outcome, Refused) for outcome in refused)

    async def test_the_same_id_again_is_a_duplicate_and_stored_once(
        self, broker: BrokerUnderTest
    ) -> None:
        needs(broker, "deduplicates")
        batch = numbered(3)
        async with publishing(broker.url()) as publisher:
            first = await publisher.publish(batch)
            again = await publisher.publish(batch)

        assert list(first) == [Accepted()] * 3
        assert list(again) == [Accepted(duplicate=True)] * 3
        assert len(await broker.stored()) == 3

    @pytest.mark.parametrize("topic", ["", "a b", "a..b", ".a", "a.", "a.*", "a.>", "a\r\nPUB x"])
    async def test_a_topic_that_is_no_address_is_unpublishable(
        self, broker: BrokerUnderTest, topic: str
    ) -> None:
        async with publishing(broker.url()) as publisher:
            outcomes = await publisher.publish([replace(envelope(), topic=topic), envelope()])

        assert [type(error) for error in errors(tuple(outcomes))] == [Unpublishable]
        assert isinstance(outcomes[1], Accepted)

    @pytest.mark.parametrize("name", ["", "a b", "a:b", "é", "a\r\nb"])
    async def test_a_header_name_that_could_forge_another_is_unpublishable(
        self, broker: BrokerUnderTest, name: str
    ) -> None:
        async with publishing(broker.url()) as publisher:
            outcomes = await publisher.publish(
                [replace(envelope(), headers={name: "x"}), envelope()]
            )

        assert [type(error) for error in errors(tuple(outcomes))] == [Unpublishable]
        assert isinstance(outcomes[1], Accepted)

    @pytest.mark.parametrize("over", [-1, 0, 1])
    async def test_a_message_at_the_size_limit_never_harms_its_neighbours(
        self, broker: BrokerUnderTest, over: int
    ) -> None:
        needs(broker, "size_limit")
        large = envelope(key="ключ", headers={"note": "x" * 500})
        async with publishing(broker.url()) as publisher:
            size = await broker.largest_body(large) + over
            large = replace(large, body=b"1" * size)
            outcomes = await publisher.publish([*numbered(50), large, *numbered(50)])

        if over > 0:
            assert [error.code for error in errors(tuple(outcomes))] == ["too_large"]
            assert isinstance(errors(tuple(outcomes))[0], Unpublishable)
        else:
            assert errors(tuple(outcomes)) == []
        bodies = [stored.body for stored in await broker.stored()]
        assert len(bodies) == (100 if over > 0 else 101)

    async def test_a_missing_destination_is_unavailable_until_somebody_creates_it(
        self, broker: BrokerUnderTest
    ) -> None:
        needs(broker, "missing")
        async with publishing(broker.url_without_creating()) as publisher:
            before = await publisher.publish(numbered(2))
            await broker.create()
            after = await publisher.publish(numbered(2))

        assert len(before) == 2
        assert all(isinstance(error, BrokerUnavailable) for error in errors(tuple(before)))
        assert errors(tuple(after)) == []

    async def test_a_full_destination_is_unavailable_and_keeps_what_it_accepted(
        self, broker: BrokerUnderTest
    ) -> None:
        needs(broker, "full")
        batch = numbered(10)
        async with publishing(broker.url()) as publisher:
            await broker.fill(room=6)
            outcomes = await publisher.publish(batch)

        accepted = [isinstance(outcome, Accepted) for outcome in outcomes]
        assert accepted.count(True) == 6
        assert {type(error) for error in errors(tuple(outcomes))} == {BrokerUnavailable}
        stored = {stored.envelope().id for stored in await broker.stored()}
        assert {each.id for each, yes in zip(batch, accepted, strict=True) if yes} <= stored

    async def test_everything_accepted_before_the_server_was_killed_is_stored_after_it(
        self, broker: BrokerUnderTest
    ) -> None:
        needs(broker, "private")
        batch = [replace(each, body=b"x" * 20_000) for each in numbered(2000)]
        async with publishing(broker.url()) as publisher:
            sending = asyncio.create_task(publisher.publish(batch))
            await some_are_stored(broker)
            await asyncio.to_thread(broker.kill)
            outcomes = await asyncio.wait_for(sending, PATIENCE)
            while_down = await publisher.publish(numbered(2))
            await asyncio.to_thread(broker.start)
            stored = {stored.envelope().id for stored in await broker.stored()}
            afterwards = await publisher.publish(numbered(2))

        refused = errors(tuple(outcomes))
        assert refused, "the server was killed too late to tell anything"
        assert {type(error) for error in refused} <= {PublishUnconfirmed, BrokerDown}
        accepted = {
            each.id
            for each, outcome in zip(batch, outcomes, strict=True)
            if isinstance(outcome, Accepted)
        }
        assert accepted <= stored
        assert [type(error) for error in errors(tuple(while_down))] == [BrokerDown] * 2
        assert errors(tuple(afterwards)) == []

    async def test_what_was_refused_as_unavailable_is_never_stored_later(
        self, broker: BrokerUnderTest
    ) -> None:
        needs(broker, "private")
        async with publishing(broker.url()) as publisher:
            await asyncio.to_thread(broker.kill)
            batch = numbered(20)
            outcomes = await publisher.publish(batch)
            await asyncio.to_thread(broker.start)
            mark = envelope()
            await publisher.publish([mark])

        assert {type(error) for error in errors(tuple(outcomes))} <= {
            BrokerDown,
            PublishUnconfirmed,
        }
        unavailable = {
            each.id
            for each, outcome in zip(batch, outcomes, strict=True)
            if isinstance(outcome, Refused) and isinstance(outcome.error, BrokerUnavailable)
        }
        assert not unavailable & {stored.envelope().id for stored in await broker.stored()}

    async def test_a_silent_server_leaves_the_outcome_unconfirmed_within_the_timeout(
        self, broker: BrokerUnderTest
    ) -> None:
        needs(broker, "private")
        batch = numbered(20)
        async with publishing(broker.url(timeout=1)) as publisher:
            await publisher.publish([envelope()])
            broker.pause()
            try:
                async with asyncio.timeout(1 + PROMPT):
                    outcomes = await publisher.publish(batch)
            finally:
                broker.resume()
            again = await until_accepted(publisher, batch)

        assert {type(error) for error in errors(tuple(outcomes))} == {PublishUnconfirmed}
        assert len(errors(tuple(outcomes))) == 20
        assert errors(again) == []

    async def test_a_server_that_dies_is_noticed_before_the_timeout(
        self, broker: BrokerUnderTest
    ) -> None:
        needs(broker, "private")
        async with publishing(broker.url(timeout=60)) as publisher:
            await publisher.publish([envelope()])
            broker.pause()
            sending = asyncio.create_task(publisher.publish(numbered(20)))
            await asyncio.wait([sending], timeout=0.2)  # it is on its way, and nobody answers
            assert not sending.done()
            await asyncio.to_thread(broker.kill)
            outcomes = await asyncio.wait_for(sending, PATIENCE)

        assert {type(error) for error in errors(tuple(outcomes))} == {PublishUnconfirmed}

    async def test_a_cancelled_batch_leaves_the_publisher_usable(
        self, broker: BrokerUnderTest
    ) -> None:
        async with publishing(broker.url()) as publisher:
            cancelled = asyncio.create_task(publisher.publish(numbered(500)))
            await asyncio.wait([cancelled], timeout=0)
            cancelled.cancel()
            await asyncio.wait([cancelled])
            outcomes = await publisher.publish(numbered(10))

        assert errors(tuple(outcomes)) == []

    async def test_a_server_that_cannot_be_reached_is_unavailable_in_bounded_time(
        self, broker: BrokerUnderTest
    ) -> None:
        publisher = open_publisher(broker.nowhere)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(BrokerUnavailable):
                await publisher.open()
            outcomes = await publisher.publish(numbered(3))
            await publisher.close()
            await publisher.close()

        assert [type(error) for error in errors(tuple(outcomes))] == [BrokerDown] * 3


async def some_are_stored(broker: BrokerUnderTest) -> None:
    """Returns when the destination has begun to store."""
    async with asyncio.timeout(PATIENCE):
        while not await broker.count():
            pass


async def until_accepted(publisher: Publisher, batch: list[Envelope]) -> tuple[Outcome, ...]:
    """Publishes again, under the same ids, until the server has come back."""
    async with asyncio.timeout(PATIENCE):
        while True:
            outcomes = tuple(await publisher.publish(batch))
            if not errors(outcomes):
                return outcomes


def needs(broker: BrokerUnderTest, feature: str) -> None:
    if feature not in broker.features:
        pytest.skip(f"{type(broker).__name__} has no {feature!r}")


class SubscriberConformance:
    """A message is settled only by its handler; whatever is not settled comes again."""

    async def test_a_message_comes_as_it_was_published(self, broker: BrokerUnderTest) -> None:
        await publish(broker.url(), AWKWARD)
        inbox = Inbox()
        async with consuming(broker.url(), inbox, topics=("orders", "orders.eu-west_1")):
            await inbox.got(len(AWKWARD))

        assert sorted(inbox.ids) == sorted(each.id for each in AWKWARD)
        assert {each.id: each for each in inbox.envelopes} == {each.id: each for each in AWKWARD}

    async def test_each_consumer_gets_every_message_of_its_topics_and_no_other(
        self, broker: BrokerUnderTest
    ) -> None:
        orders, payments = numbered(5), numbered(5, topic="payments")
        await publish(broker.url(), [*orders, *payments])
        billing, audit = Inbox(), Inbox()
        async with (
            consuming(broker.url(), billing, consumer="billing"),
            consuming(broker.url(), audit, consumer="audit 1.0/é", topics=("orders", "payments")),
        ):
            await billing.got(5)
            await audit.got(10)

        assert sorted(billing.ids) == sorted(each.id for each in orders)
        assert sorted(audit.ids) == sorted(each.id for each in [*orders, *payments])

    async def test_processes_of_one_consumer_share_its_messages(
        self, broker: BrokerUnderTest
    ) -> None:
        await publish(broker.url(), numbered(200))
        inbox = Inbox()
        async with (
            consuming(broker.url(), inbox, concurrency=2),
            consuming(broker.url(), inbox, concurrency=2),
        ):
            await inbox.got(200)

        assert len(set(inbox.ids)) == len(inbox.ids) == 200

    async def test_what_was_acknowledged_does_not_come_again(
        self, broker: BrokerUnderTest
    ) -> None:
        await publish(broker.url(), numbered(20))
        first, second = Inbox(), Inbox()
        async with consuming(broker.url(ack_wait=1), first):
            await first.got(20)
        mark = envelope()
        await publish(broker.url(), [mark])
        async with consuming(broker.url(ack_wait=1), second):
            await second.got(1)

        assert second.ids == [mark.id]

    async def test_a_message_is_not_settled_before_its_handler_says_so(
        self, broker: BrokerUnderTest
    ) -> None:
        sent = envelope()
        await publish(broker.url(), [sent])
        begun, inbox = asyncio.Event(), Inbox()

        async def hold(delivery: Delivery) -> None:
            begun.set()
            await asyncio.Event().wait()

        async with consuming(broker.url(grace=0.1), hold) as holding:
            await asyncio.wait_for(begun.wait(), PATIENCE)
            await holding.stopped()  # cancels it: what it had in hand goes back
        async with consuming(broker.url(), inbox):
            await inbox.got(1, PROMPT)

        assert inbox.ids == [sent.id]

    async def test_a_killed_process_leaves_its_message_to_others(
        self, broker: BrokerUnderTest
    ) -> None:
        sent = envelope()
        url = broker.url(ack_wait=1)
        await publish(url, [sent])
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", HOLDS_ONE_MESSAGE, url, "billing", "orders"),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            line = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
        finally:
            process.kill()
            await process.wait()
        inbox = Inbox()
        async with consuming(url, inbox):
            await inbox.got(1)

        assert line.decode().strip() == str(sent.id)
        assert inbox.ids == [sent.id]

    @pytest.mark.parametrize("how", ["raises", "settles nothing", "cancels itself"])
    async def test_a_message_whose_handler_fails_comes_again(
        self, broker: BrokerUnderTest, how: str
    ) -> None:
        sent = envelope(b'{"secret": "4111 1111 1111 1111"}')
        await publish(broker.url(), [sent])
        inbox, attempts = Inbox(), 0

        async def handle(delivery: Delivery) -> None:
            nonlocal attempts
            attempts += 1
            if attempts == 1 and how == "raises":
                raise RuntimeError(delivery.envelope.body)
            if attempts == 1 and how == "cancels itself":
                raise asyncio.CancelledError
            if attempts > 1:
                await inbox(delivery)

        async with consuming(broker.url(), handle):
            await inbox.got(1)

        assert inbox.ids == [sent.id]
        assert attempts == 2

    async def test_an_error_of_a_handler_is_logged_without_the_payload(
        self, broker: BrokerUnderTest, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG", logger="outbox_saga")
        sent = envelope(b'{"secret": "4111 1111 1111 1111"}')
        await publish(broker.url(), [sent])
        inbox, attempts = Inbox(), 0

        async def handle(delivery: Delivery) -> None:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                raise RuntimeError(delivery.envelope.body)
            await inbox(delivery)

        async with consuming(broker.url(), handle):
            await inbox.got(1)

        assert str(sent.id) in caplog.text
        assert "RuntimeError" in caplog.text
        assert "4111" not in caplog.text

    async def test_messages_without_a_key_are_handled_at_the_same_time(
        self, broker: BrokerUnderTest
    ) -> None:
        await publish(broker.url(), numbered(8))
        together, inbox = asyncio.Barrier(8), Inbox()

        async def handle(delivery: Delivery) -> None:
            await together.wait()
            await inbox(delivery)

        async with consuming(broker.url(), handle, concurrency=8):
            await inbox.got(8)

    async def test_never_more_messages_are_handled_at_once_than_wanted(
        self, broker: BrokerUnderTest
    ) -> None:
        await publish(broker.url(), numbered(60))
        inbox, now, most = Inbox(), 0, 0

        async def handle(delivery: Delivery) -> None:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            await inbox(delivery)
            now -= 1

        async with consuming(broker.url(), handle, concurrency=3):
            await inbox.got(60)

        assert most == 3

    async def test_messages_of_one_key_are_handled_one_after_another_in_order(
        self, broker: BrokerUnderTest
    ) -> None:
        keys = [f"order:{n}" for n in range(7)]
        await publish(
            broker.url(), [envelope(b"%d" % n, key=key) for n in range(40) for key in keys]
        )
        inbox, inside = Inbox(), set[str]()

        async def handle(delivery: Delivery) -> None:
            key = delivery.envelope.key
            assert key is not None
            assert key not in inside
            inside.add(key)
            for _ in range(hash(delivery.envelope.id) % 4):
                await asyncio.sleep(0)
            inside.remove(key)
            await inbox(delivery)

        async with consuming(broker.url(), handle, concurrency=8):
            await inbox.got(40 * 7)

        for key in keys:
            came = [int(each.body) for each in inbox.envelopes if each.key == key]
            assert came == list(range(40))

    async def test_a_message_that_is_retried_is_not_overtaken_by_its_key(
        self, broker: BrokerUnderTest
    ) -> None:
        await publish(broker.url(), numbered(30, key="order:1"))
        inbox, retried = Inbox(), set[bytes]()

        async def handle(delivery: Delivery) -> None:
            body = delivery.envelope.body
            if body in {b'{"n":3}', b'{"n":4}', b'{"n":17}'} and body not in retried:
                retried.add(body)
                await delivery.retry(0.2)
            else:
                await inbox(delivery)

        async with consuming(broker.url(), handle, concurrency=4):
            await inbox.got(30)

        assert inbox.bodies == [b'{"n":%d}' % n for n in range(30)]

    async def test_a_message_that_is_retried_holds_up_no_other_key(
        self, broker: BrokerUnderTest
    ) -> None:
        await publish(broker.url(), [envelope(key="stuck"), *numbered(50, key="free")])
        inbox = Inbox()

        async def handle(delivery: Delivery) -> None:
            if delivery.envelope.key == "stuck":
                await delivery.retry(60)
            else:
                await inbox(delivery)

        async with consuming(broker.url(), handle, concurrency=2):
            await inbox.got(50)

    async def test_a_long_handler_keeps_its_message_while_it_runs(
        self, broker: BrokerUnderTest
    ) -> None:
        """The retried message is the clock: it comes back after three times ack_wait."""
        long, clock = envelope(b'"long"', key="a"), envelope(b'"clock"', key="b")
        await publish(broker.url(), [long, clock])
        seen: list[bytes] = []
        rang, inbox = asyncio.Event(), Inbox()

        async def handle(delivery: Delivery) -> None:
            body = delivery.envelope.body
            seen.append(body)
            if body == clock.body and seen.count(body) == 1:
                await delivery.retry(3.0)
                return
            if body == clock.body:
                rang.set()
            await rang.wait()
            await inbox(delivery)

        url = broker.url(ack_wait=1)
        async with consuming(url, handle, concurrency=2), consuming(url, handle, concurrency=2):
            await inbox.got(2)

        assert seen.count(long.body) == 1

    async def test_a_rejected_message_does_not_come_again(self, broker: BrokerUnderTest) -> None:
        """The retried message is the clock."""
        bad, clock = envelope(b'"bad"'), envelope(b'"clock"')
        await publish(broker.url(), [bad, clock])
        seen: list[bytes] = []
        inbox = Inbox()

        async def handle(delivery: Delivery) -> None:
            body = delivery.envelope.body
            seen.append(body)
            if body == bad.body:
                await delivery.reject("никогда\r\nnever")
            elif seen.count(body) == 1:
                await delivery.retry(3.0)
            else:
                await inbox(delivery)

        async with consuming(broker.url(ack_wait=1), handle):
            await inbox.got(1)

        assert seen.count(bad.body) == 1

    async def test_a_message_that_cannot_be_read_is_refused_and_can_be_rejected(
        self, broker: BrokerUnderTest
    ) -> None:
        async with publishing(broker.url()):
            pass  # the destination is there now
        await broker.put("orders", b"\xff", {"ce-id": "not a uuid", "ce-type": "x"})
        good = envelope()
        await publish(broker.url(), [good])
        inbox, refused = Inbox(), list[str]()

        async def handle(delivery: Delivery) -> None:
            try:
                came = delivery.envelope
            except MessageRefused as error:
                refused.append(error.path)
                await delivery.reject(error.reason)
                return
            await inbox.add(came)
            await delivery.acknowledge()

        async with consuming(broker.url(ack_wait=1), handle, concurrency=1):
            await inbox.got(1)
        async with consuming(broker.url(ack_wait=1), handle, concurrency=1):
            await publish(broker.url(), [envelope()])
            await inbox.got(2)

        assert refused == ["headers"]

    async def test_stopping_is_prompt_with_nothing_to_do(self, broker: BrokerUnderTest) -> None:
        inbox = Inbox()
        await publish(broker.url(), [envelope()])
        async with consuming(broker.url(), inbox) as idle:
            await inbox.got(1)
            async with asyncio.timeout(PROMPT):
                await idle.stopped()

    async def test_stopping_lets_handlers_finish_and_gives_the_rest_back_at_once(
        self, broker: BrokerUnderTest
    ) -> None:
        batch = numbered(12)
        await publish(broker.url(), batch)
        begun, go, first, second = asyncio.Semaphore(0), asyncio.Event(), Inbox(), Inbox()

        async def slow(delivery: Delivery) -> None:
            begun.release()
            await go.wait()
            await first(delivery)

        async with consuming(broker.url(ack_wait=60), slow, concurrency=2) as stopping:
            for _ in range(2):
                await asyncio.wait_for(begun.acquire(), PATIENCE)
            stopping.stop.set()
            async with consuming(broker.url(ack_wait=60), second):
                await second.got(10, PATIENCE)
                go.set()
                await stopping.stopped()

        assert len(first.ids) == 2
        assert sorted(first.ids + second.ids) == sorted(each.id for each in batch)

    async def test_stopping_under_load_leaves_no_message_behind(
        self, broker: BrokerUnderTest
    ) -> None:
        """With an ack_wait longer than the test, so a message left behind is missed."""
        inbox, url = Inbox(), broker.url(ack_wait=300)
        batch = numbered(3000)
        async with publishing(url) as publisher:
            sending = asyncio.create_task(publisher.publish(batch))
            for count in (1, 300, 900, 1500, 2100):
                async with consuming(url, inbox, concurrency=32):
                    await inbox.got(count)
            await sending
        async with consuming(url, inbox, concurrency=32):
            await inbox.got(len(batch))

        assert len(set(inbox.ids)) == len(inbox.ids) == len(batch)

    async def test_a_handler_that_outlives_the_grace_is_cancelled_and_its_message_goes_back(
        self, broker: BrokerUnderTest
    ) -> None:
        sent = envelope()
        await publish(broker.url(), [sent])
        begun, undone, inbox = asyncio.Event(), asyncio.Event(), Inbox()

        async def never(delivery: Delivery) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                undone.set()

        async with consuming(broker.url(grace=0.2, ack_wait=60), never) as stopping:
            await asyncio.wait_for(begun.wait(), PATIENCE)
            async with asyncio.timeout(PROMPT):
                await stopping.stopped()
        assert undone.is_set()
        async with consuming(broker.url(), inbox):
            await inbox.got(1, PROMPT)

    async def test_a_consumer_outlives_a_killed_server(self, broker: BrokerUnderTest) -> None:
        needs(broker, "private")
        before, after = numbered(50), numbered(50)
        await publish(broker.url(), before)
        inbox = Inbox()
        async with consuming(broker.url(ack_wait=1), inbox):
            await inbox.got(10)
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
            await publish(broker.url(), after)
            async with asyncio.timeout(PATIENCE):
                while not {each.id for each in [*before, *after]} <= set(inbox.ids):
                    await inbox.got(len(inbox.ids) + 1)

    async def test_a_consumer_outlives_a_server_that_went_silent(
        self, broker: BrokerUnderTest
    ) -> None:
        needs(broker, "private")
        await publish(broker.url(), [envelope()])
        inbox, sent = Inbox(), envelope()
        url = broker.url(timeout=1, ack_wait=1)
        async with publishing(url) as publisher, consuming(url, inbox):
            await inbox.got(1)
            broker.pause()
            try:
                await publisher.publish([sent])  # until its timeout
            finally:
                broker.resume()
            await until_accepted(publisher, [sent])
            while sent.id not in inbox.ids:
                await inbox.got(len(inbox.ids) + 1)

    async def test_stopping_is_prompt_while_the_server_is_away(
        self, broker: BrokerUnderTest
    ) -> None:
        needs(broker, "private")
        inbox = Inbox()
        await publish(broker.url(), [envelope()])
        async with consuming(broker.url(), inbox) as stopping:
            await inbox.got(1)
            await asyncio.to_thread(broker.kill)
            async with asyncio.timeout(PROMPT):
                await stopping.stopped()

    async def test_a_consumer_waits_for_a_destination_that_does_not_exist_yet(
        self, broker: BrokerUnderTest
    ) -> None:
        needs(broker, "missing")
        inbox, sent = Inbox(), envelope()
        async with consuming(broker.url_without_creating(), inbox):
            await broker.create()
            await publish(broker.url_without_creating(), [sent])
            await inbox.got(1)

        assert inbox.ids == [sent.id]

    async def test_a_consumer_whose_server_cannot_be_reached_says_so_in_bounded_time(
        self, broker: BrokerUnderTest
    ) -> None:
        subscriber = open_subscriber(broker.nowhere, Subscription("billing", ("orders",)))
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(BrokerUnavailable):
                await subscriber.open()
            await subscriber.close()
            await subscriber.close()
