"""The answers to JetStream's deliveries; those that find no connection are sent on the next."""

from __future__ import annotations

import json
import logging

from outbox_saga.brokers.nats_connection import Connection, Link
from outbox_saga.errors import BrokerUnavailable

logger = logging.getLogger(__name__)


class NatsAnswers:
    """Answers to each reply subject; one lost with a connection is not noticed.

    Its message then comes again, and the inbox drops it.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._owed: dict[str, bytes] = {}

    async def acknowledge(self, ticket: str) -> None:
        """Never deliver it again."""
        await self._send(ticket, b"+ACK")

    async def give_back(self, ticket: str, delay: float) -> None:
        """Deliver it again, to any process of the consumer."""
        later = b" " + json.dumps({"delay": int(delay * 1e9)}).encode() if delay > 0 else b""
        await self._send(ticket, b"-NAK" + later)

    async def reject(self, ticket: str, reason: str) -> None:
        """Stop delivering it; the stream's advisory says why."""
        line = "".join(c if c.isascii() and c.isprintable() else "?" for c in reason)
        await self._send(ticket, f"+TERM {line[:200]}".encode())

    async def pay(self, connection: Connection) -> None:
        """Sends what is owed on this connection."""
        for reply, answer in list(self._owed.items()):
            await connection.send(reply, answer)
            del self._owed[reply]

    async def flush(self) -> None:
        """All answers have left; those that cannot are given up, and their messages come again."""
        if self._owed:
            try:
                await self.pay(await self._link.connection())
            except BrokerUnavailable as error:
                logger.warning(
                    "%d answers could not be sent, so these messages come again: %s",
                    len(self._owed),
                    error,
                )
                self._owed.clear()
        if (connection := self._link.current) is not None:
            await connection.flush()

    async def _send(self, reply: str, answer: bytes) -> None:
        connection = self._link.current
        if connection is None:
            self._owed[reply] = answer
            return
        try:
            await connection.send(reply, answer)
        except BrokerUnavailable:
            self._owed[reply] = answer
