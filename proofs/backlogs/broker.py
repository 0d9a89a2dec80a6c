"""A NATS server that takes what a relay sends, and a relay as an operator starts it."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import nats as client

from outbox_saga.testing.servers import Nats, choose
from proofs.backlogs.filling import Place, outbox

STREAM = "backlog"
LONGEST = 180.0  # seconds until the outbox must be empty
END = 30.0  # seconds until a relay must have ended


@contextmanager
def nats() -> Iterator[tuple[Nats, str]]:
    """A private server, and the URL of its stream."""
    with choose(Nats) as server:
        asyncio.run(_create(server))
        yield server, f"{server.url}?stream={STREAM}&prefix={STREAM}"


async def _create(server: Nats) -> None:
    connection = await client.connect(server.url)
    await connection.jetstream().add_stream(name=STREAM, subjects=[f"{STREAM}.>"])
    await connection.close()


async def stored(server: Nats) -> int:
    """Messages in the stream."""
    connection = await client.connect(server.url)
    found = await connection.jetstream().stream_info(STREAM)
    await connection.close()
    return found.state.messages


def relay(database: str, broker: str) -> list[str]:
    """The module and its arguments."""
    options = ["--database-url", database, "--broker", broker, "--log-level", "warning"]
    return ["outbox_saga_relay", "relay", *options]


def until_empty(place: Place, process: subprocess.Popen[bytes]) -> None:
    """The relay has removed everything, and has ended."""
    deadline = time.monotonic() + LONGEST
    with place.connect() as connection:
        asked = f"SELECT EXISTS (SELECT 1 FROM {outbox()})".encode()
        while connection.execute(asked).fetchone() != (False,):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the relay does not come to an end")
            time.sleep(0.1)
    process.terminate()
    process.wait(END)
