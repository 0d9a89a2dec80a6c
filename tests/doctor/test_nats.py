"""NATS: each check speaks of a server or stream that is wrong, and is silent otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import nats
import pytest
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
)

from outbox_saga.brokers.nats_settings import NatsSettings
from outbox_saga.brokers.nats_stream import covers
from outbox_saga.errors import ConfigurationError
from outbox_saga.testing.servers import Nats
from outbox_saga_relay.doctor import Limits, Report, examine_broker
from outbox_saga_relay.doctor.cases import NatsCase
from outbox_saga_relay.doctor.nats_stream import copies
from tests.doctor.between import something_between
from tests.doctor.examined import of, only, start_with
from tests.fixtures.services import Services

pytestmark = pytest.mark.anyio


class Stream:
    """A stream of this test's own; not there until it is created."""

    def __init__(self, server_url: str) -> None:
        self.server_url = server_url
        self.name = f"test{uuid4().hex[:12]}"
        self.url = f"{server_url}?stream={self.name}&prefix={self.name}"

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[JetStreamContext]:
        client = await nats.connect(self.server_url)
        try:
            yield client.jetstream()
        finally:
            await client.close()

    async def create(self, **settings: Any) -> None:
        good = {
            "name": self.name,
            "subjects": [f"{self.name}.>"],
            "discard": DiscardPolicy.NEW,
            "duplicate_window": 120,
        }
        async with self.client() as js:
            await js.add_stream(**{**good, **settings})

    async def consumer(self, **settings: Any) -> None:
        async with self.client() as js:
            good = {"durable_name": "shop", "ack_policy": AckPolicy.EXPLICIT}
            await js.add_consumer(self.name, ConsumerConfig(**{**good, **settings}))

    async def report(
        self,
        *,
        url: str | None = None,
        consumers: Mapping[str, Sequence[str]] | None = None,
        **limits: Any,
    ) -> Report:
        return await examine_broker(url or self.url, consumers=consumers, limits=Limits(**limits))


@pytest.fixture
def stream(services: Services) -> Stream:
    return Stream(services.get(Nats).url)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as made:
        yield made


async def test_of_a_good_stream_every_check_is_made_and_one_has_something_to_tell(
    stream: Stream,
) -> None:
    await stream.create()
    await stream.consumer()

    report = await stream.report(consumers={"shop": ["orders"]})

    (copy,) = report.findings
    assert (copy.check, copy.level) == ("nats.copies", "info")
    assert "sync_interval" in copy.what
    assert len(report.checks) == 13
    assert report.ok


async def test_of_a_bad_stream_everything_that_is_wrong_is_named(stream: Stream) -> None:
    await stream.create(
        discard=DiscardPolicy.OLD,
        max_msgs=10,
        duplicate_window=1,
        max_age=3600,
        storage=StorageType.MEMORY,
    )

    report = await stream.report()

    losses = of(report, "nats.losses")
    assert {finding.level for finding in losses} == {"error"}
    named = [finding.what.partition(": ")[2] for finding in losses]
    assert named == ["max_age", "discard=old with max_msgs", "storage=memory"]
    only(of(report, "nats.dedup_window"), "warning", "within 1 s", "after 75 s")
    assert not report.ok


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_bytes": 1_000_000, "discard": DiscardPolicy.OLD}, "discard=old with max_bytes"),
        (
            {"max_msgs_per_subject": 1, "discard": DiscardPolicy.OLD},
            "discard=old with max_msgs_per_subject",
        ),
        ({"max_msgs_per_subject": 1}, "max_msgs_per_subject without discard_new_per_subject"),
        ({"retention": RetentionPolicy.INTEREST}, "retention=interest"),
        ({"no_ack": True}, "no_ack"),
    ],
)
async def test_each_setting_that_drops_acknowledged_messages_is_named_with_its_mend(
    settings: dict[str, Any], named: str, stream: Stream
) -> None:
    await stream.create(**settings)

    only(of(await stream.report(), "nats.losses"), "error", named)


@pytest.mark.parametrize("settings", [{"max_msgs": 100_000}, {"max_bytes": 100_000_000}])
async def test_limits_at_which_the_stream_refuses_are_good(
    settings: dict[str, Any], stream: Stream
) -> None:
    await stream.create(**settings)

    assert of(await stream.report(), "nats.losses") == []


