"""Where a server runs, and what can be done to it there."""

from __future__ import annotations

import random
import socket
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

Source = Literal["url", "path", "wheel", "docker"]


class ServerUnavailable(LookupError):
    """This machine cannot offer the server; the message says why and what would help."""


class ServerFailed(RuntimeError):
    """The server was there but did not start or did not answer; the message ends with its log."""


class Place(ABC):
    """One server's life. Data and address stay the same from the first start until `discard`."""

    source: Source
    host: str
    port: int
    #: The complete URL, where somebody else has chosen it.
    url: str | None = None

    @abstractmethod
    def start(self) -> None:
        """Set the server going. Whether it answers yet is for the server's own probe to say."""

    @abstractmethod
    def stop(self) -> None:
        """End it in good order; data and address stay."""

    @abstractmethod
    def kill(self) -> None:
        """End every process of it at once, as a crash would; data and address stay."""

    @abstractmethod
    def pause(self) -> None:
        """Freeze every process of it: connections stay open and nobody answers."""

    @abstractmethod
    def resume(self) -> None:
        """End the pause."""

    @abstractmethod
    def discard(self) -> None:
        """End it and delete its data. Harmless when it has ended already."""

    @abstractmethod
    def ended(self) -> str | None:
        """None while it runs; otherwise the end of its log."""


class Elsewhere(Place):
    """A server that somebody else runs: it is used and never stopped, killed or paused."""

    source = "url"

    def __init__(self, url: str) -> None:
        self.url = url

    def start(self) -> None:
        """Nothing to do: it runs already."""

    def discard(self) -> None:
        """Nothing to do: it goes on running."""

    def ended(self) -> str | None:
        """Whether it runs is not ours to see; its probe tells."""
        return None

    def _refuse(self) -> None:
        raise ServerUnavailable("this server was given by URL: it is not ours to stop or pause")

    stop = kill = pause = resume = _refuse


def free_port() -> int:
    """A loopback port that nothing uses, outside the range of outgoing connections.

    A port of that range could be taken by any client while its server restarts; and a client
    that keeps trying a dead port of it is sooner or later connected to itself.
    """
    try:
        limits = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        highest = int(limits.split()[0])
    except OSError:
        highest = 32768
    for port in random.sample(range(10_000, max(highest, 11_000)), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerUnavailable("200 ports were tried on 127.0.0.1 and each was taken")
