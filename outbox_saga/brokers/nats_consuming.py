"""Consuming from JetStream: as many messages in hand as wanted, in order within a key.

One pull request stands at the server at a time, for the messages there is room for. It ends when
they have come, when it expires, or with the connection; every wait here ends by itself, so a
server that was killed, stopped or unplugged is noticed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from nats.aio.msg import Msg

from outbox_saga.brokers.contract import Handle, Subscription
from outbox_saga.brokers.hands import Hands
from outbox_saga.brokers.in_hand import InHand
from outbox_saga.brokers.nats_answers import NatsAnswers
from outbox_saga.brokers.nats_connection import Connection, Link, status
from outbox_saga.brokers.nats_consumer import DurableConsumer
from outbox_saga.brokers.nats_settings import NatsSettings
from outbox_saga.calling import until_ended
from outbox_saga.errors import BrokerUnavailable

logger = logging.getLogger(__name__)

# Seconds a pull request stands at the server. Short, since the server does not tell when it
# forgets one, and since whoever stops waits for its end.
_EXPIRES: Final = 1.0
_LATE: Final = 0.25  # seconds after that, at most, until its end has come

_ENDED_WELL: Final = {
    "404",  # no messages
    "408",  # the request expired
}
_HEARTBEAT: Final = "100"


class NatsSubscriber:
    """Brings the messages of one subscription; every message that is not settled comes again."""

    def __init__(self, settings: NatsSettings, subscription: Subscription) -> None:
        self._settings = settings
        self._consumer = DurableConsumer(settings, subscription)
        self._link = Link(settings, name=f"outbox-saga consumer {subscription.consumer}")
        self._wake = asyncio.Event()
        self._answers = NatsAnswers(self._link)
        self._hands: Hands[str] = Hands(
            subscription,
            self._answers,
            grace=settings.grace,
            wake=self._wake.set,
            patience=settings.ack_wait,
        )
        self._least = max(1, self._hands.room // 4)  # messages a pull request is worth it for
        self._requested = 0  # messages the standing pull request may still bring
        self._trouble: str | None = None  # the status that ended the last pull request badly

    async def open(self) -> None:
        """Connects and declares the consumer; BrokerUnavailable when NATS cannot be reached.

        A stream that does not exist yet is waited for by `run`.
        """
        connection = await self._link.connection()
        try:
            await self._consumer.prepare(connection)
        except BrokerUnavailable as error:
            if error.code != "no_stream":
                raise
            logger.warning("consumer %s waits for its stream: %s", self._consumer.name, error)

    async def run(self, handle: Handle, stop: Callable[[], Awaitable[object]]) -> None:
        """Hands deliveries to `handle` until `stop()` returns; then waits for those in hand.

        Those not begun are given back at once; those not finished after the grace are cancelled
        and given back. A server that is away is waited for.
        """
        beating = asyncio.create_task(self._heartbeats())
        try:
            await self._hands.run(handle, stop, self._serve)
        finally:
            await until_ended({beating})

    async def close(self) -> None:
        """Disconnects; safe to call twice."""
        await self._link.close()

    # One connection's life

    async def _serve(self, stopped: asyncio.Task[None]) -> None:
        connection = await self._link.connection()
        await self._consumer.prepare(connection)
        await self._answers.pay(connection)
        connection.on_lost.add(self._wake.set)
        inbox = connection.client.new_inbox()
        subscription = await connection.subscribe(inbox, self._receive)
        try:
            self._requested, self._trouble, expires = 0, None, 0.0
            while not (stopped.done() or connection.lost):
                self._wake.clear()
                now = time.monotonic()
                if self._trouble is not None:
                    raise BrokerUnavailable(
                        f"JetStream ended a pull request with status {self._trouble}",
                        code=f"nats_{self._trouble}",
                    )
                if self._requested and now > expires:
                    # The server ends every request by itself: this connection leads nowhere.
                    connection.mark_lost()
                    break
                room = self._hands.room
                if self._requested == 0 and room >= (1 if self._hands.idle else self._least):
                    self._requested, expires = room, now + _EXPIRES + self._settings.timeout
                    request = {"batch": room, "expires": int(_EXPIRES * 1e9)}
                    await connection.send(
                        self._consumer.next_subject, json.dumps(request).encode(), reply=inbox
                    )
                await self._woken(expires - now if self._requested else _EXPIRES)
        finally:
            self._hands.stopping = stopped.done()
            if self._hands.stopping:
                await self._request_over(connection)
            await connection.drain(subscription)

    async def _request_over(self, connection: Connection) -> None:
        """Until the standing pull request brings nothing more; what still comes is given back.

        Whoever leaves before loses messages for as long as `ack_wait`: the server takes those for
        delivered that it sends while the subscription goes (seen with nats-server 2.15.1).
        """
        ends = time.monotonic() + _EXPIRES + _LATE
        while self._requested and not connection.lost and (left := ends - time.monotonic()) > 0:
            self._wake.clear()
            await self._woken(left)

    async def _heartbeats(self) -> None:
        """Tells the server of every message in hand before its `ack_wait` is over."""
        while True:
            await asyncio.sleep(self._settings.ack_wait / 4)
            self._hands.forget_overdue()
            for delivery in self._hands:
                connection = self._link.current
                if connection is None:
                    break
                try:
                    await connection.send(delivery.ticket, b"+WPI")
                except BrokerUnavailable:
                    break  # the next connection's turn

    async def _woken(self, within: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, within) + 0.01):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _receive(self, message: Msg) -> None:
        """Takes a message or a status; never waits for a handler, or the next would wait too."""
        # a message has somewhere to be answered; anybody may give one a header named Status
        if not message.reply and (code := status(message)) is not None:
            if code != _HEARTBEAT:
                self._requested = 0
                if code in _ENDED_WELL:
                    self._hands.is_well()
                else:
                    self._trouble = code
                self._wake.set()
            return
        self._requested = max(0, self._requested - 1)
        self._hands.is_well()
        place = message.metadata.sequence.stream
        headers = message.headers or {}
        await self._hands.take(
            InHand(
                message.reply,
                place,
                topic=self._settings.topic(message.subject),
                headers={n: v for n, v in headers.items() if not n.lower().startswith("nats-")},
                body=message.data,
                attempt=message.metadata.num_delivered,
                place=place,
            )
        )
        self._wake.set()
