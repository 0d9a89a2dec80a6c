"""What a NATS server says of itself, of our stream and of our consumers, asked once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from outbox_saga.brokers.nats_connection import ApiRefused, Connection, Link
from outbox_saga.brokers.nats_consumer import durable_name
from outbox_saga.brokers.nats_settings import NatsSettings
from outbox_saga.brokers.nats_stream import STREAM_NOT_FOUND, no_stream
from outbox_saga.errors import BrokerUnavailable
from outbox_saga_relay.doctor.cases import Limits, NatsCase

_CONSUMER_NOT_FOUND = 10014


async def ask_nats(
    settings: NatsSettings, consumers: Iterable[str], topics: Iterable[str], limits: Limits
) -> NatsCase:
    """What was answered. Nothing is created, whatever the URL says.

    Raises:
        BrokerUnavailable: No server can be reached within the timeout.
    """
    link = Link(settings, name="outbox-saga doctor")
    try:
        connection = await link.connection()
        version = connection.client.connected_server_version
        stream: Mapping[str, Any] | BrokerUnavailable
        stream = await _answer(connection, f"STREAM.INFO.{settings.stream}")
        if isinstance(stream, ApiRefused) and stream.number == STREAM_NOT_FOUND:
            stream = no_stream(settings)
        return NatsCase(
            settings=settings,
            version=(version.major, version.minor, version.patch),
            max_payload=connection.client.max_payload,
            account=await _answer(connection, "INFO"),
            stream=stream,
            consumers={
                name: await _consumer(connection, settings, name) for name in sorted(consumers)
            },
            topics=tuple(sorted(topics)),
            limits=limits,
        )
    finally:
        await link.close()


async def _consumer(
    connection: Connection, settings: NatsSettings, name: str
) -> Mapping[str, Any] | BrokerUnavailable | None:
    call = f"CONSUMER.INFO.{settings.stream}.{durable_name(name)}"
    found = await _answer(connection, call)
    if isinstance(found, ApiRefused) and found.number in (_CONSUMER_NOT_FOUND, STREAM_NOT_FOUND):
        return None
    return found


async def _answer(connection: Connection, call: str) -> Mapping[str, Any] | BrokerUnavailable:
    try:
        return await connection.api(call)
    except BrokerUnavailable as error:
        return error
