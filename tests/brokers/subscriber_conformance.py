"""What every subscriber keeps, as a test class over a fixture `broker`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from itertools import pairwise
from uuid import UUID

import pytest

from outbox_saga.brokers import Delivery, Subscription, open_subscriber
from outbox_saga.errors import BrokerUnavailable, MessageRefused
from tests.brokers.conformance import (
    LONG,
    PATIENCE,
    PROMPT,
    BrokerUnderTest,
    Conformance,
    Inbox,
    consuming,
    declare,
    envelope,
    errors,
    needs,
    numbered,
    publish,
    publishing,
)
from tests.brokers.publisher_conformance import AWKWARD, LONGEST_TOPIC, until_accepted

# A process that takes one message, says so, and never settles it.
HOLDS_ONE_MESSAGE = """
import asyncio, sys
from outbox_saga.brokers import Subscription, open_subscriber

async def main(url, consumer, topic):
    subscriber = open_subscriber(url, Subscription(consumer, (topic,)))
    await subscriber.open()
    async def handle(delivery):
        print(delivery.envelope.id, delivery.attempt, flush=True)
        await asyncio.Event().wait()
    await subscriber.run(handle, asyncio.Event().wait)

asyncio.run(main(*sys.argv[1:]))
"""


async def held_until_killed(url: str) -> tuple[UUID, int]:
    """The message that a process had in hand when it died, and which delivery that was."""
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
    id_, attempt = line.decode().split()
    return UUID(id_), int(attempt)


class SubscriberConformance(Conformance):
    """A message is settled only by its handler; whatever is not settled comes again."""

    async def test_a_message_comes_as_it_was_published(self, broker: BrokerUnderTest) -> None:
        topics = ("orders", "orders.eu-west_1", LONGEST_TOPIC)
        sent = [*AWKWARD, envelope(topic=LONGEST_TOPIC, key="ю" * 127)]
        inbox = Inbox()
        await declare(broker.url(), topics=topics)
        await publish(broker.url(), sent)
        async with consuming(broker.url(), inbox, topics=topics):
            await inbox.got(len(sent))

        assert sorted(inbox.ids) == sorted(each.id for each in sent)
        assert {each.id: each for each in inbox.envelopes} == {each.id: each for each in sent}

    async def test_a_consumer_that_comes_later_gets_what_is_declared(
        self, broker: BrokerUnderTest
    ) -> None:
        early, late = Inbox(), Inbox()
        before, after = numbered(3), numbered(3)
        await declare(broker.url(), consumer="early")
        await publish(broker.url(), before)
        await declare(broker.url(), consumer="late")
        await publish(broker.url(), after)
        wanted = [*before, *after] if broker.capabilities.unheard == "kept" else after
        async with consuming(broker.url(), early, consumer="early"):
            await early.got_all([*before, *after])
        async with consuming(broker.url(), late, consumer="late"):
            await late.got_all(wanted)

        assert sorted(late.ids) == sorted(each.id for each in wanted)

    async def test_what_is_refused_because_nobody_listens_is_taken_when_somebody_does(
        self, broker: BrokerUnderTest
    ) -> None:
        sent, inbox = envelope(topic="unheard"), Inbox()
        async with publishing(broker.url()) as publisher:
            before = await publisher.publish([sent])
            await declare(broker.url(), topics=("unheard",))
            if broker.capabilities.unheard == "refused":
                assert [type(error) for error in errors(before)] == [BrokerUnavailable]
                assert errors(await publisher.publish([sent])) == []
            elif broker.capabilities.unheard == "gone":
                await publisher.publish([sent])
            async with consuming(broker.url(), inbox, topics=("unheard",)):
                await inbox.got(1)

        assert inbox.ids == [sent.id]

    async def test_each_consumer_gets_every_message_of_its_topics_and_no_other(
        self, broker: BrokerUnderTest
    ) -> None:
        orders, payments = numbered(5), numbered(5, topic="payments")
        others = numbered(5, topic="orders.eu-west_1")
        name, both = "audit 1.0/é", ("orders", "payments")
        await declare(broker.url())
        await declare(broker.url(), consumer=name, topics=both)
        await publish(broker.url(), [*others, *orders, *payments])
        billing, audit = Inbox(), Inbox()
        async with (
            consuming(broker.url(), billing, consumer="billing"),
            consuming(broker.url(), audit, consumer=name, topics=both),
        ):
            await billing.got(5)
            await audit.got(10)

        assert sorted(billing.ids) == sorted(each.id for each in orders)
        assert sorted(audit.ids) == sorted(each.id for each in [*orders, *payments])

    async def test_processes_of_one_consumer_share_its_messages(
        self, broker: BrokerUnderTest
    ) -> None:
        batch, inbox = numbered(200), Inbox()
        await declare(broker.url())
        await publish(broker.url(), batch)
        async with (
            consuming(broker.url(), inbox, concurrency=2),
            consuming(broker.url(), inbox, concurrency=2),
        ):
            await inbox.got_all(batch)

        assert set(inbox.ids) == {each.id for each in batch}
        if broker.consuming.settles == "each":
            assert len(inbox.ids) == 200

    async def test_over_the_processes_of_a_consumer_a_key_has_the_order_that_is_declared(
        self, broker: BrokerUnderTest
    ) -> None:
        keys = [f"order:{n}" for n in range(5)]
        batch = [envelope(b"%d" % n, key=key) for n in range(20) for key in keys]
        inbox, inside, together = Inbox(), set[str](), list[str]()

        async def handle(delivery: Delivery) -> None:
            key = delivery.envelope.key
            assert key is not None
            together.extend({key} & inside)
            inside.add(key)
            for _ in range(hash(delivery.envelope.id) % 4):
                await asyncio.sleep(0)
            inside.discard(key)
            await inbox(delivery)

        url = broker.url(ack_wait=LONG)
        await declare(url)
        async with (
            consuming(url, handle, concurrency=4),
            consuming(url, handle, concurrency=4),
        ):
            await publish(url, batch)
            await inbox.got_all(batch)

        first = {came.id: came for came in inbox.envelopes}
        if broker.consuming.key_order == "consumer":
            assert together == []
            for key in keys:
                came = [int(each.body) for each in first.values() if each.key == key]
                assert came == list(range(20))

    async def test_a_key_keeps_its_order_over_topics_if_that_is_declared(
        self, broker: BrokerUnderTest
    ) -> None:
        topics = ("orders", "payments")
        batch = [envelope(b"%d" % n, key="order:1", topic=topics[n // 3 % 2]) for n in range(30)]
        inbox = Inbox()
        await declare(broker.url(), topics=topics)
        await publish(broker.url(), batch)
        async with consuming(broker.url(), inbox, topics=topics, concurrency=4):
            await inbox.got_all(batch)

        if broker.consuming.over_topics:
            assert inbox.bodies == [each.body for each in batch]
        for topic in topics:
            came = [each.body for each in inbox.envelopes if each.topic == topic]
            assert came == [each.body for each in batch if each.topic == topic]

    async def test_what_was_acknowledged_does_not_come_again(
        self, broker: BrokerUnderTest
    ) -> None:
        await declare(broker.url())
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
        await declare(broker.url())
        await publish(broker.url(), [sent])
        begun, inbox = asyncio.Event(), Inbox()

        async def hold(delivery: Delivery) -> None:
            begun.set()
            await asyncio.Event().wait()

        async with consuming(broker.url(grace=0.1, ack_wait=LONG), hold) as holding:
            await asyncio.wait_for(begun.wait(), PATIENCE)
            await holding.stopped()  # cancels it: what it had in hand goes back
        async with consuming(broker.url(ack_wait=LONG), inbox):
            await inbox.got(1)

        assert inbox.ids == [sent.id]

    async def test_a_killed_process_leaves_its_message_to_others_who_know_of_its_death(
        self, broker: BrokerUnderTest
    ) -> None:
        """What kills each process it comes to must be known by its count of deliveries."""
        sent = envelope()
        url = broker.url(ack_wait=1)
        await declare(url)
        await publish(url, [sent])
        deaths = [await held_until_killed(url) for _ in range(2)]
        inbox, attempts = Inbox(), list[int]()

        async def handle(delivery: Delivery) -> None:
            attempts.append(delivery.attempt)
            await inbox(delivery)

        async with consuming(url, handle):
            await inbox.got(1)

        assert {id_ for id_, _ in deaths} == set(inbox.ids) == {sent.id}
        counts = [count for _, count in deaths] + attempts
        assert all(a < b for a, b in pairwise(counts)), counts

    @pytest.mark.parametrize("how", ["raises", "settles nothing", "cancels itself"])
    async def test_a_message_whose_handler_fails_comes_again(
        self, broker: BrokerUnderTest, how: str
    ) -> None:
        sent = envelope(b'{"secret": "4111 1111 1111 1111"}')
        await declare(broker.url())
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

    async def test_a_message_that_is_sent_back_often_is_never_given_up(
        self, broker: BrokerUnderTest
    ) -> None:
        """Some brokers drop it after so many deliveries, unless told otherwise."""
        sent, inbox, attempts = envelope(), Inbox(), list[int]()
        await declare(broker.url())
        await publish(broker.url(), [sent])

        async def handle(delivery: Delivery) -> None:
            attempts.append(delivery.attempt)
            if len(attempts) < 30:
                await delivery.retry(0.0)
            else:
                await inbox(delivery)

        async with consuming(broker.url(), handle):
            await inbox.got(1)

        assert all(a < b for a, b in pairwise(attempts)), attempts

    async def test_an_error_of_a_handler_is_logged_without_the_payload(
        self, broker: BrokerUnderTest, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG", logger="outbox_saga")
        sent = envelope(b'{"secret": "4111 1111 1111 1111"}')
        await declare(broker.url())
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
        await declare(broker.url())
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
        await declare(broker.url())
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
        await declare(broker.url())
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
        await declare(broker.url())
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

    async def test_what_is_sent_back_waits_for_its_time_whoever_could_have_it(
        self, broker: BrokerUnderTest
    ) -> None:
        """Longer than ack_wait, after which others may look for what nobody answered."""
        url, sent, inbox, times = broker.url(ack_wait=1), envelope(), Inbox(), list[float]()

        async def handle(delivery: Delivery) -> None:
            times.append(asyncio.get_running_loop().time())
            if len(times) == 1:
                await delivery.retry(3.0)
            else:
                await inbox(delivery)

        await declare(url)
        await publish(url, [sent])
        async with consuming(url, handle), consuming(url, handle):
            await inbox.got(1)

        assert inbox.ids == [sent.id]
        assert times[1] - times[0] > 2.5

    async def test_a_message_that_is_retried_holds_up_no_other_key(
        self, broker: BrokerUnderTest
    ) -> None:
        await declare(broker.url())
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
        await declare(broker.url())
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
        await declare(broker.url())
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

    async def test_what_others_put_there_is_handed_over_whatever_it_is_and_can_be_rejected(
        self, broker: BrokerUnderTest
    ) -> None:
        """Also headers that are not text; and all of it can be kept, as text, by the inbox."""
        url = broker.url(ack_wait=1)
        await declare(url)
        ours = {name: value.encode() for name, value in envelope().to_headers().items()}
        foreign: list[tuple[bytes, dict[str, bytes]]] = [
            (b"\xff", {"ce-id": b"not a uuid", "ce-type": b"x"}),
            (b"", {}),
            (b"", {"Status": b"503"}),
            (b"", {"Status": b"100", "Description": b"Idle Heartbeat"}),
            (b"{}", {"ce-id": b"\xff\xfe", "ce-type": b"\x00\x01"}),
            (b"{}", {**ours, "note": b"\xff\xfe"}),
        ]
        for body, headers in foreign:
            await broker.put("orders", body, headers)
        good = envelope()
        await publish(url, [good])
        seen, refused, inbox = list[tuple[bytes, str]](), list[str](), Inbox()

        async def handle(delivery: Delivery) -> None:
            seen.append((delivery.body, repr(sorted(delivery.headers.items()))))
            for text in (*delivery.headers, *delivery.headers.values()):
                assert isinstance(text, str)
                text.encode()
            try:
                came = delivery.envelope
            except MessageRefused as error:
                refused.append(error.path)
                await delivery.reject(error.reason)
                return
            await inbox.add(came)
            await delivery.acknowledge()

        async with consuming(url, handle, concurrency=1):
            await inbox.got_all([good])
        async with consuming(url, handle, concurrency=1):
            last = envelope()
            await publish(url, [last])
            await inbox.got_all([last])

        assert len(seen) == len(foreign) + 2
        assert set(refused) == {"headers"}

    async def test_stopping_is_prompt_with_nothing_to_do(self, broker: BrokerUnderTest) -> None:
        inbox = Inbox()
        await declare(broker.url())
        await publish(broker.url(), [envelope()])
        async with consuming(broker.url(), inbox) as idle:
            await inbox.got(1)
            async with asyncio.timeout(PROMPT):
                await idle.stopped()

    async def test_stopping_lets_handlers_finish_and_gives_the_rest_back_at_once(
        self, broker: BrokerUnderTest
    ) -> None:
        batch = numbered(12)
        url = broker.url(ack_wait=LONG)
        await declare(url)
        await publish(url, batch)
        begun, go, first, second = asyncio.Semaphore(0), asyncio.Event(), Inbox(), Inbox()

        async def slow(delivery: Delivery) -> None:
            begun.release()
            await go.wait()
            await first(delivery)

        async with consuming(url, slow, concurrency=2) as stopping:
            for _ in range(2):
                await asyncio.wait_for(begun.acquire(), PATIENCE)
            stopping.stop.set()
            async with consuming(url, second):
                if broker.consuming.settles == "in order":
                    go.set()  # what lies behind those in hand cannot be settled before them
                await second.got(10)
                go.set()
                await stopping.stopped()

        assert len(first.ids) == 2
        assert set(first.ids + second.ids) == {each.id for each in batch}
        if broker.consuming.settles == "each":
            assert len(second.ids) == 10

    async def test_stopping_under_load_leaves_no_message_behind(
        self, broker: BrokerUnderTest
    ) -> None:
        """With an ack_wait longer than the test, so a message left behind is missed."""
        inbox, url = Inbox(), broker.url(ack_wait=LONG)
        batch = numbered(3000)
        await declare(url)
        async with publishing(url) as publisher:
            sending = asyncio.create_task(publisher.publish(batch))
            for count in (1, 300, 900, 1500, 2100):
                async with consuming(url, inbox, concurrency=32):
                    await inbox.got(count)
            assert errors(await sending) == []
        async with consuming(url, inbox, concurrency=32):
            await inbox.got_all(batch)

        assert set(inbox.ids) == {each.id for each in batch}
        if broker.consuming.settles == "each":
            assert len(inbox.ids) == len(batch)

    async def test_a_handler_that_outlives_the_grace_is_cancelled_and_its_message_goes_back(
        self, broker: BrokerUnderTest
    ) -> None:
        sent = envelope()
        await declare(broker.url())
        await publish(broker.url(), [sent])
        begun, undone, inbox = asyncio.Event(), asyncio.Event(), Inbox()

        async def never(delivery: Delivery) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                undone.set()

        url = broker.url(grace=0.2, ack_wait=LONG)
        async with consuming(url, never) as stopping:
            await asyncio.wait_for(begun.wait(), PATIENCE)
            async with asyncio.timeout(PROMPT):
                await stopping.stopped()
        assert undone.is_set()
        async with consuming(url, inbox):
            await inbox.got(1)

    @pytest.mark.parametrize("how", ["outlives the grace", "is sent back", "fails", "ends"])
    async def test_a_key_keeps_its_order_over_a_restart_whatever_becomes_of_its_first(
        self, broker: BrokerUnderTest, how: str
    ) -> None:
        """With the next of it in hand, too, and one that has never been delivered.

        The sign is given back when those are given back that nothing is in the way of.
        """
        key = numbered(3, key="order:1")
        other, sign = envelope(b'"other"'), envelope(b'"sign"')
        url = broker.url(ack_wait=LONG, grace=0.2 if how == "outlives the grace" else PATIENCE)
        await declare(url)
        await publish(url, [key[0], other])
        await publish(url, [key[1], sign])
        begun, go, inbox = asyncio.Semaphore(0), asyncio.Event(), Inbox()

        async def slow(delivery: Delivery) -> None:
            begun.release()
            await go.wait()
            if how == "is sent back":
                await delivery.retry(LONG)
            elif how == "fails":
                raise LookupError
            else:
                await inbox(delivery)

        async with consuming(url, slow, concurrency=2) as stopping:
            for _ in range(2):
                await asyncio.wait_for(begun.acquire(), PATIENCE)
            stopping.stop.set()
            async with consuming(url, inbox, concurrency=2):
                if how != "outlives the grace":
                    if broker.consuming.settles == "each":
                        await inbox.got_all([sign])
                    go.set()
                await stopping.stopped()
                await publish(url, key[2:])
                await inbox.got_all(key)

        came = [each.body for each in inbox.envelopes if each.key is not None]
        assert came == [each.body for each in key]

    async def test_a_key_whose_first_was_sent_back_for_later_keeps_its_order_over_a_restart(
        self, broker: BrokerUnderTest
    ) -> None:
        batch = [*numbered(3, key="order:1"), envelope(key="last")]
        url = broker.url(ack_wait=LONG)
        await declare(url)
        await publish(url, batch)
        sent_back, inbox = asyncio.Event(), Inbox()

        async def handle(delivery: Delivery) -> None:
            if delivery.envelope.key == "last":
                await sent_back.wait()
                await inbox(delivery)
            else:
                await delivery.retry(LONG)
                sent_back.set()

        async with consuming(url, handle, concurrency=4):
            await inbox.got(1)
        late = envelope(b'"late"', key="order:1")
        await publish(url, [late])
        async with consuming(url, inbox, concurrency=4):
            await inbox.got(5)

        assert inbox.bodies[1:] == [each.body for each in [*batch[:3], late]]

    async def test_a_slow_key_keeps_no_other_from_idle_hands(
        self, broker: BrokerUnderTest
    ) -> None:
        """More of it lie first than are in hand at once where each could be begun."""
        url = broker.url()
        await declare(url)
        await publish(url, [*numbered(40, key="hot"), *numbered(10, key="free")])
        go, inbox = asyncio.Event(), Inbox()

        async def handle(delivery: Delivery) -> None:
            if delivery.envelope.key == "hot":
                await go.wait()
            await inbox(delivery)

        async with consuming(url, handle, concurrency=4):
            await inbox.got(10)
            assert {each.key for each in inbox.envelopes} == {"free"}
            go.set()
            await inbox.got(50)

        hot = [each.body for each in inbox.envelopes if each.key == "hot"]
        assert hot == [each.body for each in numbered(40)]

    @needs("private")
    async def test_a_consumer_outlives_a_killed_server(self, broker: BrokerUnderTest) -> None:
        before, after = numbered(50), numbered(50)
        await declare(broker.url())
        await publish(broker.url(), before)
        inbox = Inbox()
        async with consuming(broker.url(ack_wait=1), inbox):
            await inbox.got(10)
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
            async with publishing(broker.url()) as publisher:
                await until_accepted(publisher, after)
            await inbox.got_all([*before, *after])

    @needs("private")
    async def test_a_consumer_outlives_a_server_that_went_silent(
        self, broker: BrokerUnderTest
    ) -> None:
        await declare(broker.url())
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
            await inbox.got_all([sent])

    @needs("private")
    async def test_stopping_is_prompt_while_the_server_is_away(
        self, broker: BrokerUnderTest
    ) -> None:
        inbox = Inbox()
        await declare(broker.url())
        await publish(broker.url(), [envelope()])
        async with consuming(broker.url(), inbox) as stopping:
            await inbox.got(1)
            await asyncio.to_thread(broker.kill)
            async with asyncio.timeout(PROMPT):
                await stopping.stopped()

    @needs("missing")
    async def test_a_consumer_waits_for_a_destination_that_does_not_exist_yet(
        self, broker: BrokerUnderTest
    ) -> None:
        inbox, sent = Inbox(), envelope()
        async with consuming(broker.url(create=False), inbox):
            await broker.create()
            async with publishing(broker.url(create=False)) as publisher:
                await until_accepted(publisher, [sent])
                while broker.capabilities.unheard != "kept" and not inbox.ids:
                    # until its subscription, too, has found the destination
                    await until_accepted(publisher, [envelope()])
                    with contextlib.suppress(TimeoutError):
                        await inbox.got(1, 0.1)
            await inbox.got(1)

        if broker.capabilities.unheard == "kept":
            assert inbox.ids == [sent.id]

    @needs("server")
    async def test_a_consumer_whose_server_cannot_be_reached_says_so_in_bounded_time(
        self, broker: BrokerUnderTest
    ) -> None:
        subscriber = open_subscriber(broker.nowhere, Subscription("billing", ("orders",)))
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(BrokerUnavailable):
                await subscriber.open()
            await subscriber.close()
            await subscriber.close()
