"""What the relay asks of a broker and what a broker gives a consumer.

A new broker is one module, an `Adapter`, that keeps these two promises and declares the rest:

*Publisher*: `Accepted` means durable and routable, as far as the broker can say; anything else is
`Refused` with an error of one of three classes (permanent, transient, ambiguous), decided by code,
never by text. *Subscriber*: a message is acknowledged only after the handler returned, which is
after its transaction committed; what is not acknowledged comes again, at least once.
*Capabilities*: where brokers differ beyond that. Nobody relies on what an adapter does not
declare, and `tests/brokers/conformance.py` tries what it declares, a no as well as a yes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

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


@dataclass(frozen=True, slots=True)
class Consuming:
    """What differs in how brokers bring messages to consumers.

    Args:
        settles: "each": what is acknowledged is settled, whatever becomes of others. "in order":
            of a partition only what lies before the first open message is; when the partition
            moves to another process, those behind that one come again although they were
            acknowledged.
        key_order: How far messages of one key and topic come one after another in the order in
            which they were published: within one "process", or over all processes of a
            "consumer", as long as none of them dies.
        over_topics: That order holds over all topics of the subscription, not in each of them.
    """

    settles: Literal["each", "in order"]
    key_order: Literal["process", "consumer"]
    over_topics: bool


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Where brokers differ: all that may be relied on beyond the promises of this module.

    Args:
        deduplicates: The same id again, soon, is stored once and `Accepted` as a duplicate.
        unheard: What becomes of a message to a topic that no subscription was declared for (by
            `Subscriber.open`) when it was published: "kept" for consumers that come later;
            "refused" as BrokerUnavailable; or accepted and "gone". Where it is not kept, a
            consumer gets only what is published after it was declared.
        consuming: None for a broker nobody can subscribe to.
    """

    deduplicates: bool
    unheard: Literal["kept", "refused", "gone"]
    consuming: Consuming | None


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
        free; several calls may be under way at the same time. What one message meets, harms none
        of its neighbours. Nothing is raised for what happened to a message; a cancelled call
        leaves outcomes unknown, which the caller treats as ambiguous.

        A broker that takes nothing at all is BrokerDown for each of them: no attempt is counted.
        One that was lost while they were on their way is PublishUnconfirmed with the code
        CONNECTION_LOST. After a loss the next call connects again by itself; nothing is kept to be
        sent later.
        """
        ...

    async def close(self) -> None:
        """Disconnects; safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class Subscription:
    """What one consumer wants.

    Args:
        consumer: Its explicit and stable name, any text; broker-side state and inbox rows belong
            to it.
        topics: The topics it listens to, each by its whole name: no broker's wildcards.
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
        """Which delivery of this message it is, from 1.

        Deliveries that ended with the death of their process count, so that a message that kills
        each process it comes to is known by it. It may be too high, as where a broker counts for
        a partition; it may start again at 1 only when the broker lost its own data.
        """
        ...

    @property
    def topic(self) -> str:
        """Where it came from, also when the message cannot be read."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """As they came, also when the message cannot be read.

        A value that is not text, where a broker carries such, stands here as some text. What the
        broker or its adapter added is not among those of the envelope.
        """
        ...

    @property
    def body(self) -> bytes:
        """As it came, also when the message cannot be read."""
        ...

    async def acknowledge(self) -> None:
        """It was handled, or is kept: never deliver it again."""
        ...

    async def retry(self, delay: float) -> None:
        """It was not handled: deliver it again in about `delay` seconds, however often.

        Until then it holds up its own key only (up to a bound on what waits). Where the broker
        cannot do it, the adapter keeps the message, unacknowledged (`Hands`).
        """
        ...

    async def reject(self, reason: str) -> None:
        """It can never be handled: stop delivering it."""
        ...


Handle: TypeAlias = Callable[[Delivery], Awaitable[None]]


class Subscriber(Protocol):
    """Brings messages from a broker."""

    async def open(self) -> None:
        """Connects and declares the subscription: what is published from now on reaches it.

        Raises BrokerUnavailable when the broker cannot be reached within the timeout. A
        destination that does not exist yet is no error: `run` waits for it.
        """
        ...

    async def run(self, handle: Handle, stop: Callable[[], Awaitable[object]]) -> None:
        """Hands deliveries to `handle` until `stop()` returns.

        Then waits for those in hand, as long as the grace lasts, and returns; the rest is given
        back at once, not after a timeout. An outage of the broker, however long, neither raises
        nor returns.

        At most `concurrency` deliveries are handled at once, and of one key one after another.
        `handle` acknowledges, retries or rejects by itself; a delivery it did none of, or failed
        on, comes again.
        """
        ...

    async def close(self) -> None:
        """Disconnects; safe to call twice."""
        ...


class Adapter(Protocol):
    """What the module of a broker has; `opening` finds it by the scheme of the broker's URL."""

    CAPABILITIES: Capabilities

    def publisher(self, url: str) -> Publisher:
        """Not yet connected; raises ConfigurationError for what cannot work."""
        ...

    def subscriber(self, url: str, subscription: Subscription) -> Subscriber:
        """Likewise; ConfigurationError as well for a broker nobody can subscribe to."""
        ...
