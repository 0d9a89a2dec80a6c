"""Publishing to JetStream: a batch at once, each outcome from its own acknowledgement."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

import nats.errors
from nats.aio.msg import Msg

from outbox_saga.brokers.contract import (
    ACCEPTED,
    CONNECTION_LOST,
    Accepted,
    Outcome,
    Refused,
    Settled,
)
from outbox_saga.brokers.nats_connection import Connection, Link, lost, status
from outbox_saga.brokers.nats_settings import NatsSettings
from outbox_saga.brokers.nats_stream import (
    Routes,
    find_stream,
    no_route,
    no_stream,
    warn_of_losses,
)
from outbox_saga.brokers.outgoing import check_outgoing, outgoing_headers, unsendable
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import (
    BrokerError,
    BrokerUnavailable,
    PublishUnconfirmed,
    Unpublishable,
)

logger = logging.getLogger(__name__)

# Error codes of JetStream (server/errors.json); what is not named here is taken for transient.
_TOO_LARGE: Final = {
    10054,  # message size exceeds maximum allowed (the stream's max_msg_size)
    10097,  # header size exceeds maximum allowed of 64k
}
_FULL: Final = {
    10002,  # resource limits exceeded for account
    10023,  # insufficient resources
    10028,  # JetStream memory resource limits exceeded for server
    10047,  # insufficient storage resources available
    10077,  # the stream's store refused: maximum messages or bytes exceeded, with discard=new
}
_OTHER_STREAM: Final = 10060  # expected stream does not match


# The part of the timeout after which one to whom nobody answered asks whether anybody does.
_ASKING: Final = 0.75

# Every so many messages others get their turn: nats-py writes to the socket in a task of its own.
_BREATH = 50


class NatsPublisher:
    """Publishes to one stream; `Accepted` means its leader (and its quorum) stored the message.

    An open connection is made again when it is needed after a loss; what was on its way then is
    PublishUnconfirmed.
    """

    def __init__(self, settings: NatsSettings) -> None:
        self._settings = settings
        self._link = Link(settings, name="outbox-saga publisher")
        self._prepared: Connection | None = None
        self._looked_at = False
        self._may_look = True

    async def open(self) -> None:
        """Connects; raises BrokerUnavailable when the broker cannot be reached within the timeout.

        A stream that is missing without `create=1` is only logged: it may come later.
        """
        connection = await self._link.connection()
        try:
            await self._prepare(connection)
        except BrokerUnavailable as error:
            if error.code != "no_stream":
                raise
            logger.warning("%s", error)

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        """One outcome per envelope, in their order, within the timeout."""
        deadline = asyncio.get_running_loop().time() + self._settings.timeout
        try:
            connection = await self._link.connection()
            await self._prepare(connection)
        except BrokerUnavailable as error:
            return [Refused(error)] * len(envelopes)
        batch = _Batch(self._settings, len(envelopes), settled)
        denials = connection.denials
        try:
            async with connection.deadline(deadline):
                await batch.send(connection, envelopes)
                await self._until_settled(connection, batch, deadline)
        except TimeoutError:
            silent = connection.heard == batch.heard and batch.replies
            if silent and connection.denials == denials:
                # Not one answer, to nobody: the connection may lead nowhere, and only a new one
                # can tell.
                connection.mark_lost()
        finally:
            for reply in batch.replies:
                connection.forget(reply)
        if batch.no_stream:
            self._prepared = None
        return batch.outcomes(denied=connection.denials > denials)

    async def close(self) -> None:
        """Disconnects; safe to call twice."""
        await self._link.close()

    async def _until_settled(self, connection: Connection, batch: _Batch, deadline: float) -> None:
        """Until something has become of each; what only the stream can tell is asked meanwhile."""
        asking = deadline - self._settings.timeout * (1 - _ASKING)
        while batch.open:
            batch.news.clear()
            if batch.unheard:
                batch.route(await self._routes(connection))
                continue
            try:
                async with asyncio.timeout_at(asking):
                    await batch.news.wait()
            except TimeoutError:
                asking = deadline  # once
                if connection.heard == batch.heard:
                    await self._ask(connection, batch)

    async def _routes(self, connection: Connection) -> Routes:
        """The subjects that the stream takes; None when there is none, as far as can be seen."""
        if not self._may_look:
            return None
        try:
            config = await find_stream(connection)
        except BrokerUnavailable:
            return None
        return tuple(config.get("subjects") or ())

    async def _ask(self, connection: Connection, batch: _Batch) -> None:
        """Somebody who listens to a subject and never answers must not pass for a dead broker."""
        if not self._may_look:
            await connection.flush()
            return
        reply = connection.expect(lambda _: None)
        batch.replies.append(reply)
        with contextlib.suppress(BrokerUnavailable):  # lost meanwhile: everybody has been told
            await connection.send(f"$JS.API.STREAM.INFO.{self._settings.stream}", b"", reply=reply)

    async def _prepare(self, connection: Connection) -> None:
        if self._prepared is connection or (self._looked_at and not self._settings.create):
            return
        try:
            config = await find_stream(connection)
        except BrokerUnavailable as error:
            if error.code == "no_stream":
                self._looked_at = True
                raise
            if error.code != "not_permitted":
                raise
            # A user that may publish and nothing else is good practice: no reason to stop.
            self._may_look = False
            logger.warning(
                "this NATS user may not look at stream %s; its settings are unchecked",
                self._settings.stream,
            )
        else:
            if not self._looked_at:
                warn_of_losses(config)
        self._looked_at = True
        self._prepared = connection


class _Batch:
    """The messages of one `publish` call and what became of each."""

    def __init__(self, settings: NatsSettings, size: int, told: Settled | None) -> None:
        self.open = size  # of which nothing is known yet
        self.news = asyncio.Event()  # all are settled, or one is unheard
        self.unheard: dict[int, str] = {}  # nobody listens to their subjects
        self.heard = 0  # by the connection, when all were sent
        self.replies: list[str] = []
        self.no_stream = False
        self._told = told
        self._settings = settings
        self._outcomes: list[Outcome | None] = [None] * size
        self._sent = 0

    async def send(self, connection: Connection, envelopes: Sequence[Envelope]) -> None:
        """Hands all of them to the connection; what cannot be sent is settled here."""
        self.heard = connection.heard
        for index, envelope in enumerate(envelopes):
            if index % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
            try:
                await self._send(connection, index, envelope)
            except BrokerError as error:
                self._settle(index, Refused(error))
            except (AttributeError, TypeError, ValueError) as error:  # metadata of another shape
                self._settle(index, Refused(unsendable(envelope, error)))
            self._sent = index + 1
        self.heard = connection.heard

    def route(self, routes: Routes) -> None:
        """Of those that nobody listened to it is known now why."""
        unheard, self.unheard = self.unheard, {}
        for index, subject in unheard.items():
            error = no_route(self._settings, subject, routes)
            self.no_stream |= error.code == "no_stream"
            self._settle(index, Refused(error))

    def outcomes(self, *, denied: bool) -> list[Outcome]:
        """One per envelope; what is not settled by now is ambiguous."""
        return [
            outcome if outcome is not None else self._unsettled(index, denied=denied)
            for index, outcome in enumerate(self._outcomes)
        ]

    async def _send(self, connection: Connection, index: int, envelope: Envelope) -> None:
        subject, headers = _address(envelope, self._settings, connection.client.max_payload)
        if connection.lost:
            raise lost()
        reply = connection.expect(partial(self._take, index, subject))
        self.replies.append(reply)
        try:
            await connection.client.publish(subject, envelope.body, reply=reply, headers=headers)
        except nats.errors.Error:
            # Closed, draining, or disconnected without a buffer: nothing was taken.
            connection.forget(reply)
            raise lost() from None
        except OSError as error:
            connection.forget(reply)
            raise PublishUnconfirmed(
                f"the connection to NATS broke while sending ({type(error).__name__})",
                code=CONNECTION_LOST,
            ) from None

    def _take(self, index: int, subject: str, message: Msg | None) -> None:
        if message is None:
            error = PublishUnconfirmed(
                "the connection to NATS was lost before its answer", code=CONNECTION_LOST
            )
            self._settle(index, Refused(error))
            return
        if status(message) == "503":
            self.unheard[index] = subject
            self.news.set()
            return
        outcome = _read(message, self._settings)
        if isinstance(outcome, Refused) and outcome.error.code == "no_stream":
            self.no_stream = True
        self._settle(index, outcome)

    def _settle(self, index: int, outcome: Outcome) -> None:
        if self._outcomes[index] is None:
            self._outcomes[index] = outcome
            self.open -= 1
            if self._told is not None:
                self._told(index, outcome)
            if self.open == 0:
                self.news.set()

    def _unsettled(self, index: int, *, denied: bool) -> Refused:
        if index in self.unheard:
            self.no_stream = True
            return Refused(no_stream(self._settings))
        if index >= self._sent:
            return Refused(
                BrokerUnavailable(
                    "the connection to NATS was too slow to send it in time", code="timeout"
                )
            )
        if denied:
            return Refused(
                BrokerUnavailable(
                    f"this NATS user may not publish to all of {self._settings.prefix}.>",
                    code="not_permitted",
                )
            )
        return Refused(
            PublishUnconfirmed(
                f"NATS did not answer within {self._settings.timeout:g} s", code="timeout"
            )
        )


def _address(
    envelope: Envelope, settings: NatsSettings, max_payload: int
) -> tuple[str, dict[str, str]]:
    """Subject and headers; Unpublishable for what makes the server cut the connection."""
    check_outgoing(envelope)  # a literal `*` would be stored as such
    subject = settings.subject(envelope.topic)
    headers = outgoing_headers(envelope)
    # The stream drops repeats of it within its window, and an operator's replay is none of those.
    repeat = f":{envelope.replay:d}" if envelope.replay else ""
    headers["Nats-Msg-Id"] = f"{envelope.id}{repeat}"
    headers["Nats-Expected-Stream"] = settings.stream
    # "NATS/1.0\r\n", then "name: value\r\n" each, then "\r\n": the server counts them with the
    # body.
    size = len(envelope.body) + 12 + sum(len(n) + len(v.encode()) + 4 for n, v in headers.items())
    limit = largest(max_payload)
    if size > limit:
        raise Unpublishable(
            f"its body and headers are {size} bytes and the server takes {limit}; raise "
            "max_payload there, or send a "
            "reference instead",
            code="too_large",
        )
    return subject, headers


def largest(max_payload: int) -> int:
    """Bytes of body and headers that are sent at most, given the server's `max_payload`.

    The rest is for the headers that mirrors, sources and republishing add: a message they push
    over the limit is stored and can be delivered nowhere.
    """
    return max_payload - min(4096, max_payload // 16)


def _read(message: Msg, settings: NatsSettings) -> Outcome:
    try:
        answer = json.loads(message.data)
        error = answer.get("error")
        if error is None and answer["stream"] == settings.stream and answer["seq"] >= 0:
            return Accepted(duplicate=True) if answer.get("duplicate") else ACCEPTED
        if error is not None:
            return Refused(_refusal(int(error.get("err_code", error["code"])), settings))
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # not JSON, or not JetStream's: told below
    return Refused(
        PublishUnconfirmed(
            f"something that is not the stream {settings.stream} answered on its subject; find "
            "who subscribes to "
            f"{settings.prefix}.> and replies",
            code="not_an_ack",
        )
    )


def _refusal(number: int, settings: NatsSettings) -> BrokerError:
    stream = settings.stream
    if number in _TOO_LARGE:
        return Unpublishable(
            f"stream {stream} takes no message of this size; raise its max_msg_size, or send a "
            "reference instead",
            code="too_large",
        )
    if number in _FULL:
        return BrokerUnavailable(
            f"stream {stream} is full (NATS error {number}); raise its limits, or let consumers "
            "remove messages",
            code="stream_full",
        )
    if number == _OTHER_STREAM:
        return BrokerUnavailable(
            f"{settings.prefix}.> belongs to another stream than {stream}; put its name into the "
            "broker's URL",
            code="no_stream",
        )
    return BrokerUnavailable(
        f"stream {stream} refused it with NATS error {number}", code=f"nats_{number}"
    )
