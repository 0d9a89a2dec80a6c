"""A replay within NATS's dedup window is stored again; an inbox that has handled it drops it."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
import sqlalchemy as sa

from outbox_saga import SyncHandlerContext
from outbox_saga.archive import Archive, Published, Sent
from outbox_saga.brokers import Accepted
from outbox_saga.envelopes import Envelope
from outbox_saga.inbox import handle_once
from outbox_saga.queries.archive import archive_published
from outbox_saga.testing.servers import Nats
from outbox_saga.worker_threads import WorkerThreads
from tests.brokers.conformance import Stored, publishing
from tests.brokers.nats_under_test import NatsUnderTest
from tests.fixtures.services import Services
from tests.operating.test_archive import page
from tests.operating.yard import ADA, die, replay
from tests.relay.house import House, Said

pytestmark = pytest.mark.databases("sqlite", "postgres18")


@pytest.fixture
def stream(services: Services) -> NatsUnderTest:
    return NatsUnderTest(services.get(Nats), private=False)


def header(stored: Stored, name: str) -> str:
    return {n.lower(): v for n, v in stored.headers.items()}[name]


async def handled(house: House, stored: list[Stored]) -> list[str]:
    """What a consumer with an inbox made of each delivery."""

    def note(handle: SyncHandlerContext[Said]) -> None:
        house_till = sa.text("insert into till (note) values (:word)")
        handle.session.execute(house_till, {"word": handle.message.word})

    with WorkerThreads(1, "test") as threads:
        return [
            await handle_once(
                house.database,
                threads,
                "c",
                Envelope.from_headers(each.topic, each.headers, each.body),
                Said,
                note,
                source="test",
            )
            for each in stored
        ]


async def test_what_the_archive_sends_again_is_stored_again_within_the_window(
    house: House, stream: NatsUnderTest
) -> None:
    (id_,) = house.say("a", key="k")
    rows = page(house)
    async with publishing(stream.url(dedup_window=60)) as publisher:
        envelope = rows[0].envelope()
        assert list(await publisher.publish([envelope])) == [Accepted()]
        assert list(await publisher.publish([envelope])) == [Accepted(duplicate=True)]
        with house.database.begin() as connection:
            archive_published(connection, house.tables, house.clock, rows)
        house.advance(1)
        for _ in range(2):
            assert Archive(house.database).replay(ADA).run() == Sent(1, 0)
            rows = page(house)
            again = rows[0].envelope()
            assert list(await publisher.publish([again])) == [Accepted()]
            assert list(await publisher.publish([again])) == [Accepted(duplicate=True)]
            with house.database.begin() as connection:
                archive_published(connection, house.tables, house.clock, rows)
            house.advance(1)

    stored = await stream.stored()
    assert [header(each, "ce-id") for each in stored] == [str(id_)] * 3
    assert [header(each, "nats-msg-id") for each in stored] == [
        str(id_),
        f"{id_}:1",
        f"{id_}:2",
    ]
    assert await handled(house, stored) == ["new", "repeat", "repeat"]
    assert house.notes() == ["a"]


async def test_a_stretch_that_was_replayed_before_is_stored_again_within_the_window(
    house: House, stream: NatsUnderTest
) -> None:
    (id_,) = house.say("a", key="k")
    async with publishing(stream.url(dedup_window=60)) as publisher:

        async def published() -> None:
            rows = page(house)
            assert list(await publisher.publish([rows[0].envelope()])) == [Accepted()]
            with house.database.begin() as connection:
                archive_published(connection, house.tables, house.clock, rows)
            house.advance(1)

        await published()
        with house.eyes.begin() as connection:
            lost = Published(until=house.clock.read(connection))
        house.advance(1)
        for _ in range(2):
            assert Archive(house.database).replay(ADA, lost).run() == Sent(1, 0)
            await published()

    stored = await stream.stored()
    assert [header(each, "nats-msg-id") for each in stored] == [
        str(id_),
        f"{id_}:1",
        f"{id_}:2",
    ]


async def test_a_dead_letter_that_the_broker_had_stored_after_all_is_stored_again(
    house: House, stream: NatsUnderTest
) -> None:
    (id_,) = house.say("a", key="k")
    (row,) = page(house)
    async with publishing(stream.url(dedup_window=60)) as publisher:
        await publisher.publish([row.envelope()])  # and its answer was lost
        relay = await die(house, "a")
        replay(house, "a")
        relay.publisher = publisher
        assert await relay.run_once() == 1

    stored = await stream.stored()
    assert [header(each, "nats-msg-id") for each in stored] == [str(id_), f"{id_}:1"]
    assert house.waiting() == []
    assert await handled(house, stored) == ["new", "repeat"]


def test_the_count_of_replays_is_not_told_to_consumers() -> None:
    envelope = Envelope(UUID(int=1), "t", None, "T", b"{}")
    assert replace(envelope, replay=3).to_headers() == envelope.to_headers()