async def test_a_stream_that_is_missing_is_an_error_unless_it_is_to_be_created(
    stream: Stream,
) -> None:
    report = await stream.report()
    only(of(report, "nats.stream"), "error", "there is no stream")
    only(of(report, "nats.losses"), "unknown", "could not be looked at")

    report = await stream.report(url=stream.url + "&create=1")
    only(of(report, "nats.stream"), "info", "create=1")
    async with stream.client() as js:
        assert stream.name not in [each.config.name for each in await js.streams_info()]


async def test_a_stream_that_takes_no_messages_is_named(stream: Stream) -> None:
    await stream.create()
    async with stream.client() as js:
        config = (await js.stream_info(stream.name)).config
        config.sealed = True
        await js.update_stream(config)

    only(of(await stream.report(), "nats.stream"), "error", "sealed")


async def test_topics_that_the_stream_does_not_take_are_named(stream: Stream) -> None:
    await stream.create(subjects=[f"{stream.name}.orders.*"])

    report = await stream.report(consumers={"shop": ["orders.eu", "stock"]})
    only(of(report, "nats.subjects"), "error", "not stock:")

    report = await stream.report(consumers={"shop": ["orders.eu"]})
    only(of(report, "nats.subjects"), "warning", f"{stream.name}.orders.*")


async def test_a_stream_of_other_subjects_is_named(stream: Stream) -> None:
    await stream.create(subjects=[f"{stream.name}x.>"])

    only(of(await stream.report(), "nats.subjects"), "error", "any topic")


@pytest.mark.parametrize(
    ("pattern", "subject", "whether"),
    [
        (">", "a.>", True),
        ("a.>", "a.>", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a.*", "a.b", True),
        ("a.*", "a.>", False),
        ("a.*", "a.b.c", False),
        ("a.b", "a.b", True),
        ("a.b", "a.*", False),
        ("*.b", "a.b", True),
        ("a.b.>", "a.>", False),
        ("b.>", "a.>", False),
    ],
)
def test_a_pattern_covers_what_it_matches_whole(
    pattern: str, subject: str, *, whether: bool
) -> None:
    assert covers(pattern, subject) is whether


async def test_a_work_queue_is_told_of(stream: Stream) -> None:
    await stream.create(retention=RetentionPolicy.WORK_QUEUE)

    only(of(await stream.report(), "nats.retention"), "info", "work queue")


async def test_a_stream_that_is_nearly_full_is_named(stream: Stream) -> None:
    await stream.create(max_msgs=4)
    async with stream.client() as js:
        for _ in range(3):
            await js.publish(f"{stream.name}.orders", b"x")
        assert of(await stream.report(), "nats.room") == []
        await js.publish(f"{stream.name}.orders", b"x")

    only(of(await stream.report(), "nats.room"), "warning", "4 of at most 4 messages")


async def test_a_stream_that_refuses_the_largest_message_is_named(stream: Stream) -> None:
    await stream.create(max_msg_size=100_000)

    only(of(await stream.report(), "nats.message_size"), "error", "at most 100000 bytes")
    assert of(await stream.report(body=10_000), "nats.message_size") == []


@pytest.mark.parametrize(
    ("settings", "level", "said"),
    [
        ({"ack_policy": AckPolicy.ALL}, "error", "ack_policy=all"),
        ({"ack_policy": AckPolicy.NONE}, "error", "ack_policy=none"),
        ({"max_deliver": 5}, "error", "after 5 deliveries"),
        ({"inactive_threshold": 3600}, "error", "deleted"),
        ({"mem_storage": True}, "warning", "in memory"),
    ],
)
async def test_a_consumer_that_forgets_is_named(
    settings: dict[str, Any], level: str, said: str, stream: Stream
) -> None:
    await stream.create()
    await stream.consumer(**settings)

    report = await stream.report(consumers={"shop": ["orders"], "not there yet": ["orders"]})

    only(of(report, "nats.consumers"), level, "consumer shop", said)


async def test_a_server_that_is_too_old_is_named(stream: Stream) -> None:
    await stream.create()
    where = urlsplit(stream.server_url)
    assert where.port is not None

    def older(piece: bytes) -> bytes:
        return piece.replace(b'"version":"2.', b'"version":"1.')

    with something_between("127.0.0.1", where.port, older) as port:
        report = await stream.report(url=stream.url.replace(str(where.port), str(port)))

    only(of(report, "nats.version"), "error", "NATS 1.")


async def test_a_server_without_jetstream_is_named(
    services: Services, stack: contextlib.ExitStack
) -> None:
    server = start_with(services, Nats, stack)
    server.stop()
    (server.place.directory / "nats.conf").write_text("max_payload: 100KB\n")
    server.place.start()
    await answers(server.url)

    report = await examine_broker(server.url)

    only(of(report, "nats.jetstream"), "error", "JetStream is not enabled")
    only(of(report, "nats.max_payload"), "error", "max_payload is 102400 bytes")
    only(of(report, "nats.stream"), "unknown", "no_jetstream")


async def answers(url: str) -> None:
    """Returns once the server lets clients in."""
    client = await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0.02)
    await client.close()


