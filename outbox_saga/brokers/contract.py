"""What the relay asks of a broker and what a broker gives a consumer.

A new broker is one file that keeps these two promises:

*Publisher*: `Accepted` means durable and routable, as far as the broker can say; anything else is
`Refused` with an error of one of three classes (permanent, transient, ambiguous), decided by code,
never by text. *Subscriber*: a message is acknowledged only after the handler returned, which is
after its transaction committed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from outbox_saga.envelopes import Envelope
from outbox_saga.errors import BrokerError


@dataclass(frozen=True, slots=True)
class Accepted:
    """The broker confirmed the message as stored and routed."""

    duplicate: bool = False  # it says it had this id already


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker did not confirm; the class of the error says what happens next."""

    error: BrokerError  # Unpublishable | BrokerUnavailable | PublishUnconfirmed


Outcome: TypeAlias = Accepted | Refused

Settled: TypeAlias = Callable[[int, Outcome], None]

ACCEPTED: Final = Accepted()

# Code of a PublishUnconfirmed: the connection was lost, so it says nothing about the message
CONNECTION_LOST: Final = "connection_lost"


class Publisher(Protocol):
    """Hands envelopes to a broker."""

    async def open(self) -> None:
        """Connects.

        Raises BrokerUnavailable when the broker cannot be reached within the timeout.
        """
        ...

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        """One outcome per envelope, in their order, within the publisher's own timeout.

        `settled(index, outcome)` is called as soon as something has become of one, so that no
        message waits for the slowest of its batch; a publisher may leave that out.

        The caller never hands two envelopes of one key in one call, so the order among them is
        free. Nothing is raised for what happened to a message; a cancelled call leaves outcomes
        unknown, which the caller treats as ambiguous.
        """
        ...

    async def close(self) -> None:
        """Disconnects; safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class Subscription:
    """What one consumer wants.

    Args:
        consumer: Its explicit and stable name; broker-side state and inbox rows belong to it.
        topics: The topics it listens to.
        concurrency: Messages handled at the same time by this process.
    """

    consumer: str
    topics: tuple[str, ...]
    concurrency: int = 16


class Delivery(Protocol):
    """One delivered message, not yet acknowledged."""

    @property
    def envelope(self) -> Envelope:
        """The message; raises MessageRefused when the bytes cannot be read as one."""
        ...

    @property
    def attempt(self) -> int:
        """Which delivery of this message it is, from 1, as far as the broker counts."""
        ...

    @property
    def topic(self) -> str:
        """Where it came from, also when the message cannot be read."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """As they came, also when the message cannot be read."""
        ...

    @property
    def body(self) -> bytes:
        """As it came, also when the message cannot be read."""
        ...

    async def acknowledge(self) -> None:
        """It was handled, or is kept: never deliver it again."""
        ...

    async def retry(self, delay: float) -> None:
        """It was not handled: deliver it again in about `delay` seconds."""
        ...

    async def reject(self, reason: str) -> None:
        """It can never be handled: stop delivering it."""
        ...


Handle: TypeAlias = Callable[[Delivery], Awaitable[None]]


class Subscriber(Protocol):
    """Brings messages from a broker."""

    async def open(self) -> None:
        """Connects and declares what the subscription needs."""
        ...

    async def run(self, handle: Handle, stop: Callable[[], Awaitable[object]]) -> None:
        """Hands deliveries to `handle` until `stop()` returns.

        Then waits for those in hand and returns.

        `handle` acknowledges, retries or rejects by itself; a delivery it did none of comes again.
        """
        ...

    async def close(self) -> None:
        """Disconnects; safe to call twice."""
        ...
