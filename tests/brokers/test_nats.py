"""What is special to NATS: its streams, its error codes, its permissions, its consumers."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from urllib.parse import quote, urlsplit

import nats
import pytest
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType

from outbox_saga.brokers import Accepted, Delivery, Subscription, open_publisher, open_subscriber
from outbox_saga.errors import (
    BrokerUnavailable,
    ConfigurationError,
    PublishUnconfirmed,
    Unpublishable,
)
from outbox_saga.testing.servers import Nats
from outbox_saga.testing.servers.nats import _NatsProcess
from outbox_saga.testing.servers.place import Place
from tests.brokers.conformance import (
    PATIENCE,
    PROMPT,
    Inbox,
    consuming,
    envelope,
    errors,
    nothing_is_left_unhandled,
    numbered,
    publish,
    publishing,
)
from tests.brokers.nats_under_test import NatsUnderTest
from tests.fixtures.services import PrivateServer, Services

__all__ = ["nothing_is_left_unhandled"]


@pytest.fixture
def stream(services: Services) -> NatsUnderTest:
    """A stream that is not there yet, on the server that all tests share."""
    return NatsUnderTest(services.get(Nats), private=False)


@pytest.fixture
def private(private_server: PrivateServer) -> NatsUnderTest:
    """The same, on a server of this test."""
    return NatsUnderTest(private_server(Nats), private=True)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


# The stream


async def test_a_created_stream_keeps_everything_it_acknowledged(
    stream: NatsUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    async with publishing(stream.url(dedup_window=60)):
        pass
    async with stream.client() as js:
        config = (await js.stream_info(stream.name)).config

    assert config.subjects == [f"{stream.name}.>"]
    assert config.storage == StorageType.FILE
    assert config.retention == RetentionPolicy.LIMITS
    assert config.discard == DiscardPolicy.NEW
    assert (config.max_msgs, config.max_bytes, config.max_age) == (-1, -1, 0)
    assert config.duplicate_window == 60
    assert warnings(caplog) == []


async def test_several_processes_may_create_the_stream_at_the_same_time(
    stream: NatsUnderTest,
) -> None:
    publishers = [open_publisher(stream.url(dedup_window=60 + n)) for n in range(8)]
    await asyncio.gather(*(publisher.open() for publisher in publishers))
    outcomes = await asyncio.gather(*(each.publish([envelope()]) for each in publishers))
    await asyncio.gather(*(publisher.close() for publisher in publishers))

    assert [list(each) for each in outcomes] == [[Accepted()]] * 8


async def test_without_create_nothing_is_created(stream: NatsUnderTest) -> None:
    async with publishing(stream.url(create=False)) as publisher:
        outcomes = await publisher.publish([envelope()])

    assert [error.code for error in errors(tuple(outcomes))] == ["no_stream"]
    async with stream.client() as js:
        assert stream.name not in [each.config.name for each in await js.streams_info()]


async def test_a_stream_that_can_lose_messages_is_warned_of_once(
    stream: NatsUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    await stream.create(
        discard=DiscardPolicy.OLD, max_msgs=10, max_age=60, storage=StorageType.MEMORY
    )
    async with publishing(stream.url()) as publisher:
        await publisher.publish([envelope()])
        await publisher.publish([envelope()])

    (warning,) = warnings(caplog)
    for setting in ("max_age", "discard=old with max_msgs", "storage=memory"):
        assert setting in warning


async def test_a_limit_per_subject_drops_what_was_acknowledged_even_with_discard_new(
    stream: NatsUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    await stream.create(discard=DiscardPolicy.NEW, max_msgs_per_subject=1)
    async with publishing(stream.url()) as publisher:
        outcomes = [await publisher.publish([envelope()]) for _ in range(3)]

    assert [list(each) for each in outcomes] == [[Accepted()]] * 3
    assert await stream.count() == 1
    (warning,) = warnings(caplog)
    assert "max_msgs_per_subject without discard_new_per_subject" in warning


async def test_a_limit_per_subject_that_refuses_is_not_warned_of(
    stream: NatsUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    await stream.create(
        discard=DiscardPolicy.NEW, max_msgs_per_subject=1, discard_new_per_subject=True
    )
    async with publishing(stream.url()) as publisher:
        accepted = await publisher.publish([envelope()])
        refused = await publisher.publish([envelope()])

    assert list(accepted) == [Accepted()]
    assert [type(error) for error in errors(tuple(refused))] == [BrokerUnavailable]
    assert warnings(caplog) == []


async def test_a_deleted_stream_is_created_again(stream: NatsUnderTest) -> None:
    async with publishing(stream.url()) as publisher:
        async with stream.client() as js:
            await js.delete_stream(stream.name)
        refused = await publisher.publish([envelope()])
        accepted = await publisher.publish([envelope()])

    assert [error.code for error in errors(tuple(refused))] == ["no_stream"]
    assert errors(tuple(accepted)) == []


async def test_a_message_over_the_limit_of_the_stream_is_too_large(stream: NatsUnderTest) -> None:
    await stream.create(max_msg_size=2000)
    large = replace(envelope(), body=b"x" * 2000)
    async with publishing(stream.url()) as publisher:
        outcomes = await publisher.publish([*numbered(2), large, *numbered(2)])

    (error,) = errors(tuple(outcomes))
    assert isinstance(error, Unpublishable)
    assert error.code == "too_large"


async def test_headers_over_64_kibibytes_are_too_large(stream: NatsUnderTest) -> None:
    wide = replace(envelope(), headers={"note": "x" * 70_000})
    async with publishing(stream.url()) as publisher:
        outcomes = await publisher.publish([*numbered(2), wide, *numbered(2)])

    assert [error.code for error in errors(tuple(outcomes))] == ["too_large"]


async def test_a_full_stream_says_so(stream: NatsUnderTest) -> None:
    async with publishing(stream.url()) as publisher:
        await publisher.publish(numbered(3))
        await stream.update(max_msgs=3)
        outcomes = await publisher.publish(numbered(3))
        await stream.update(max_msgs=-1)
        afterwards = await publisher.publish(numbered(3))

    assert [error.code for error in errors(tuple(outcomes))] == ["stream_full"] * 3
    assert errors(tuple(afterwards)) == []


async def test_a_stream_of_another_name_takes_nothing(stream: NatsUnderTest) -> None:
    await stream.create()
    other = NatsUnderTest(stream.server, private=False)
    url = f"{stream.server.url}?stream={other.name}&prefix={stream.name}"
    async with publishing(url) as publisher:
        outcomes = await publisher.publish([envelope()])

    (error,) = errors(tuple(outcomes))
    assert isinstance(error, BrokerUnavailable)
    assert error.code == "no_stream"
    assert await stream.count() == 0


async def test_an_answer_of_somebody_else_is_no_acknowledgement(stream: NatsUnderTest) -> None:
    answers = [b"", b"OK", b"[]", b"{}", b'{"stream":"OTHER","seq":1}', b'{"error":{}}']
    client = await nats.connect(stream.server.url)

    async def answer(message: Msg) -> None:
        await message.respond(answers[int(message.subject.rpartition(".")[2])])

    await client.subscribe(f"{stream.name}.>", cb=answer)
    await client.flush()
    async with publishing(stream.url(create=False)) as publisher:
        outcomes = await publisher.publish(
            [replace(envelope(), topic=str(n)) for n in range(len(answers))]
        )
    await client.close()

    found = errors(tuple(outcomes))
    assert [type(error) for error in found] == [PublishUnconfirmed] * len(answers)
    assert {error.code for error in found} == {"not_an_ack"}


async def test_what_is_published_while_disconnected_is_not_sent_later(
    private: NatsUnderTest,
) -> None:
    async with publishing(private.url()) as publisher:
        await asyncio.to_thread(private.kill)
        outcomes = await publisher.publish(numbered(5))
        await asyncio.to_thread(private.start)
        await publisher.publish([envelope()])

    assert len(errors(tuple(outcomes))) == 5
    assert await private.count() == 1


async def test_messages_nobody_answers_do_not_take_the_connection_from_the_others(
    stream: NatsUnderTest,
) -> None:
    """Somebody listens to their subject, and it is not the stream."""
    await stream.create(subjects=[f"{stream.name}.answered"])
    deaf = await nats.connect(stream.server.url)
    await deaf.subscribe(f"{stream.name}.unheard")
    await deaf.flush()
    async with publishing(stream.url(create=False, timeout=0.5)) as publisher:
        unheard = [replace(each, topic="unheard") for each in numbered(3)]
        hanging = asyncio.create_task(publisher.publish(unheard))
        refused = []
        while not hanging.done():
            answered = [replace(each, topic="answered") for each in numbered(5)]
            refused += errors(tuple(await publisher.publish(answered)))
        before = publisher._link.current  # type: ignore[attr-defined]
        answered = [replace(each, topic="answered") for each in numbered(5)]
        refused += errors(tuple(await publisher.publish(answered)))
        after = publisher._link.current  # type: ignore[attr-defined]
    await deaf.close()

    assert [error.code for error in errors(tuple(await hanging))] == ["timeout"] * 3
    assert refused == []
    assert before is after is not None


async def test_a_subject_the_stream_does_not_take_keeps_no_other_waiting(
    stream: NatsUnderTest,
) -> None:
    await stream.create(subjects=[f"{stream.name}.taken.>"])
    batch = [replace(each, topic="taken.a") for each in numbered(3)]
    batch[1] = replace(batch[1], topic="other")
    told: list[int] = []
    async with publishing(stream.url(create=False)) as publisher:
        await publisher.publish(batch, lambda index, _: told.append(index))
        outcomes = await publisher.publish(batch, lambda index, _: told.append(index))

    (error,) = errors(tuple(outcomes))
    assert (type(error), error.code) == (BrokerUnavailable, "no_route")
    assert f"{stream.name}.other" in str(error)
    assert sorted(told) == [0, 0, 1, 1, 2, 2]


# Who may do what


class GuardedNats(Nats):
    """Takes passwords, one user with few permissions among them."""

    name = "nats_guarded"

    @classmethod
    def local(cls, *, durable: bool) -> Place:
        place = super().local(durable=durable)
        assert isinstance(place, _NatsProcess)
        prepare = place.prepare

        def prepare_with_users() -> None:
            prepare()
            with (place.directory / "nats.conf").open("a") as config:
                config.write(
                    """
                    authorization { users: [
                        {user: "us er:", password: "p@ss/w,rd%"}
                        {user: "narrow", password: "s3cret", permissions: {
                            publish: ["outbox.orders"], subscribe: ["_INBOX.>"]}}
                        {user: "deaf", password: "s3cret", permissions: {
                            publish: [">"], subscribe: ["nothing"]}}
                    ] }
                    """
                )

        place.prepare = prepare_with_users  # type: ignore[method-assign]
        return place

    def probe(self, patience: float = 5.0) -> None:
        url = urlsplit(self.url)
        with socket.create_connection((url.hostname, url.port), timeout=patience) as connection:
            assert b'"jetstream":true' in connection.makefile("rb").readline()

    def as_user(self, user: str, password: str, options: str) -> str:
        where = urlsplit(self.url).netloc
        return f"nats://{quote(user, safe='')}:{quote(password, safe='')}@{where}?{options}"


@pytest.fixture
def guarded(private_server: PrivateServer) -> GuardedNats:
    return private_server(GuardedNats)


async def test_any_character_may_stand_in_a_password(guarded: GuardedNats) -> None:
    await publish(guarded.as_user("us er:", "p@ss/w,rd%", "create=1"), numbered(3))


async def test_wrong_credentials_are_refused_and_shown_nowhere(
    guarded: GuardedNats, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    publisher = open_publisher(guarded.as_user("us er:", "wr0ng", "timeout=2"))
    with pytest.raises(BrokerUnavailable) as refused:
        await publisher.open()
    await publisher.close()

    assert refused.value.code == "refused"
    assert "wr0ng" not in f"{refused.value} {caplog.text}"


async def test_a_topic_that_is_not_permitted_is_unavailable_and_others_go_out(
    guarded: GuardedNats,
) -> None:
    admin = guarded.as_user("us er:", "p@ss/w,rd%", "create=1")
    await publish(admin, [envelope()])
    narrow = guarded.as_user("narrow", "s3cret", "timeout=30")
    batch = [envelope(), envelope(topic="payments"), envelope()]
    async with asyncio.timeout(PATIENCE), publishing(narrow) as publisher:
        outcomes = await publisher.publish(batch)
        again = await publisher.publish([envelope()])

    (error,) = errors(tuple(outcomes))
    assert isinstance(error, BrokerUnavailable)
    assert error.code == "not_permitted"
    assert (outcomes[0], outcomes[2]) == (Accepted(), Accepted())
    assert list(again) == [Accepted()]


async def test_a_user_that_could_not_hear_the_answer_publishes_nothing(
    guarded: GuardedNats,
) -> None:
    await publish(guarded.as_user("us er:", "p@ss/w,rd%", "create=1"), [envelope()])
    publisher = open_publisher(guarded.as_user("deaf", "s3cret", "timeout=5"))
    outcomes = await publisher.publish([envelope()])
    await publisher.close()

    (error,) = errors(tuple(outcomes))
    assert isinstance(error, BrokerUnavailable)
    assert error.code == "not_permitted"


# The consumer


async def test_an_acknowledgement_that_found_no_connection_is_sent_on_the_next(
    private: NatsUnderTest,
) -> None:
    """The second message is the sign that the consumer is back; the third is the clock."""
    first, sign, clock = envelope(b'"first"'), envelope(b'"sign"'), envelope(b'"clock"')
    url = private.url(ack_wait=2)
    await publish(url, [first])
    begun, go, inbox, seen = asyncio.Event(), asyncio.Event(), Inbox(), list[bytes]()

    async def handle(delivery: Delivery) -> None:
        body = delivery.envelope.body
        seen.append(body)
        if body == first.body:
            begun.set()
            await go.wait()
        if body == clock.body and seen.count(body) == 1:
            await delivery.retry(5)
            return
        await inbox(delivery)

    async with consuming(url, handle):
        await asyncio.wait_for(begun.wait(), PATIENCE)
        await asyncio.to_thread(private.kill)
        go.set()
        await inbox.got(1)  # acknowledged into the void
        await asyncio.to_thread(private.start)
        await publish(url, [sign, clock])
        await inbox.got(3)

    assert seen.count(first.body) == 1


async def test_a_deleted_consumer_is_created_again(stream: NatsUnderTest) -> None:
    inbox, sent = Inbox(), envelope()
    await publish(stream.url(), [envelope()])
    async with consuming(stream.url(), inbox):
        await inbox.got(1)
        async with stream.client() as js:
            await js.delete_consumer(stream.name, "billing")
        await publish(stream.url(), [sent])
        while sent.id not in inbox.ids:
            await inbox.got(len(inbox.ids) + 1)


async def test_other_topics_for_a_known_consumer_are_taken_over_and_warned_of(
    stream: NatsUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Inbox(), Inbox()
    await publish(stream.url(), [envelope()])
    async with consuming(stream.url(), first):
        await first.got(1)
    sent = envelope(topic="payments")
    async with consuming(stream.url(), second, topics=("orders", "payments")):
        await publish(stream.url(), [sent])
        await second.got(1)

    assert second.ids == [sent.id]
    (warning,) = warnings(caplog)
    assert f"{stream.name}.payments" in warning


@pytest.mark.parametrize("policy", [AckPolicy.ALL, AckPolicy.NONE])
async def test_a_consumer_whose_messages_count_as_handled_before_they_are_is_refused(
    stream: NatsUnderTest, policy: AckPolicy
) -> None:
    await stream.create()
    async with stream.client() as js:
        made = ConsumerConfig(durable_name="billing", ack_policy=policy)
        await js.add_consumer(stream.name, made)
    subscriber = open_subscriber(stream.url(), Subscription("billing", ("orders",), 4))
    try:
        with pytest.raises(ConfigurationError, match=f"ack_policy={policy.value}: .* delete it"):
            await subscriber.open()
    finally:
        await subscriber.close()


async def test_more_messages_than_the_server_gives_at_once_are_all_handled(
    stream: NatsUnderTest,
) -> None:
    await publish(stream.url(), numbered(3000))
    inbox = Inbox()
    async with consuming(stream.url(), inbox, concurrency=700):
        await inbox.got(3000)

    assert len(set(inbox.ids)) == 3000


async def test_a_subscriber_may_run_again_after_it_has_stopped(stream: NatsUnderTest) -> None:
    subscriber = open_subscriber(stream.url(), Subscription("billing", ("orders",)))
    await subscriber.open()
    inbox = Inbox()
    for count in (1, 2):
        await publish(stream.url(), [envelope()])
        stop = asyncio.Event()
        running = asyncio.create_task(subscriber.run(inbox, stop.wait))
        await inbox.got(count, PATIENCE)
        stop.set()
        await asyncio.wait_for(running, PROMPT)
    await subscriber.close()


async def test_an_error_of_stop_itself_ends_the_run(stream: NatsUnderTest) -> None:
    subscriber = open_subscriber(stream.url(), Subscription("billing", ("orders",)))
    await subscriber.open()

    async def stop() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await asyncio.wait_for(subscriber.run(Inbox(), stop), PATIENCE)
    await subscriber.close()


async def test_a_cancelled_run_gives_back_what_it_had(stream: NatsUnderTest) -> None:
    sent = envelope()
    await publish(stream.url(), [sent])
    subscriber = open_subscriber(stream.url(ack_wait=60), Subscription("billing", ("orders",)))
    await subscriber.open()
    begun, inbox = asyncio.Event(), Inbox()

    async def never(delivery: Delivery) -> None:
        begun.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(subscriber.run(never, asyncio.Event().wait))
    await asyncio.wait_for(begun.wait(), PATIENCE)
    running.cancel()
    await asyncio.wait([running])
    await subscriber.close()
    async with consuming(stream.url(), inbox):
        await inbox.got(1, PROMPT)
