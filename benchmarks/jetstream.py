"""NATS JetStream to publish to, and nats-py's own publishing to compare with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

from benchmarks.load import Watch
from benchmarks.measuring import Sample
from outbox_saga.brokers import open_publisher
from outbox_saga.brokers.nats_settings import NatsSettings
from outbox_saga.brokers.outgoing import outgoing_headers
from outbox_saga.envelopes import Envelope

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient
    from nats.js import JetStreamContext

Message: TypeAlias = tuple[str, bytes, dict[str, str]]  # subject, body, headers
Publishing: TypeAlias = Callable[["JetStreamContext", Sequence[Message]], Awaitable[None]]


class Streams:
    """A stream for each measurement: a message that came before is no duplicate of one.

    Args:
        url: Of the server.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._numbers = count(1)
        self._current = ""
        self.current = url  # of the stream that is there

    def fresh(self) -> str:
        """The URL of a stream that is there and empty, with the settings of `create=1`; the one
        before is gone.
        """
        number = next(self._numbers)
        before, self._current = self._current, f"BENCH{number}"
        url = f"{self._url}?create=1&stream={self._current}&prefix=bench{number}"
        asyncio.run(self._made(url, before))
        self.current = url
        return url

    def stored(self) -> int:
        """Messages that the stream has."""
        return asyncio.run(self._stored())

    async def _made(self, url: str, before: str) -> None:
        publisher = open_publisher(url)
        await publisher.open()
        await publisher.close()
        if before:
            client, stream = await _connected(self._url)
            await stream.delete_stream(before)
            await client.close()

    async def _stored(self) -> int:
        client, stream = await _connected(self._url)
        messages = (await stream.stream_info(self._current)).state.messages
        await client.close()
        return messages


@dataclass(frozen=True, slots=True)
class Client:
    """One way to publish with nats-py, each message acknowledged.

    Args:
        name: For tables.
        publish: Returns when all of them are acknowledged.
        pending: Of `publish_async`: messages without an acknowledgement at most.
    """

    name: str
    publish: Publishing
    pending: int = 4000

    def measured(self, url: str, envelopes: Sequence[Envelope]) -> Sample:
        """The same messages as the relay would send: subject, body and headers; they are made
        ready before, and what is timed is connecting and publishing.
        """
        messages = _messages(url, envelopes)

        async def publish() -> None:
            client, stream = await _connected(url.partition("?")[0], self.pending)
            await self.publish(stream, messages)
            await client.close()

        with Watch() as watch:
            cpu, began = time.process_time(), time.monotonic()
            asyncio.run(publish())
            seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        return Sample(len(messages), seconds, cpu, watch.ours, watch.foreign)


def clients() -> list[Client]:
    """What its public API offers, with several sizes of what is on its way at once."""
    return [
        *(_asynchronous(pending) for pending in (256, 1000, 4000, 16000)),
        *(_gathered(size) for size in (100, 500, 2000)),
    ]


def _asynchronous(pending: int) -> Client:
    async def publish(stream: JetStreamContext, messages: Sequence[Message]) -> None:
        under_way = []
        for subject, body, headers in messages:
            under_way.append(await stream.publish_async(subject, body, headers=headers))
        await stream.publish_async_completed()
        for each in under_way:
            each.result()  # or what it was refused with

    return Client(f"publish_async, {pending} pending", publish, pending)


def _gathered(size: int) -> Client:
    async def publish(stream: JetStreamContext, messages: Sequence[Message]) -> None:
        for first in range(0, len(messages), size):
            await asyncio.gather(
                *[
                    stream.publish(subject, body, headers=headers)
                    for subject, body, headers in messages[first : first + size]
                ]
            )

    return Client(f"publish, {size} gathered", publish)


def _messages(url: str, envelopes: Sequence[Envelope]) -> list[Message]:
    settings = NatsSettings.parse(url)
    return [
        (
            settings.subject(envelope.topic),
            envelope.body,
            {
                **outgoing_headers(envelope),
                "Nats-Msg-Id": str(envelope.id),
                "Nats-Expected-Stream": settings.stream,
            },
        )
        for envelope in envelopes
    ]


async def _connected(url: str, pending: int = 4000) -> tuple[NatsClient, JetStreamContext]:
    import nats

    client = await nats.connect(url)
    return client, client.jetstream(publish_async_max_pending=pending)
