"""A NATS stream of its own for a test, looked at with nats-py's plain calls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

import nats
from nats.errors import TimeoutError as NothingCame
from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError

from outbox_saga.brokers.nats_publishing import largest
from outbox_saga.envelopes import Envelope
from outbox_saga.testing.servers import Nats
from tests.brokers.conformance import BrokerUnderTest, Stored


class NatsUnderTest(BrokerUnderTest):
    """One stream of one server; `private` when no other test uses the server."""

    nowhere = "nats://127.0.0.1:1?timeout=2"

    def __init__(self, server: Nats, *, private: bool) -> None:
        self.server = server
        self.name = f"test{uuid4().hex[:12]}"
        self.private = private

    @property
    def untried(self) -> Mapping[str, str]:
        return {} if self.private else {"private": "the server is shared by other tests"}

    def url(self, *, create: bool = True, **options: object) -> str:
        given = {name: value for name, value in options.items() if value is not None}
        place = {"stream": self.name, "prefix": self.name, "create": int(create)}
        return f"{self.server.url}?{urlencode({**place, **given})}"

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[JetStreamContext]:
        client = await nats.connect(self.server.url)
        try:
            yield client.jetstream(timeout=10)
        finally:
            await client.close()

    async def stored(self) -> list[Stored]:
        async with self.client() as js:
            try:
                count = (await js.stream_info(self.name)).state.messages
            except NotFoundError:
                return []
            reader = await js.pull_subscribe(
                ">", stream=self.name, config=api.ConsumerConfig(ack_policy=api.AckPolicy.NONE)
            )
            found: list[Stored] = []
            while len(found) < count:
                with contextlib.suppress(NothingCame):
                    found += [
                        Stored(
                            message.subject.removeprefix(f"{self.name}."),
                            message.headers or {},
                            message.data,
                        )
                        for message in await reader.fetch(500, timeout=1)
                    ]
            return found

    async def count(self) -> int:
        async with self.client() as js:
            return (await js.stream_info(self.name)).state.messages

    async def put(self, topic: str, body: bytes, headers: Mapping[str, bytes]) -> None:
        """By hand: nats-py takes headers that are text only."""
        lines = b"".join(b"%s: %s\r\n" % (n.encode(), v) for n, v in headers.items())
        block = b"NATS/1.0\r\n" + lines + b"\r\n"
        size = len(block) + len(body)
        address = urlsplit(self.server.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        await reader.readline()  # INFO
        writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
        subject = f"{self.name}.{topic}".encode()
        writer.write(b"HPUB %s %d %d\r\n%s%s\r\n" % (subject, len(block), size, block, body))
        writer.write(b"PING\r\n")
        assert await reader.readline() == b"PONG\r\n"
        writer.close()
        await writer.wait_closed()

    async def create(self, **settings: Any) -> None:
        async with self.client() as js:
            await js.add_stream(
                **{
                    "name": self.name,
                    "subjects": [f"{self.name}.>"],
                    "discard": api.DiscardPolicy.NEW,
                    **settings,
                }
            )

    async def update(self, **settings: Any) -> None:
        async with self.client() as js:
            config = (await js.stream_info(self.name)).config
            await js.update_stream(config, **settings)

    async def fill(self, room: int) -> int:
        await self.update(max_msgs=await self.count() + room)
        return room

    async def largest_body(self, envelope: Envelope) -> int:
        client = await nats.connect(self.server.url)
        limit = client.max_payload
        await client.close()
        headers = envelope.to_headers()
        headers["Nats-Msg-Id"] = str(envelope.id)
        headers["Nats-Expected-Stream"] = self.name
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        return largest(limit) - len("".join(["NATS/1.0\r\n", *lines, "\r\n"]))

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    def pause(self) -> None:
        self.server.pause()

    def resume(self) -> None:
        self.server.resume()
