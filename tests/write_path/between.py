"""A TCP connection between a client and its database that is lost while COMMIT is under way."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

_COMMIT = re.compile(rb"(?<![A-Z])COMMIT", re.IGNORECASE)  # not AUTOCOMMIT
When = Literal[
    "before the server has it",
    "before the answer comes back",
    "the answer hangs",
    "every answer hangs",  # of whatever was asked, not of COMMIT alone
]


@dataclass(eq=False)
class _Pair:
    client: socket.socket
    server: socket.socket
    committing: bool = False

    def end(self) -> None:
        for side in (self.client, self.server):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


class Between:
    """Passes bytes on until `lose` is set (and, unless every answer hangs, a COMMIT comes by).

    Args:
        url: Of the database; `url` of this object leads through it.
    """

    def __init__(self, url: str) -> None:
        there = sa.make_url(url)
        self._there = (there.host or "127.0.0.1", int(there.port or 0))
        self._ear = socket.create_server(("127.0.0.1", 0))
        port = self._ear.getsockname()[1]
        self.url = there.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        self.lose: When | None = None
        self.lost = 0
        self._pairs: list[_Pair] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._ear.accept()
                pair = _Pair(client, socket.create_connection(self._there))
                self._pairs.append(pair)
                for way in (self._to_server, self._to_client):
                    threading.Thread(target=way, args=(pair,), daemon=True).start()

    def _to_server(self, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := pair.client.recv(65536):
                if self.lose and self.lose != "every answer hangs" and _COMMIT.search(data):
                    self.lost += 1
                    if self.lose == "before the server has it":
                        break
                    pair.committing = True
                pair.server.sendall(data)
        pair.end()

    def _to_client(self, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := pair.server.recv(65536):
                if self.lose == "every answer hangs":
                    continue
                if not pair.committing:
                    pair.client.sendall(data)
                elif self.lose != "the answer hangs":
                    break  # the server has committed, and said so
        pair.end()

    def close(self) -> None:
        self._ear.close()
        for pair in self._pairs:
            pair.end()
            pair.client.close()
            pair.server.close()


@contextlib.contextmanager
def between(url: str) -> Iterator[Between]:
    line = Between(url)
    try:
        yield line
    finally:
        line.close()
