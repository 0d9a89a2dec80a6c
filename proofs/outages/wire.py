"""What goes between a relay and its NATS server, seen from between them.

The port is there while the server is not: whoever comes then is noted, and turned away at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_SIZED = {b"PUB", b"HPUB", b"MSG", b"HMSG"}  # what is followed by as many bytes as it says last


@dataclass(slots=True)
class Connection:
    """One that somebody made.

    Args:
        reached: The server was there.
    """

    began: float
    ended: float = math.inf
    reached: bool = False


@dataclass(frozen=True, slots=True)
class Sent:
    """One message that somebody published.

    Args:
        flying: Messages on their way with it: published, and not acknowledged.
        acknowledged: Messages that were acknowledged before it, ever.
    """

    at: float
    flying: int
    acknowledged: int


class Lines:
    """NATS's protocol, from pieces that end anywhere; the bodies of messages are passed over."""

    def __init__(self) -> None:
        self._rest = b""
        self._body = 0  # bytes yet to come of it

    def of(self, piece: bytes) -> Iterator[list[bytes]]:
        """The words of each line that is complete now."""
        data, at = self._rest + piece, 0
        while True:
            passed = min(self._body, len(data) - at)
            at, self._body = at + passed, self._body - passed
            end = -1 if self._body else data.find(b"\r\n", at)
            if end < 0:
                break
            words = data[at:end].split()
            at = end + 2
            if words and words[0] in _SIZED:
                self._body = int(words[-1]) + 2
            yield words
        self._rest = data[at:]


class Wire:
    """Connections and messages of a server's clients, by this process's monotonic clock.

    Args:
        prefix: Only messages to subjects that begin so are counted.
    """

    def __init__(self, host: str, port: int, prefix: str) -> None:
        self.port = 0
        self.connections: list[Connection] = []
        self.sent: list[Sent] = []
        self.acknowledged: list[float] = []
        self._host, self._to = host, port
        self._prefix = prefix.encode()

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection's life."""
        connection = Connection(time.monotonic())
        self.connections.append(connection)
        try:
            there, onward = await asyncio.open_connection(self._host, self._to)
        except OSError:
            pass  # noted: not reached
        else:
            connection.reached = True
            waiting: set[bytes] = set()
            ways = [
                asyncio.create_task(_carry(reader, onward, lambda w: self._said(w, waiting))),
                asyncio.create_task(_carry(there, writer, lambda w: self._answered(w, waiting))),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            onward.close()
        finally:
            connection.ended = time.monotonic()
            writer.close()

    def _said(self, words: list[bytes], waiting: set[bytes]) -> None:
        if words[0] in (b"PUB", b"HPUB") and words[1].startswith(self._prefix):
            waiting.add(words[2])
            self.sent.append(Sent(time.monotonic(), len(waiting), len(self.acknowledged)))

    def _answered(self, words: list[bytes], waiting: set[bytes]) -> None:
        if words[0] in (b"MSG", b"HMSG") and words[1] in waiting:
            waiting.remove(words[1])
            self.acknowledged.append(time.monotonic())


async def _carry(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    see: Callable[[list[bytes]], None],
) -> None:
    lines = Lines()
    with contextlib.suppress(OSError):
        while piece := await reader.read(65536):
            for words in lines.of(piece):
                if words:
                    see(words)
            writer.write(piece)
            await writer.drain()


@contextmanager
def watching(host: str, port: int, prefix: str) -> Iterator[Wire]:
    """Somebody who stands before that server for as long as the block lasts, in a thread."""
    wire = Wire(host, port, prefix)
    loop = asyncio.new_event_loop()
    listens = threading.Event()
    over = asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(wire.client, "127.0.0.1", 0)
        wire.port = server.sockets[0].getsockname()[1]
        listens.set()
        async with server:
            await over.wait()

    thread = threading.Thread(target=lambda: _run(loop, serve()), name="wire")
    thread.start()
    try:
        listens.wait()
        yield wire
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


def _run(loop: asyncio.AbstractEventLoop, serving: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(serving)
