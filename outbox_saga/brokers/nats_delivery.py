"""One message from JetStream and the three answers to it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from nats.aio.msg import Msg

from outbox_saga.envelopes import Envelope
from outbox_saga.errors import MessageRefused

Answer: TypeAlias = Callable[[str, bytes], Awaitable[None]]


def nak(delay: float) -> bytes:
    """What asks the server for a message again, in so many seconds."""
    if delay <= 0:
        return b"-NAK"
    return b"-NAK " + json.dumps({"delay": int(delay * 1e9)}).encode()


class NatsDelivery:
    """One message of the consumer; the first of acknowledge, retry and reject counts."""

    def __init__(self, answer: Answer, message: Msg, topic: str) -> None:
        self.place = message.metadata.sequence.stream
        self._attempt = message.metadata.num_delivered
        self.reply = message.reply
        self.again_in: float | None = None
        self.settled = False
        self.topic = topic
        self.headers = message.headers or {}
        self.body = message.data
        self._answer = answer
        self._envelope: Envelope | MessageRefused
        try:
            self._envelope = Envelope.from_headers(topic, self.headers, self.body)
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
        """Which delivery of this message it is, from 1, as JetStream counts."""
        return self._attempt

    @property
    def key(self) -> str | None:
        """The message's key; None as well for one that cannot be read."""
        return None if isinstance(self._envelope, MessageRefused) else self._envelope.key

    def __str__(self) -> str:
        who = (
            "a message that cannot be read"
            if isinstance(self._envelope, MessageRefused)
            else f"message {self.envelope.id}"
        )
        return f"{who} (sequence {self.place}, delivery {self._attempt})"

    async def acknowledge(self) -> None:
        """It was handled: never deliver it again.

        Without a connection the acknowledgement goes out on the next one; lost with a connection
        it is not noticed, the message comes again, and the inbox drops it.
        """
        await self._settle(b"+ACK")

    async def retry(self, delay: float) -> None:
        """It was not handled: deliver it again in about `delay` seconds, its key behind it."""
        if not self.settled:
            self.again_in = max(0.0, delay)
        await self._settle(nak(delay))

    async def reject(self, reason: str) -> None:
        """It can never be handled: stop delivering it; the stream's advisory says why."""
        line = "".join(c if c.isascii() and c.isprintable() else "?" for c in reason)
        await self._settle(f"+TERM {line[:200]}".encode())

    async def _settle(self, answer: bytes) -> None:
        if not self.settled:
            self.settled = True
            await self._answer(self.reply, answer)
