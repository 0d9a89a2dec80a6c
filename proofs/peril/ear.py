"""Who hears every publication as it is made: JetStream drops repeats, plain subscribers do not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nats

from proofs.chaos.stream import NAME


class Ear:
    """What was published, and when each message came for the first time."""

    def __init__(self, server: str) -> None:
        self.times: Counter[str] = Counter()
        self.first: dict[str, float] = {}  # by this machine's monotonic clock
        self._server = server
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._hear(),))

    @property
    def total(self) -> int:
        """Publications so far."""
        return sum(self.times.values())

    @property
    def repeated(self) -> dict[str, int]:
        """The messages that came more than once, and how many times more."""
        return {id_: count - 1 for id_, count in list(self.times.items()) if count > 1}

    def start(self) -> None:
        """Returns when it hears."""
        self._thread.start()
        if not self._ready.wait(20):
            raise TimeoutError("NATS does not answer")

    def stop(self) -> None:
        """It hears no more."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    async def _hear(self) -> None:
        client = await nats.connect(self._server)

        async def heard(message: Any) -> None:
            now, id_ = time.monotonic(), message.headers["ce-id"]
            self.times[id_] += 1
            self.first.setdefault(id_, now)

        await client.subscribe(
            f"{NAME}.>", cb=heard, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        await client.flush()
        self._ready.set()
        await self._ended.wait()
        await client.drain()  # all that the server had for us by now has been heard


@contextmanager
def ear(server: str) -> Iterator[Ear]:
    """One, for the time of the block."""
    made = Ear(server)
    made.start()
    try:
        yield made
    finally:
        made.stop()
