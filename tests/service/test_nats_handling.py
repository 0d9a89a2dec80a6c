"""Handling from NATS: kept in hand while it lasts, acknowledged once it is handled or kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self
from uuid import uuid4

import nats
import pytest
from nats.js import api
from nats.js.errors import NoStreamResponseError

from outbox_saga import HandlerContext, Retry, Service
from outbox_saga.envelopes import seal
from tests.inbox.processes import note
from tests.relay.house import PATIENCE, House, Said

pytestmark = pytest.mark.databases("sqlite", "postgres18")


class Stream:
    """One stream of the server, looked at from outside."""

    def __init__(self, server: str) -> None:
        self.name = f"test{uuid4().hex[:12]}"
        self.url = f"{server}?create=1&ack_wait=1&stream={self.name}&prefix={self.name}"
        self.server = server

    async def __aenter__(self) -> Self:
        self.client = await nats.connect(self.server)
        self.js = self.client.jetstream(timeout=10)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def redelivered(self, times: int) -> None:
        """Returns when an idle consumer's message came again so often: a second or more each."""
        config = api.ConsumerConfig(ack_policy=api.AckPolicy.EXPLICIT, ack_wait=1)
        reader = await self.js.pull_subscribe(f"{self.name}.talk", stream=self.name, config=config)
        delivered = 0
        while delivered <= times:
            (message,) = await reader.fetch(1, timeout=PATIENCE)
            delivered = message.metadata.num_delivered

    async def consumer(self) -> Any:
        (info,) = [c for c in await self.js.consumers_info(self.name) if c.config.durable_name]
        return info


@pytest.fixture
async def stream(nats_url: str) -> AsyncIterator[Stream]:
    async with Stream(nats_url) as stream:
        yield stream


def shop(house: House, stream: Stream) -> Service:
    return Service("shop", database=house.another_database(), broker=stream.url, poll=0.01)


async def test_a_handler_that_takes_longer_than_ack_wait_gets_its_message_once(
    house: House, stream: Stream
) -> None:
    service, asked, done = shop(house, stream), [], asyncio.Event()

    @service.on(Said)
    async def slow(handle: HandlerContext[Said]) -> None:
        asked.append(handle.message.word)
        await stream.redelivered(times=3)  # three times ack_wait and more, by the server's clock
        await note(handle)
        done.set()

    house.say("long", key="k")
    async with service.running():
        await asyncio.wait_for(done.wait(), PATIENCE)
    info = await stream.consumer()
    assert asked == ["long"]
    assert (info.num_ack_pending, info.num_redelivered, info.num_pending) == (0, 0, 0)
    assert house.notes() == ["long"]
    await service.close()


async def test_a_poison_message_is_acknowledged_and_holds_up_its_own_key_only(
    house: House, stream: Stream
) -> None:
    service = shop(house, stream)
    poison, mended, others = {"a1"}, asyncio.Event(), asyncio.Event()

    @service.on(Said, retry=Retry(max_attempts=50, initial=0.05, max_delay=0.1))
    async def said(handle: HandlerContext[Said]) -> None:
        if handle.message.word in poison:
            raise LookupError
        await note(handle)
        if handle.message.word == "b9":
            others.set()
        if handle.message.word == "a9":
            mended.set()

    for number in range(1, 10):
        house.say(f"a{number}", key="a")
        house.say(f"b{number}", key="b")
    async with service.running():
        await asyncio.wait_for(others.wait(), PATIENCE)
        assert [word for word in house.notes() if word[0] == "a"] == []
        poison.clear()
        await asyncio.wait_for(mended.wait(), PATIENCE)
    for key in "ab":
        assert [w for w in house.notes() if w[0] == key] == [f"{key}{n}" for n in range(1, 10)]
    info = await stream.consumer()
    assert (info.num_ack_pending, info.num_redelivered) == (0, 0)
    assert house.set_aside() == []
    await service.close()


async def test_what_cannot_be_read_is_kept_and_does_not_come_again(
    house: House, stream: Stream
) -> None:
    service, handled = shop(house, stream), asyncio.Event()

    @service.on(Said)
    async def said(handle: HandlerContext[Said]) -> None:
        await note(handle)
        handled.set()

    good = seal(Said(word="good"), key="l")
    broken = seal(Said(word="hush"), key="k")
    async with service.running():
        await asyncio.to_thread(house.until, lambda: house.owners() != {None}, "the relay")
        for headers, body in (
            ({**broken.to_headers(), "ce-kind": "rumour"}, broken.body),
            (good.to_headers(), good.body),
        ):
            await _publish(stream, headers, body)
        await asyncio.wait_for(handled.wait(), PATIENCE)
        await asyncio.to_thread(house.until, house.set_aside, "the dead letter")
    (row,) = house.set_aside()
    assert (row.message_id, row.key, row.until, row.error_code, row.body) == (
        broken.id,
        "k",
        None,
        "unreadable",
        broken.body,
    )
    info = await stream.consumer()
    assert (info.num_ack_pending, info.num_redelivered) == (0, 0)
    await service.close()


async def test_a_message_that_was_only_given_back_is_charged_nothing(
    house: House, stream: Stream
) -> None:
    """As while the database is away: the server counts each delivery, whatever came of it."""

    def listening() -> tuple[Service, asyncio.Event]:
        service, handled = shop(house, stream), asyncio.Event()

        @service.on(Said, consumer="listener", retry=Retry(max_attempts=1))
        async def said(handle: HandlerContext[Said]) -> None:
            await note(handle)
            handled.set()

        return service, handled

    house.say("first")
    service, handled = listening()
    async with service.running():
        await asyncio.wait_for(handled.wait(), PATIENCE)
    await service.close()

    given_back = seal(Said(word="given back"), key="k")
    await _publish(stream, given_back.to_headers(), given_back.body)
    reader = await stream.js.pull_subscribe_bind(consumer="listener", stream=stream.name)
    for delivery in range(1, 7):
        (message,) = await reader.fetch(1, timeout=PATIENCE)
        assert message.metadata.num_delivered == delivery
        await message.nak()
    await reader.unsubscribe()
    service, handled = listening()
    async with service.running():
        await asyncio.wait_for(handled.wait(), PATIENCE)
    assert house.notes() == ["first", "given back"]
    assert house.set_aside() == []
    await service.close()


async def _publish(stream: Stream, headers: dict[str, str], body: bytes) -> None:
    """As another program would, once the stream is there."""
    while True:
        try:
            await stream.js.publish(f"{stream.name}.talk", body, headers=headers)
        except NoStreamResponseError:
            continue
        return
