"""The durable JetStream consumer behind a subscription: its name, its creation, its updates."""

from __future__ import annotations

import logging
from typing import Any, Final
from urllib.parse import quote

from outbox_saga.brokers.contract import Subscription
from outbox_saga.brokers.nats_connection import ApiRefused, Connection
from outbox_saga.brokers.nats_settings import NatsSettings
from outbox_saga.brokers.nats_stream import STREAM_NOT_FOUND, find_stream
from outbox_saga.errors import ConfigurationError, MessageRefused
from outbox_saga.messages import check_topic

logger = logging.getLogger(__name__)

# "none" settles what it delivers, "all" everything before what is acknowledged as well
ACK_POLICY: Final = "explicit"
_CONSUMER_NOT_FOUND: Final = 10014
_NANOSECONDS: Final = 1_000_000_000
# Messages in the hands of all processes of one consumer, those sent back with a delay included.
_MAX_ACK_PENDING: Final = 1000


def durable_name(consumer: str) -> str:
    """The consumer's name as JetStream takes it; `urllib.parse.unquote` gives the name back.

    Raises:
        ConfigurationError: One that is empty or too long.
    """
    name = quote(consumer, safe="").replace(".", "%2E").replace("~", "%7E")
    if not 0 < len(name) <= 255:
        raise ConfigurationError(
            f"the consumer name {consumer[:80]!r} has {len(name)} characters for NATS, where each "
            "one but ASCII letters, "
            "digits, '_' and '-' counts at least three; use 1 to 255"
        )
    return name


class DurableConsumer:
    """One durable consumer of the stream; it outlives connections, processes and servers."""

    def __init__(self, settings: NatsSettings, subscription: Subscription) -> None:
        for topic in subscription.topics:
            try:
                check_topic(topic)
            except MessageRefused as error:
                raise ConfigurationError(error.reason) from None
        if not subscription.topics:
            raise ConfigurationError(
                f"consumer {subscription.consumer!r} listens to no topic; give one"
            )
        if subscription.concurrency < 1:
            raise ConfigurationError(f"concurrency is {subscription.concurrency}; use at least 1")
        self.name = durable_name(subscription.consumer)
        self._settings = settings
        self._wanted: dict[str, Any] = {
            "filter_subjects": sorted({settings.subject(topic) for topic in subscription.topics}),
            "ack_wait": int(settings.ack_wait * _NANOSECONDS),
            "max_ack_pending": max(_MAX_ACK_PENDING, 8 * subscription.concurrency),
        }
        self._updated = False

    @property
    def next_subject(self) -> str:
        """Where its messages are asked for."""
        return f"$JS.API.CONSUMER.MSG.NEXT.{self._settings.stream}.{self.name}"

    async def prepare(self, connection: Connection) -> None:
        """The consumer is there, and its stream if `create=1`; else BrokerUnavailable.

        Raises:
            ConfigurationError: Somebody made it with an `ack_policy` under which messages are
                lost; no update can change that.
        """
        settings = self._settings
        try:
            info = await connection.api(f"CONSUMER.INFO.{settings.stream}.{self.name}")
        except ApiRefused as refused:
            if refused.number == STREAM_NOT_FOUND:
                await find_stream(connection)  # creates it, or says that there is none
            elif refused.number != _CONSUMER_NOT_FOUND:
                raise
            await self._write(connection, {})
            logger.info(
                "created the JetStream consumer %s on stream %s", self.name, settings.stream
            )
        else:
            self._refuse_loss(info["config"])
            await self._update(connection, info["config"])
        self._updated = True

    def _refuse_loss(self, config: dict[str, Any]) -> None:
        policy = config.get("ack_policy", ACK_POLICY)
        if policy != ACK_POLICY:
            raise ConfigurationError(
                f"the JetStream consumer {self.name} has ack_policy={policy}: messages count as "
                "handled before they are; delete it, and it is made anew with "
                f"ack_policy={ACK_POLICY} and begins at the start of the stream (the inbox drops "
                "what was handled)"
            )

    async def _update(self, connection: Connection, config: dict[str, Any]) -> None:
        # Once a start only: while two releases with different topics run side by side, each
        # reconnect would otherwise turn the topics back, and messages pass a consumer unseen while
        # their topic is not in its filter.
        if self._updated:
            return
        there = {**config, "filter_subjects": _filters(config)}
        if all(there.get(name) == value for name, value in self._wanted.items()):
            return
        if there["filter_subjects"] != self._wanted["filter_subjects"]:
            logger.warning(
                "consumer %s listened to %s and listens to %s from now on; messages of a new "
                "topic that lie before its "
                "place in the stream do not come",
                self.name,
                ", ".join(there["filter_subjects"]),
                ", ".join(self._wanted["filter_subjects"]),
            )
        config.pop("filter_subject", None)
        await self._write(connection, config)

    async def _write(self, connection: Connection, config: dict[str, Any]) -> None:
        wanted = {
            "name": self.name,
            "durable_name": self.name,
            "deliver_policy": "all",
            "ack_policy": ACK_POLICY,
            "replay_policy": "instant",
            "max_deliver": -1,
            **config,
            **self._wanted,
        }
        await connection.api(
            f"CONSUMER.CREATE.{self._settings.stream}.{self.name}",
            {"stream_name": self._settings.stream, "config": wanted},
        )


def _filters(config: dict[str, Any]) -> list[str]:
    single = config.get("filter_subject")
    return sorted(config.get("filter_subjects") or ([single] if single else []))
