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
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from nats.aio.msg import Msg

from outbox_saga.brokers.contract import Handle, Subscription
from outbox_saga.brokers.lanes import Lanes
from outbox_saga.brokers.nats_connection import Connection, Link, status
from outbox_saga.brokers.nats_consumer import DurableConsumer
from outbox_saga.brokers.nats_delivery import NatsDelivery, nak
from outbox_saga.brokers.nats_settings import NatsSettings
from outbox_saga.errors import BrokerUnavailable
from outbox_saga.ids import new_id
from outbox_saga.retries import Retry

logger = logging.getLogger(__name__)

# For messages whose handler raised, and for a server that is away.
_AGAIN: Final = Retry(initial=0.5, max_delay=60.0)
_RECONNECT: Final = Retry(initial=0.1, max_delay=3.0)
# Seconds a pull request stands at the server. Short, since the server does not tell when it
# forgets one, and since whoever stops waits for its end.
_EXPIRES: Final = 1.0
_LATE: Final = 0.25  # seconds after that, at most, until its end has come
# A message held back for an earlier one of its key comes at least so long after it.
_BEHIND: Final = 0.25

_ENDED_WELL: Final = {
    "404",  # no messages
    "408",  # the request expired
}
_HEARTBEAT: Final = "100"


class NatsSubscriber:
    """Brings the messages of one subscription; every message that is not settled comes again."""

    def __init__(self, settings: NatsSettings, subscription: Subscription) -> None:
        self._settings = settings
        self._concurrency = subscription.concurrency
        # As many again wait here, so that a finished handler finds its next message without a
        # round trip.
        self._room = 2 * subscription.concurrency
        self._consumer = DurableConsumer(settings, subscription)
        self._link = Link(settings, name=f"outbox-saga consumer {subscription.consumer}")
        self._lanes: Lanes[NatsDelivery] = Lanes(patience=settings.ack_wait)
        self._in_hand: dict[int, NatsDelivery] = {}
        self._ready: deque[NatsDelivery] = deque()
        self._tasks: dict[asyncio.Task[None], NatsDelivery] = {}
        self._owed: dict[str, bytes] = {}  # answers that found no connection
        self._wake = asyncio.Event()
        self._requested = 0  # messages the standing pull request may still bring
        self._trouble: str | None = None  # the status that ended the last pull request badly
        self._failures = 0
        self._stopping = False
        self._seed = str(new_id())  # processes do not come back in step
        self._handle: Handle | None = None

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
        self._handle = handle
        self._stopping = False
        stopped = asyncio.create_task(_until(stop))
        stopped.add_done_callback(lambda _: self._wake.set())
        beating = asyncio.create_task(self._heartbeats())
        try:
            while not stopped.done():
                try:
                    await self._serve(stopped)
                except BrokerUnavailable as error:
                    await self._pause(stopped, error)
            await self._finish(self._settings.grace)
            stopped.result()  # an error of `stop` itself is the caller's
        finally:
            stopped.cancel()
            await self._finish(0.0)
            beating.cancel()
            await asyncio.wait([beating])

    async def close(self) -> None:
        """Disconnects; safe to call twice."""
        await self._link.close()

    async def _answer(self, reply: str, answer: bytes) -> None:
        """Tells the server what became of a message, now or on the next connection."""
        connection = self._link.current
        if connection is None:
            self._owed[reply] = answer
            return
        try:
            await connection.send(reply, answer)
        except BrokerUnavailable:
            self._owed[reply] = answer

    # One connection's life

    async def _serve(self, stopped: asyncio.Task[None]) -> None:
        connection = await self._link.connection()
        await self._consumer.prepare(connection)
        await self._pay(connection)
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
                room = self._room - len(self._in_hand)
                if self._requested == 0 and room >= max(1, self._room // 4):
                    self._requested, expires = room, now + _EXPIRES + self._settings.timeout
                    request = {"batch": room, "expires": int(_EXPIRES * 1e9)}
                    await connection.send(
                        self._consumer.next_subject, json.dumps(request).encode(), reply=inbox
                    )
                await self._woken(expires - now if self._requested else _EXPIRES)
        finally:
            self._stopping = stopped.done()
            if self._stopping:
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

    async def _pause(self, stopped: asyncio.Task[None], error: BrokerUnavailable) -> None:
        self._failures += 1
        log = logger.warning if self._failures == 1 else logger.debug
        log("consumer %s cannot go on yet: %s", self._consumer.name, error)
        pause = _RECONNECT.delay(self._failures, seed=self._seed)
        await asyncio.wait([stopped], timeout=pause)

    async def _pay(self, connection: Connection) -> None:
        for reply, answer in list(self._owed.items()):
            await connection.send(reply, answer)
            del self._owed[reply]

    async def _heartbeats(self) -> None:
        """Tells the server of every message in hand before its `ack_wait` is over."""
        while True:
            await asyncio.sleep(self._settings.ack_wait / 4)
            self._lanes.forget_overdue(time.monotonic())
            for delivery in tuple(self._in_hand.values()):
                connection = self._link.current
                if connection is None:
                    break
                if delivery.settled:
                    continue
                try:
                    await connection.send(delivery.reply, b"+WPI")
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
                    self._failures = 0
                else:
                    self._trouble = code
                self._wake.set()
            return
        self._requested = max(0, self._requested - 1)
        self._failures = 0
        delivery = NatsDelivery(self._answer, message, self._settings.topic(message.subject))
        if (twin := self._in_hand.get(delivery.place)) is not None:
            # Delivered again while in hand (its heartbeat was late): one of them is enough, and is
            # answered where the server now expects it.
            twin.reply = delivery.reply
        elif self._stopping:
            await self._answer(delivery.reply, nak(0.0))
        else:
            await self._take(delivery)
        self._wake.set()

    async def _take(self, delivery: NatsDelivery) -> None:
        key, place, now = delivery.key, delivery.place, time.monotonic()
        if key is not None:
            due = self._lanes.blocked_until(key, place, now)
            if due is not None:
                delay = max(due - now, 0.0) + _BEHIND
                self._lanes.away(key, place, now + delay)
                await self._answer(delivery.reply, nak(delay))
                return
        self._in_hand[place] = delivery
        if key is None or self._lanes.enter(key, place, delivery):
            self._ready.append(delivery)
            self._begin()

    # Handling

    def _begin(self) -> None:
        while self._ready and len(self._tasks) < self._concurrency and not self._stopping:
            delivery = self._ready.popleft()
            task = asyncio.create_task(self._work(delivery))
            self._tasks[task] = delivery
            task.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error(
                "consumer %s: %s in the adapter", self._consumer.name, type(error).__name__
            )
        self._begin()
        self._wake.set()

    async def _work(self, delivery: NatsDelivery) -> None:
        assert self._handle is not None
        try:
            await self._handle(delivery)
            if not delivery.settled:
                logger.warning("consumer %s: %s was not settled", self._consumer.name, delivery)
                await delivery.retry(self._again(delivery))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            ours = task is not None and task.cancelling() > 0
            # Cancelled after the grace: it goes back at once, another process begins it anew.
            await delivery.retry(0.0 if ours else self._again(delivery))
        except Exception as error:  # noqa: BLE001 - whatever a handler raises, its message comes again
            delay = self._again(delivery)
            logger.error(  # noqa: TRY400 - the text and the locals of an error may hold the payload
                "consumer %s: handling %s raised %s at %s; it comes again in %.1f s",
                self._consumer.name,
                delivery,
                type(error).__name__,
                _where(error),
                delay,
            )
            await delivery.retry(delay)
        finally:
            del self._in_hand[delivery.place]
            await self._next(delivery)

    async def _next(self, delivery: NatsDelivery) -> None:
        """Lets the next of the key go on, or sends all that are here back behind this one."""
        key = delivery.key
        if key is None:
            return
        if delivery.again_in is not None:
            now = time.monotonic()
            delay = delivery.again_in + _BEHIND
            for other in self._lanes.send_back(key, delivery.place, now + delivery.again_in):
                if self._in_hand.pop(other.place, None) is not None:
                    self._lanes.away(key, other.place, now + delay)
                    await self._answer(other.reply, nak(delay))
        following = self._lanes.leave(key)
        while following is not None and following.place not in self._in_hand:
            following = self._lanes.leave(key)  # given back already, when stopping
        if following is not None:
            self._ready.append(following)

    async def _finish(self, grace: float) -> None:
        """Gives back what was not begun, waits for the rest, and makes sure the answers leave."""
        self._stopping = True
        self._ready.clear()
        begun = {delivery.place for delivery in self._tasks.values()}
        for place in sorted(self._in_hand.keys() - begun):
            await self._answer(self._in_hand.pop(place).reply, nak(0.0))
        if self._tasks and grace:
            await asyncio.wait(self._tasks, timeout=grace)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        if self._owed:
            try:
                await self._pay(await self._link.connection())
            except BrokerUnavailable as error:
                logger.warning(
                    "consumer %s: %d answers could not be sent, so these messages come again: %s",
                    self._consumer.name,
                    len(self._owed),
                    error,
                )
                self._owed.clear()
        if (connection := self._link.current) is not None:
            await connection.flush()

    def _again(self, delivery: NatsDelivery) -> float:
        return _AGAIN.delay(delivery.attempt, seed=f"{self._seed}:{delivery.place}")


async def _until(stop: Callable[[], Awaitable[object]]) -> None:
    await stop()


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
