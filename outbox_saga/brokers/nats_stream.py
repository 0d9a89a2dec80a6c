"""The JetStream stream behind an outbox: found or created, and checked for lossy settings."""

from __future__ import annotations

import logging
from typing import Any, TypeAlias

from outbox_saga.brokers.nats_connection import ApiRefused, Connection
from outbox_saga.brokers.nats_settings import NatsSettings
from outbox_saga.errors import BrokerDown, BrokerUnavailable

logger = logging.getLogger(__name__)

STREAM_NOT_FOUND = 10059
_STREAM_NAME_IN_USE = 10058
_NANOSECONDS = 1_000_000_000

Routes: TypeAlias = tuple[str, ...] | None  # the subjects a stream takes; None: there is no stream


async def find_stream(connection: Connection) -> dict[str, Any]:
    """The stream's configuration, of the stream created now if it was missing and `create=1`.

    Raises:
        BrokerDown: With code `no_stream` when there is none and none is to be created.
    """
    settings = connection.settings
    try:
        info = await connection.api(f"STREAM.INFO.{settings.stream}")
    except ApiRefused as refused:
        if refused.number != STREAM_NOT_FOUND:
            raise
        if not settings.create:
            raise no_stream(settings) from None
        info = await _create(connection)
    config: dict[str, Any] = info["config"]
    return config


def no_stream(settings: NatsSettings) -> BrokerDown:
    """The error for a missing stream."""
    return BrokerDown(
        f"no JetStream stream takes {settings.prefix}.> as {settings.stream}; create it, or let "
        "create=1 in the "
        "broker's URL do it",
        code="no_stream",
    )


def no_route(settings: NatsSettings, subject: str, routes: Routes) -> BrokerUnavailable:
    """The error for a message that nobody listened to.

    A stream that is there and takes other subjects is no reason to stop sending those.
    """
    if routes is None or any(covers(pattern, subject) for pattern in routes):
        return no_stream(settings)  # or it has come a moment later: ask again
    return BrokerUnavailable(
        f"the stream {settings.stream} does not take the subject {subject}; add it to its "
        "subjects",
        code="no_route",
    )


def covers(pattern: str, subject: str) -> bool:
    """Every subject that the second matches, the first matches too."""
    wide, narrow = pattern.split("."), subject.split(".")
    for index, part in enumerate(wide):
        if part == ">":
            return len(narrow) > index
        if index >= len(narrow) or narrow[index] == ">":
            return False
        if part not in ("*", narrow[index]):
            return False
    return len(wide) == len(narrow)


async def _create(connection: Connection) -> dict[str, Any]:
    settings = connection.settings
    config = {
        "name": settings.stream,
        "subjects": [f"{settings.prefix}.>"],
        "retention": "limits",
        "storage": "file",
        # "old" would drop acknowledged messages at whatever limit somebody sets later; "new"
        # refuses, and the outbox keeps what was refused.
        "discard": "new",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msg_size": -1,
        "num_replicas": settings.replicas,
        "duplicate_window": int(settings.dedup_window * _NANOSECONDS),
    }
    try:
        info = await connection.api(f"STREAM.CREATE.{settings.stream}", config)
    except ApiRefused as refused:
        if refused.number != _STREAM_NAME_IN_USE:  # somebody else was faster, with other settings
            raise
        return await connection.api(f"STREAM.INFO.{settings.stream}")
    logger.info("created the JetStream stream %s for %s.>", settings.stream, settings.prefix)
    return info


def what_loses_messages(config: dict[str, Any]) -> list[str]:
    """Every setting of this stream under which it can lose a message that it acknowledged."""
    found = []
    if config.get("max_age", 0) > 0:
        found.append("max_age")  # whatever `discard` says
    if config.get("discard", "old") == "old":
        found += [
            f"discard=old with {limit}"
            for limit in ("max_msgs", "max_bytes", "max_msgs_per_subject")
            if config.get(limit, -1) > 0
        ]
    elif config.get("max_msgs_per_subject", -1) > 0 and not config.get("discard_new_per_subject"):
        # it drops the oldest of its subject all the same, unless it is told to refuse there too
        found.append("max_msgs_per_subject without discard_new_per_subject")
    if config.get("storage") == "memory":
        found.append("storage=memory")
    if config.get("retention") == "interest":
        found.append(
            "retention=interest"
        )  # what nobody is subscribed to is acknowledged and dropped
    if config.get("no_ack"):
        found.append("no_ack")
    return found


def warn_of_losses(config: dict[str, Any]) -> None:
    """One warning that names every such setting; none when there is none."""
    if found := what_loses_messages(config):
        logger.warning(
            "the JetStream stream %s can lose messages it acknowledged: %s; use file storage, "
            "limits or workqueue "
            "retention and discard=new",
            config.get("name"),
            ", ".join(found),
        )
