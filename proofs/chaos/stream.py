"""What a JetStream stream holds, from its first message on, read with nats-py's plain calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nats
from nats.errors import TimeoutError as NothingCame
from nats.js import api

from outbox_saga.testing.servers import Nats, choose

NAME = "chaos"


@contextmanager
def broker() -> Iterator[tuple[Nats, str]]:
    """A private server, and the URL of a stream of it."""
    with choose(Nats) as server:
        yield server, f"{server.url}?stream={NAME}&prefix={NAME}"


async def create(server: Nats, **settings: Any) -> None:
    """The stream, which keeps everything and drops hardly any repeat, unless told otherwise."""
    usual = {"discard": api.DiscardPolicy.NEW, "duplicate_window": 0.1}
    client = await nats.connect(server.url)
    try:
        await client.jetstream().add_stream(
            name=NAME, subjects=[f"{NAME}.>"], **{**usual, **settings}
        )
    finally:
        await client.close()


async def everything(server: Nats, name: str = NAME) -> list[tuple[str, bytes]]:
    """Every message's id and body, in the order of the stream."""
    return [(headers["ce-id"], body) for headers, body in await messages(server, name)]


async def messages(server: Nats, name: str = NAME) -> list[tuple[dict[str, str], bytes]]:
    """Every message's headers and body, in the order of the stream, none of which may be gone."""
    client = await nats.connect(server.url)
    try:
        js = client.jetstream(timeout=10)
        state = (await js.stream_info(name)).state
        if state.messages and (state.first_seq, state.last_seq) != (1, state.messages):
            raise AssertionError(f"the stream has lost some of what it had: {state}")
        reader = await js.pull_subscribe(
            ">", stream=name, config=api.ConsumerConfig(ack_policy=api.AckPolicy.NONE)
        )
        found: list[tuple[dict[str, str], bytes]] = []
        while len(found) < state.messages:
            with contextlib.suppress(NothingCame):
                found += [
                    (message.headers or {}, message.data)
                    for message in await reader.fetch(500, timeout=2)
                ]
        return found
    finally:
        await client.close()
