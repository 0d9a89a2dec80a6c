"""What every publisher keeps, as a test class over a fixture `broker`."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from outbox_saga.brokers import Accepted, Outcome, Publisher, Refused
from outbox_saga.envelopes import MAX_HEADERS, Envelope
from outbox_saga.errors import (
    BrokerDown,
    BrokerUnavailable,
    MessageRefused,
    PublishUnconfirmed,
    Unpublishable,
)
from outbox_saga.messages import MAX_TOPIC
from tests.brokers.conformance import (
    FEATURES,
    PATIENCE,
    PROMPT,
    Conformance,
    DestinationUnderTest,
    envelope,
    errors,
    needs,
    numbered,
    publish,
    publishing,
)

LONGEST_TOPIC = "a" * MAX_TOPIC

# Headers that HTTP, AMQP, NATS or an adapter would read as their own.
CARRIERS_OWN = (
    *("authorization", "connection", "content-encoding", "content-length", "cookie", "date"),
    *("expect", "host", "idempotency-key", "te", "transfer-encoding", "upgrade", "user-agent"),
    *("webhook-id", "webhook-signature", "webhook-timestamp"),
    *("bcc", "cc", "delivery-mode", "expiration", "priority", "x-death", "x-delay"),
    *("x-acquired-count", "x-delivery-count", "x-delivery-limit", "x-match", "x-stream-offset"),
    *("status", "description"),
    *("attempt", "body", "headers", "id", "key", "timestamp", "topic"),
)


def longest_header(character: str) -> int:
    """How often this character may stand in a header, as the door counts."""
    fewest, most = 1, MAX_HEADERS
    while fewest < most:
        middle = (fewest + most + 1) // 2
        try:
            envelope(headers={"note": character * middle})
        except MessageRefused:
            most = middle - 1
        else:
            fewest = middle
    return fewest


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


class PublisherConformance(Conformance):
    """`Accepted` means stored; everything else is refused with an error of the right class."""

    async def test_what_is_accepted_is_stored_with_the_same_bytes_and_headers(
        self, broker: DestinationUnderTest
    ) -> None:
        await publish(broker.publisher(), AWKWARD)

        stored = [stored.envelope() for stored in await broker.stored()]
        assert len(stored) == len(AWKWARD)
        assert {each.id: each for each in stored} == {each.id: each for each in AWKWARD}

    async def test_headers_that_mean_something_to_a_carrier_arrive_as_any_other(
        self, broker: DestinationUnderTest
    ) -> None:
        sent = envelope(headers={name: f"7, perhaps ({name})" for name in CARRIERS_OWN})
        await publish(broker.publisher(), [sent, *numbered(2)])

        stored = {each.id: each for each in [s.envelope() for s in await broker.stored()]}
        assert stored[sent.id] == sent
        assert len(stored) == 3

    @pytest.mark.parametrize("character", ["x", "é", "%"])
    async def test_headers_as_long_as_they_may_be_arrive(
        self, broker: DestinationUnderTest, character: str
    ) -> None:
        sent = envelope(headers={"note": character * longest_header(character)})
        await publish(broker.publisher(), [sent])

        (stored,) = await broker.stored()
        assert stored.envelope() == sent

    async def test_a_topic_and_a_key_as_long_as_they_may_be_are_carried(
        self, broker: DestinationUnderTest
    ) -> None:
        if broker.capabilities.unheard == "refused":
            pytest.skip("nobody listens to it; the subscriber's tests have this one")
        async with publishing(broker.publisher()) as publisher:
            outcomes = await publisher.publish([envelope(topic=LONGEST_TOPIC, key="ю" * 127)])

        assert errors(outcomes) == []

    async def test_outcomes_are_told_once_and_are_those_that_are_returned(
        self, broker: DestinationUnderTest
    ) -> None:
        batch = numbered(50)
        batch[7] = replace(batch[7], topic="not a topic")
        told: list[tuple[int, Outcome]] = []
        async with publishing(broker.publisher()) as publisher:
            outcomes = await publisher.publish(
                batch, lambda index, outcome: told.append((index, outcome))
            )

        assert len(dict(told)) == len(told)
        assert [(index, outcomes[index]) for index, _ in told] == told

    async def test_of_a_topic_nobody_listens_to_becomes_what_is_declared(
        self, broker: DestinationUnderTest
    ) -> None:
        async with publishing(broker.publisher()) as publisher:
            outcomes = await publisher.publish([envelope(topic="unheard"), envelope()])

        topics = {stored.topic for stored in await broker.stored()}
        assert isinstance(outcomes[1], Accepted)
        if broker.capabilities.unheard == "refused":
            assert [type(error) for error in errors(outcomes)] == [BrokerUnavailable]
        else:
            assert errors(outcomes) == []
        if broker.capabilities.unheard == "kept":
            assert topics == {"orders", "unheard"}

    async def test_what_cannot_be_tried_is_known_and_has_a_reason(
        self, broker: DestinationUnderTest
    ) -> None:
        assert set(broker.untried) <= set(FEATURES)
        assert all(len(reason.split()) > 2 for reason in broker.untried.values())

    async def test_every_message_of_a_large_batch_has_its_own_outcome(
        self, broker: DestinationUnderTest
    ) -> None:
        batch = numbered(1500)
        batch[700] = replace(batch[700], topic="not a topic")
        async with publishing(broker.publisher()) as publisher:
            outcomes = await publisher.publish(batch)

        refused = [index for index, outcome in enumerate(outcomes) if outcome != Accepted()]
        assert refused == [700]
        assert len(await broker.stored()) == 1499

    async def test_an_empty_batch_has_no_outcomes(self, broker: DestinationUnderTest) -> None:
        async with publishing(broker.publisher()) as publisher:
            assert list(await publisher.publish([])) == []

    async def test_two_batches_at_the_same_time_do_not_mix_their_outcomes(
        self, broker: DestinationUnderTest
    ) -> None:
        good, bad = numbered(300), [replace(each, topic="a..b") for each in numbered(300)]
        async with publishing(broker.publisher()) as publisher:
            accepted, refused = await asyncio.gather(
                publisher.publish(good), publisher.publish(bad)
            )

        assert all(isinstance(outcome, Accepted) for outcome in accepted)
        assert all(isinstance(outcome, Refused) for outcome in refused)

    async def test_the_same_id_again_is_accepted_and_stored_as_often_as_is_declared(
        self, broker: DestinationUnderTest
    ) -> None:
        once = broker.capabilities.deduplicates
        batch = numbered(3)
        async with publishing(broker.publisher()) as publisher:
            first = await publisher.publish(batch)
            again = await publisher.publish(batch)

        assert list(first) == [Accepted()] * 3
        assert list(again) == [Accepted(duplicate=once)] * 3
        assert len(await broker.stored()) == (3 if once else 6)

    @pytest.mark.parametrize("topic", ["", "a b", "a..b", ".a", "a.", "a.*", "a.>", "a\r\nPUB x"])
    async def test_a_topic_that_is_no_address_is_unpublishable(
        self, broker: DestinationUnderTest, topic: str
    ) -> None:
        async with publishing(broker.publisher()) as publisher:
            outcomes = await publisher.publish([replace(envelope(), topic=topic), envelope()])

        assert [type(error) for error in errors(outcomes)] == [Unpublishable]
        assert isinstance(outcomes[1], Accepted)

    @pytest.mark.parametrize("name", ["", "a b", "a:b", "é", "a\r\nb"])
    async def test_a_header_name_that_could_forge_another_is_unpublishable(
        self, broker: DestinationUnderTest, name: str
    ) -> None:
        async with publishing(broker.publisher()) as publisher:
            outcomes = await publisher.publish(
                [replace(envelope(), headers={name: "x"}), envelope()]
            )

        assert [type(error) for error in errors(outcomes)] == [Unpublishable]
        assert isinstance(outcomes[1], Accepted)

    @pytest.mark.parametrize("over", [-1, 0, 1])
    @needs("size_limit")
    async def test_a_message_at_the_size_limit_never_harms_its_neighbours(
        self, broker: DestinationUnderTest, over: int
    ) -> None:
        large = envelope(key="ключ", headers={"note": "x" * 500})
        async with publishing(broker.publisher()) as publisher:
            size = await broker.largest_body(large) + over
            large = replace(large, body=b"1" * size)
            outcomes = await publisher.publish([*numbered(50), large, *numbered(50)])

        if over > 0:
            assert [error.code for error in errors(outcomes)] == ["too_large"]
            assert isinstance(errors(outcomes)[0], Unpublishable)
        else:
            assert errors(outcomes) == []
        bodies = [stored.body for stored in await broker.stored()]
        assert len(bodies) == (100 if over > 0 else 101)

    @needs("missing")
    async def test_a_missing_destination_is_unavailable_until_somebody_creates_it(
        self, broker: DestinationUnderTest
    ) -> None:
        async with publishing(broker.publisher(create=False)) as publisher:
            before = await publisher.publish(numbered(2))
            await broker.create()
            after = await publisher.publish(numbered(2))

        assert len(before) == 2
        assert all(isinstance(error, BrokerUnavailable) for error in errors(before))
        assert errors(after) == []

    @needs("full")
    async def test_a_full_destination_is_unavailable_and_keeps_what_it_accepted(
        self, broker: DestinationUnderTest
    ) -> None:
        batch = numbered(10)
        async with publishing(broker.publisher()) as publisher:
            room = await broker.fill(6)
            outcomes = await publisher.publish(batch)

        accepted = [isinstance(outcome, Accepted) for outcome in outcomes]
        assert accepted.count(True) == room
        assert {type(error) for error in errors(outcomes)} == {BrokerUnavailable}
        stored = {stored.envelope().id for stored in await broker.stored()}
        assert {each.id for each, yes in zip(batch, accepted, strict=True) if yes} <= stored

    @needs("private")
    async def test_everything_accepted_before_the_server_was_killed_is_stored_after_it(
        self, broker: DestinationUnderTest
    ) -> None:
        batch = [replace(each, body=b"x" * 20_000) for each in numbered(2000)]
        async with publishing(broker.publisher()) as publisher:
            sending = asyncio.create_task(publisher.publish(batch))
            await some_are_stored(broker)
            await asyncio.to_thread(broker.kill)
            outcomes = await asyncio.wait_for(sending, PATIENCE)
            while_down = await publisher.publish(numbered(2))
            await asyncio.to_thread(broker.start)
            # it may be up before its destinations are
            await until_accepted(publisher, numbered(2))
            stored = {stored.envelope().id for stored in await broker.stored()}

        refused = errors(outcomes)
        assert refused, "the server was killed too late to tell anything"
        assert {type(error) for error in refused} <= {PublishUnconfirmed, BrokerDown}
        accepted = {
            each.id
            for each, outcome in zip(batch, outcomes, strict=True)
            if isinstance(outcome, Accepted)
        }
        assert accepted <= stored
        assert [type(error) for error in errors(while_down)] == [BrokerDown] * 2

    @needs("private")
    async def test_what_was_refused_as_unavailable_is_never_stored_later(
        self, broker: DestinationUnderTest
    ) -> None:
        async with publishing(broker.publisher()) as publisher:
            await asyncio.to_thread(broker.kill)
            batch = numbered(20)
            outcomes = await publisher.publish(batch)
            await asyncio.to_thread(broker.start)
            await until_accepted(publisher, [envelope()])

        assert {type(error) for error in errors(outcomes)} <= {
            BrokerDown,
            PublishUnconfirmed,
        }
        unavailable = {
            each.id
            for each, outcome in zip(batch, outcomes, strict=True)
            if isinstance(outcome, Refused) and isinstance(outcome.error, BrokerUnavailable)
        }
        assert not unavailable & {stored.envelope().id for stored in await broker.stored()}

    @needs("private")
    async def test_a_silent_server_leaves_the_outcome_unconfirmed_within_the_timeout(
        self, broker: DestinationUnderTest
    ) -> None:
        batch = numbered(20)
        async with publishing(broker.publisher(timeout=1)) as publisher:
            await publisher.publish([envelope()])
            broker.pause()
            try:
                async with asyncio.timeout(1 + PROMPT):
                    outcomes = await publisher.publish(batch)
            finally:
                broker.resume()
            again = await until_accepted(publisher, batch)

        assert {type(error) for error in errors(outcomes)} == {PublishUnconfirmed}
        assert len(errors(outcomes)) == 20
        assert errors(again) == []

    @needs("private")
    async def test_a_server_that_dies_is_noticed_before_the_timeout(
        self, broker: DestinationUnderTest
    ) -> None:
        async with publishing(broker.publisher(timeout=60)) as publisher:
            await publisher.publish([envelope()])
            broker.pause()
            sending = asyncio.create_task(publisher.publish(numbered(20)))
            await asyncio.wait([sending], timeout=0.2)  # it is on its way, and nobody answers
            assert not sending.done()
            await asyncio.to_thread(broker.kill)
            outcomes = await asyncio.wait_for(sending, PATIENCE)

        assert {type(error) for error in errors(outcomes)} == {PublishUnconfirmed}

    async def test_a_cancelled_batch_leaves_the_publisher_usable(
        self, broker: DestinationUnderTest
    ) -> None:
        async with publishing(broker.publisher()) as publisher:
            cancelled = asyncio.create_task(publisher.publish(numbered(500)))
            await asyncio.wait([cancelled], timeout=0)
            cancelled.cancel()
            await asyncio.wait([cancelled])
            outcomes = await publisher.publish(numbered(10))

        assert errors(outcomes) == []

    @needs("server")
    async def test_a_server_that_cannot_be_reached_is_unavailable_in_bounded_time(
        self, broker: DestinationUnderTest
    ) -> None:
        publisher = broker.unreachable()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(BrokerUnavailable):
                await publisher.open()
            outcomes = await publisher.publish(numbered(3))
            await publisher.close()
            await publisher.close()

        assert [type(error) for error in errors(outcomes)] == [BrokerDown] * 3


async def some_are_stored(broker: DestinationUnderTest) -> None:
    """Returns when the destination has begun to store."""
    async with asyncio.timeout(PATIENCE):
        while not await broker.count():  # noqa: ASYNC110 - nobody signals it from outside
            await asyncio.sleep(0)  # the look itself may never wait


async def until_accepted(publisher: Publisher, batch: list[Envelope]) -> tuple[Outcome, ...]:
    """Publishes again, under the same ids, until the server has come back."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await asyncio.sleep(0)  # a publisher may answer at once that the server is away
            outcomes = tuple(await publisher.publish(batch))
            if not errors(outcomes):
                return outcomes
