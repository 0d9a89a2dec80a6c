"""One delivered message while a process has it, and the answers to it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, Protocol, TypeVar

from outbox_saga.envelopes import Envelope
from outbox_saga.errors import MessageRefused

Ticket = TypeVar("Ticket")
Ticket_contra = TypeVar("Ticket_contra", contravariant=True)


class Answers(Protocol[Ticket_contra]):
    """How a broker is told of a delivery, by the ticket it came with.

    None of these raises for a broker that is away: it is told later, or the message comes again.
    """

    async def acknowledge(self, ticket: Ticket_contra) -> None:
        """Never deliver it again."""
        ...

    async def give_back(self, ticket: Ticket_contra, delay: float) -> None:
        """Deliver it again, to anybody; the delay is 0 where the broker knows none.

        Where it knows one: a second time with 0 ends a delay that is not over.
        """
        ...

    async def reject(self, ticket: Ticket_contra, reason: str) -> None:
        """Stop delivering it."""
        ...

    async def flush(self) -> None:
        """Returns when all answers have left, or certainly never will."""
        ...


class InHand(Generic[Ticket]):
    """A `Delivery`; the first of acknowledge, retry and reject counts.

    Args:
        ticket: By which the broker knows this delivery; a later delivery brings another.
        mark: By which the adapter knows the message again, as long as it is in hand.
        topic: Where it came from.
        headers: As the broker had them, without what broker and adapter added.
        body: As it came.
        attempt: Which delivery it is, as far as the broker counts.
        place: Its place in the broker's order; None where arrival is all the order there is.
    """

    def __init__(
        self,
        ticket: Ticket,
        mark: Hashable,
        *,
        topic: str,
        headers: Mapping[str, str],
        body: bytes,
        attempt: int = 1,
        place: int | None = None,
    ) -> None:
        self.ticket = ticket
        self.mark = mark
        self.place = place
        self.answers: Answers[Ticket] | None = None  # None: nobody wants to know any more
        self.holds = False  # whether it waits here for its next try
        self.at_once = False  # whether it comes again without a delay, since its process ends
        self.again_in: float | None = None
        self.settled = False
        self.topic = topic
        self.headers = headers
        self.body = body
        self._attempt = attempt
        self._envelope: Envelope | MessageRefused
        try:
            self._envelope = Envelope.from_headers(topic, headers, body)
        except MessageRefused as refused:
            self._envelope = refused

    @property
    def envelope(self) -> Envelope:
        """The message; raises MessageRefused when the bytes cannot be read as one."""
        if isinstance(self._envelope, MessageRefused):
            raise self._envelope
        return self._envelope

    @property
    def attempt(self) -> int:
        """Which delivery of this message it is, from 1."""
        return self._attempt

    @property
    def key(self) -> str | None:
        """The message's key; None as well for one that cannot be read."""
        return None if isinstance(self._envelope, MessageRefused) else self._envelope.key

    @property
    def is_open(self) -> bool:
        """Whether the broker has had no answer yet."""
        return not self.settled or (self.holds and self.again_in is not None)

    def __str__(self) -> str:
        who = (
            "a message that cannot be read"
            if isinstance(self._envelope, MessageRefused)
            else f"message {self._envelope.id}"
        )
        return f"{who} ({self.mark}, delivery {self._attempt})"

    async def acknowledge(self) -> None:
        """It was handled: never deliver it again.

        An answer that is lost with its connection is not noticed: the message comes again, and
        the inbox drops it.
        """
        if self._settle() and self.answers is not None:
            await self.answers.acknowledge(self.ticket)

    async def retry(self, delay: float) -> None:
        """It was not handled: deliver it again in about `delay` seconds, its key behind it."""
        if self._settle():
            self.again_in = 0.0 if self.at_once else max(0.0, delay)
            if self.answers is not None and not self.holds:
                await self.answers.give_back(self.ticket, self.again_in)

    async def reject(self, reason: str) -> None:
        """It can never be handled: stop delivering it."""
        if self._settle() and self.answers is not None:
            await self.answers.reject(self.ticket, reason)

    def once_more(self) -> None:
        """It waited here and is delivered again."""
        self.settled, self.again_in = False, None
        self._attempt += 1

    def _settle(self) -> bool:
        first, self.settled = not self.settled, True
        return first
