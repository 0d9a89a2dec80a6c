"""The real relay, told to stop in the middle of its work, again and again."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from uuid import uuid4

import nats
import pytest
from nats.aio.msg import Msg

from tests.relay.house import PATIENCE, House

GRACE = 8.0  # seconds a stop may take on a busy machine


async def _relay(house: House, broker: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "outbox_saga_relay", "relay"),
        *("--database-url", house.url, "--broker", broker, "--page-rows", "50"),
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.databases("postgres18")
async def test_stopped_under_load_it_ends_soon_and_loses_and_repeats_nothing(  # noqa: PLR0915
    house: House, nats_url: str
) -> None:
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    name = f"test{uuid4().hex[:12]}"
    client = await nats.connect(nats_url)
    seen: Counter[str] = Counter()
    news = asyncio.Event()

    async def see(message: Msg) -> None:
        assert message.headers is not None
        seen[message.headers["ce-id"]] += (
            1  # JetStream drops repeats, a plain subscriber sees them
        )
        news.set()

    async def until_seen(number: int) -> None:
        while seen.total() < number:
            news.clear()
            await asyncio.wait_for(news.wait(), PATIENCE)

    await client.subscribe(f"{name}.>", cb=see)
    await client.flush()
    published: list[str] = []
    enough = threading.Event()

    def write() -> None:
        while not enough.is_set():
            if len(published) - seen.total() > 500:
                enough.wait(0.01)  # until the relay has caught up a little
                continue
            key = f"k{len(published) % 7}"
            published.extend(str(id_) for id_ in house.say(*range(10), key=key))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for round_ in range(3):
            process = await _relay(house, f"{nats_url}?stream={name}&prefix={name}&create=1")
            try:
                await until_seen(seen.total() + dice.randrange(1, 300))
                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                _, said = await asyncio.wait_for(process.communicate(), GRACE + PATIENCE)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            told = f"seed {seed}, round {round_}: {said.decode()}"
            assert process.returncode == 0, told
            assert time.monotonic() - began < GRACE, told
            assert house.owners() == {None}, told
    finally:
        enough.set()
        writer.join()
    process = await _relay(house, f"{nats_url}?stream={name}&prefix={name}&create=1")
    try:
        await until_seen(len(published))
    finally:
        process.terminate()
        await process.communicate()
    assert set(seen) == set(published), f"seed {seed}"
    assert max(seen.values()) == 1, f"seed {seed}: {seen.most_common(3)}"
    assert house.waiting() == []
    await client.jetstream().delete_stream(name)
    await client.close()


@pytest.mark.databases("sqlite")
async def test_a_second_signal_ends_it_at_once(house: House, nats_url: str) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    # a broker that never says a word: the relay waits for it, for a minute
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    house.say("a")
    process = await _relay(house, f"nats://127.0.0.1:{port}?timeout=60")
    assert process.stderr is not None
    try:
        await asyncio.to_thread(house.until, lambda: house.owners() != {None}, "the lease")
        process.send_signal(signal.SIGTERM)
        line = await asyncio.wait_for(process.stderr.readuntil(b"signal again"), PATIENCE)
        assert re.search(rb"stopping", line)
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        server.close()
    assert process.returncode == 1
    assert house.waiting() == ["a"]
