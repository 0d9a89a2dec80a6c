"""A TCP proxy whose connections can be made to swallow everything, while they stay open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PIECE = 65536


class Proxy:
    """Between a client and one server, on a port of this machine.

    Args:
        host, port: Of the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self._there = (host, port)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._swallowing: set[int] = set()
        self._made = 0
        self._pumps: set[asyncio.Task[None]] = set()
        self.port = 0
        self.swallows_new = False

    @property
    def made(self) -> int:
        """Connections that clients have made so far."""
        return self._made

    def swallow(self, *, new: bool) -> None:
        """Nothing comes through the connections there are any more; of `new` ones neither."""
        self.swallows_new = new
        self._swallowing.update(range(self._made))

    def start(self) -> None:
        """Returns when it takes connections."""
        self._thread.start()
        self._ready.wait(20)

    def stop(self) -> None:
        """All of its connections end."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    async def _run(self) -> None:
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._ended.wait()
        server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _accepted(
        self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        number, self._made = self._made, self._made + 1
        if self.swallows_new:
            self._swallowing.add(number)
        server, to_server = await asyncio.open_connection(*self._there)
        for source, sink in ((client, to_server), (server, to_client)):
            pump = asyncio.create_task(self._pump(number, source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(
        self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while piece := await source.read(PIECE):
                if number not in self._swallowing:
                    sink.write(piece)
                    await sink.drain()
        if number not in self._swallowing:  # not even an end comes through
            sink.close()


@contextmanager
def proxy(host: str, port: int) -> Iterator[Proxy]:
    """One, for the time of the block."""
    made = Proxy(host, port)
    made.start()
    try:
        yield made
    finally:
        made.stop()
