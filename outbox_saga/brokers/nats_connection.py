"""One connection to NATS: replies, the JetStream API, and knowing that it is lost.

A connection that is lost is replaced by a new one, never repaired: nats-py's own reconnect keeps
what was published while it was away in a buffer and sends it later, so a publisher could not say
what happened to it. Only nats-py's public methods are used; JetStream is spoken in its JSON API,
whose numbers do not change with the client's version.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from outbox_saga.brokers.nats_settings import NatsSettings
from outbox_saga.errors import BrokerDown, BrokerUnavailable

logger = logging.getLogger(__name__)

# A silent connection is given up after three of these: a machine that vanished sends no FIN.
_PING_INTERVAL = 5
# Seconds in which the answers to what was not refused still come.
_AFTER_DENIAL = 1.0


class ApiRefused(BrokerUnavailable):
    """The JetStream API said no; `number` is its error code."""

    def __init__(self, call: str, number: int) -> None:
        super().__init__(
            f"JetStream refused {call} with error {number}; look it up in NATS's list of error "
            "codes",
            code=f"nats_{number}",
        )
        self.number = number


Take = Callable[[Msg | None], None]


def status(message: Msg) -> str | None:
    """The status in a message the server itself wrote (`503`: nobody listens there), or None."""
    # A delivered message has a reply subject, whatever headers somebody gave it.
    if message.data or message.reply or message.headers is None:
        return None
    return message.headers.get("Status")


def lost() -> BrokerDown:
    """The error of what was not sent because there is no connection."""
    return BrokerDown(
        "there is no connection to NATS; it is made again when needed", code="disconnected"
    )


class Connection:
    """One TCP connection to one server; once `lost`, it stays lost."""

    def __init__(self, settings: NatsSettings) -> None:
        self.settings = settings
        self.client = Client()
        self.lost = False
        self.heard = 0  # answers to anything: the connection leads somewhere
        self.denials = 0  # permission violations so far; the server does not say of which request
        self.last_problem: Exception | None = None
        self._inbox = ""
        self._number = 0
        self._takes: dict[str, Take] = {}
        self._subscriptions: list[Subscription] = []
        self.on_lost: set[Callable[[], None]] = set()  # called once, when the connection is lost
        self._on_denial: set[Callable[[], None]] = set()  # called at every permission violation

    async def connect(self, name: str) -> None:
        """Tries each server twice at most; raises what nats-py raises."""
        settings = self.settings
        # A URL with a user and no password carries a token (NATS's own convention).
        token = settings.user if settings.password is None else None
        await self.client.connect(
            servers=list(settings.servers),
            name=name,
            user=None if token else settings.user,
            password=settings.password,
            token=token,
            error_cb=self._error,
            disconnected_cb=self._gone,
            closed_cb=self._gone,
            # Reconnecting is allowed only because nats-py closes a broken connection in good order
            # on that path; `_gone` ends the client before it gets there.
            allow_reconnect=True,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=settings.timeout,  # type: ignore[arg-type]  # any number of seconds
            ping_interval=_PING_INTERVAL,
            # 0: nats-py buffers nothing while disconnected, and `publish` never waits inside
            # nats-py, where it would swallow a cancellation.
            pending_size=0,
        )
        self._inbox = self.client.new_inbox()
        await self.subscribe(f"{self._inbox}.*", self._reply)
        await self._round_trip()
        if self.denials:
            # Nothing would ever be confirmed, and everything stored again and again.
            raise BrokerDown(
                "this NATS user may not subscribe to _INBOX.>, where answers come; permit it",
                code="not_permitted",
            )

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]]
    ) -> Subscription:
        """A subscription that ends with this connection."""
        try:
            # The callback only files the message, so nothing piles up here; a limit would drop
            # messages silently.
            subscription = await self.client.subscribe(subject, cb=callback, pending_bytes_limit=0)
        except nats.errors.Error:
            raise lost() from None
        self._subscriptions.append(subscription)
        return subscription

    async def drain(self, subscription: Subscription) -> None:
        """Ends a subscription; what the server sent before it knew has gone to the callback."""
        if self.lost:
            return
        self._subscriptions.remove(subscription)
        try:
            async with asyncio.timeout(self.settings.timeout):
                await subscription.drain()  # type: ignore[no-untyped-call]
        except (nats.errors.Error, OSError, TimeoutError) as error:
            logger.debug("draining a NATS subscription failed: %s", type(error).__name__)
            self.mark_lost()

    def expect(self, take: Take) -> str:
        """A new reply subject; `take` gets the one message that comes there, or None at a loss."""
        self._number += 1
        reply = f"{self._inbox}.{self._number}"
        self._takes[reply] = take
        return reply

    def forget(self, reply: str) -> None:
        """Whatever still comes to this reply subject is dropped."""
        self._takes.pop(reply, None)

    async def send(self, subject: str, body: bytes, *, reply: str = "") -> None:
        """Hands one message to the connection, unacknowledged; BrokerUnavailable if it is lost."""
        if self.lost:
            raise lost()
        try:
            await self.client.publish(subject, body, reply=reply)
        except (nats.errors.Error, OSError):
            raise lost() from None

    async def api(self, call: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the JetStream API answers within the timeout; raises a BrokerUnavailable."""
        came: asyncio.Future[Msg | None] = asyncio.get_running_loop().create_future()
        reply = self.expect(lambda message: None if came.done() else came.set_result(message))
        denials, timeout = self.denials, self.settings.timeout
        request = json.dumps(body).encode() if body else b""
        try:
            await self.send(f"$JS.API.{call}", request, reply=reply)
            async with self.deadline(asyncio.get_running_loop().time() + timeout):
                message = await came
        except TimeoutError:
            if self.denials > denials:
                raise BrokerUnavailable(
                    f"this NATS user may not publish to $JS.API.{call}; permit it",
                    code="not_permitted",
                ) from None
            raise BrokerUnavailable(
                f"JetStream did not answer {call} within {timeout:g} s", code="timeout"
            ) from None
        finally:
            self.forget(reply)
        if message is None:
            raise lost()
        if status(message) == "503":
            raise BrokerDown(
                "JetStream is not enabled on this server or account", code="no_jetstream"
            )
        answer: dict[str, Any] = json.loads(message.data)
        if "error" in answer:
            raise ApiRefused(call, int(answer["error"].get("err_code", answer["error"]["code"])))
        return answer

    @asynccontextmanager
    async def deadline(self, when: float) -> AsyncIterator[None]:
        """TimeoutError at `when`, or soon after a permission violation.

        What was refused is never answered, and NATS does not say which of the requests it was.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout_at(when) as limit:

            def hurry() -> None:
                limit.reschedule(min(when, loop.time() + _AFTER_DENIAL))

            self._on_denial.add(hurry)
            try:
                yield
            finally:
                self._on_denial.discard(hurry)

    async def flush(self) -> None:
        """Everything handed over so far has reached the server, or the timeout has passed."""
        if self.lost:
            return
        try:
            async with asyncio.timeout(self.settings.timeout):
                await self._round_trip()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            logger.debug("flushing the NATS connection failed: %s", type(error).__name__)

    async def _round_trip(self) -> None:
        # Twice: nats-py writes its PING at once, past what its writing task still has to write.
        await self.client.flush()
        await self.client.flush()
        self.heard += 1

    async def hang_up(self) -> None:
        """Ends the connection, within the timeout, whatever state it is in."""
        self.mark_lost()
        try:
            async with asyncio.timeout(self.settings.timeout):
                # Before `close`, which leaves their tasks behind if writing to the dead socket
                # fails.
                while self._subscriptions and not self.client.is_closed:
                    await self._subscriptions.pop().unsubscribe()
                await self.client.close()
        except Exception as error:  # noqa: BLE001 - what is dead closes with many errors
            logger.debug("closing the NATS connection failed: %s", type(error).__name__)

    def mark_lost(self) -> None:
        """Nothing is sent or received any more; everybody who waits is told."""
        if self.lost:
            return
        self.lost = True
        takes, self._takes = self._takes, {}
        for take in takes.values():
            take(None)
        for told in tuple(self.on_lost):
            told()

    async def _reply(self, message: Msg) -> None:
        self.heard += 1
        take = self._takes.pop(message.subject, None)
        if take is not None:
            take(message)

    async def _gone(self) -> None:
        self.mark_lost()

    async def _error(self, error: Exception) -> None:
        # a server that says no closes the connection, and the client may see a reset after it
        if not (self.last_problem is not None and isinstance(error, OSError)):
            self.last_problem = error
        # nats-py reports a permission violation as a plain Error on a connection that stays up,
        # and as nothing else.
        if type(error) is nats.errors.Error and self.client.is_connected:
            self.denials += 1
            logger.warning("NATS refused a request of ours: %s", error)
            for told in tuple(self._on_denial):
                told()
        else:
            logger.debug("NATS connection: %s", type(error).__name__)


class Link:
    """At most one connection at a time, made when it is needed."""

    def __init__(self, settings: NatsSettings, *, name: str) -> None:
        self._settings = settings
        self._name = name
        self._connection: Connection | None = None
        self._making = asyncio.Lock()
        self._hanging_up: set[asyncio.Task[None]] = set()

    @property
    def current(self) -> Connection | None:
        """The connection if there is one that is not lost."""
        connection = self._connection
        return None if connection is None or connection.lost else connection

    async def connection(self) -> Connection:
        """The connection, made now if there is none; BrokerUnavailable within the timeout."""
        async with self._making:
            if (connection := self.current) is None:
                connection = self._connection = await self._connect()
            return connection

    async def close(self) -> None:
        """Ends the connection; safe to call twice."""
        async with self._making:
            if self._connection is not None:
                self._connection.mark_lost()
                self._connection = None
        while self._hanging_up:
            await asyncio.wait(self._hanging_up)

    async def _connect(self) -> Connection:
        connection = Connection(self._settings)
        connection.on_lost.add(lambda: self._hang_up(connection))
        try:
            async with asyncio.timeout(self._settings.timeout):
                await connection.connect(self._name)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            connection.mark_lost()
            # What the last server said tells more than "no servers"; neither carries credentials.
            why = connection.last_problem or error
            said_no = isinstance(why, nats.errors.Error) and not isinstance(why, TimeoutError)
            raise BrokerDown(
                f"NATS at {', '.join(self._settings.servers)} cannot be reached "
                f"({type(why).__name__}: {why}); check that "
                "it runs and takes these credentials",
                code="refused" if said_no else "unreachable",
            ) from None
        except BaseException:
            connection.mark_lost()
            raise
        return connection

    def _hang_up(self, connection: Connection) -> None:
        task = asyncio.get_running_loop().create_task(connection.hang_up())
        self._hanging_up.add(task)
        task.add_done_callback(self._hanging_up.discard)