ACCOUNTS = """
jetstream {{ store_dir: "{folder}" }}
accounts {{
  SHOP {{
    jetstream {{ max_mem: 1MB, max_file: 2KB }}
    users: [
      {{ user: shop, password: hunter2 }}
      {{ user: sender, password: hunter2, permissions: {{
        publish: ["outbox.>"], subscribe: ["_INBOX.>"] }} }}
    ]
  }}
}}
"""


async def test_an_account_that_is_full_and_a_user_who_may_not_look_are_named(
    services: Services, stack: contextlib.ExitStack
) -> None:
    server = start_with(services, Nats, stack)
    server.stop()
    folder = server.place.directory / "streams"
    (server.place.directory / "nats.conf").write_text(ACCOUNTS.format(folder=folder))
    server.place.start()
    shop = server.url.replace("nats://", "nats://shop:hunter2@")
    await answers(shop)
    stream = Stream(shop)
    await stream.create(name="OUTBOX", subjects=["outbox.>"])
    async with stream.client() as js:
        await js.publish("outbox.orders", b"x" * 1700)

    full = await examine_broker(shop)
    blind = await examine_broker(
        server.url.replace("nats://", "nats://sender:hunter2@") + "?timeout=2",
        consumers={"shop": ["orders"]},
    )

    only(of(full, "nats.jetstream"), "warning", "of 2048 bytes of storage")
    for check in ("nats.jetstream", "nats.stream", "nats.losses", "nats.consumers"):
        only(of(blind, check), "unknown", "could not be looked at (not_permitted)")
    assert "hunter2" not in str(full) + str(blind)


async def test_a_broker_that_does_not_answer_is_an_error_that_shows_no_password() -> None:
    report = await examine_broker("nats://shop:hunter2@127.0.0.1:1?timeout=2")

    only(of(report, "nats.reachable"), "error", "cannot be reached")
    only(of(report, "nats.losses"), "unknown", "could not be asked")
    assert "hunter2" not in str(report)


async def test_a_service_that_talks_to_itself_has_no_broker_to_look_at() -> None:
    report = await examine_broker("local")

    only(of(report, "broker.local"), "info", "local")


async def test_a_url_that_cannot_work_is_an_error_of_its_own() -> None:
    with pytest.raises(ConfigurationError, match="no broker speaks"):
        await examine_broker("carrier-pigeon://somewhere")


@pytest.mark.parametrize(
    ("cluster", "replicas", "levels"),
    [
        ({"leader": "a"}, 1, ["info"]),
        ({"leader": "a", "name": "east"}, 1, ["warning"]),
        ({"name": "east", "replicas": [{"name": "b", "current": True}]}, 3, []),
        ({"name": "east", "replicas": [{"name": "b", "current": False}]}, 3, ["warning"]),
        ({"name": "east", "replicas": [{"name": "b", "offline": True}]}, 3, ["warning"]),
    ],
)
def test_copies_that_are_missing_or_behind_are_named(
    cluster: dict[str, Any], replicas: int, levels: list[str]
) -> None:
    case = NatsCase(
        settings=NatsSettings.parse("nats://somewhere"),
        version=(2, 12, 0),
        max_payload=1_048_576,
        account={},
        stream={"config": {"num_replicas": replicas}, "state": {}, "cluster": cluster},
    )

    assert [found.level for found in copies(case)] == levels
