"""A message becomes an envelope, wholly checked.

What is let through, every database and broker carries.
"""

from __future__ import annotations

from collections.abc import Mapping

from outbox_saga.envelopes.envelope import KINDS, Envelope, filled
from outbox_saga.envelopes.header_rules import check_headers, check_key, check_line
from outbox_saga.errors import MessageRefused
from outbox_saga.ids import new_id
from outbox_saga.messages import Kind, Message, check_topic, check_type
from outbox_saga.payloads import load_json

MAX_BODY = 256 * 1024


def seal(
    message: Message,
    *,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    source: str = "outbox-saga",
    correlation_id: str | None = None,
    causation_id: str | None = None,
    topic: str | None = None,
    max_body: int = MAX_BODY,
) -> Envelope:
    """The envelope of a message, wholly checked.

    What it lets through, every database and broker carries.

    Raises:
        MessageRefused: With the path of the value that cannot travel; nothing was written.
    """
    # pydantic's isinstance is Python, and asks the class for virtual subclasses
    if Message not in type(message).__mro__:
        raise MessageRefused(
            "message",
            f"is a {type(message).__name__}; publish an instance of an Event, Command or Reply "
            "class",
        )
    where = topic if topic is not None else message.topic
    if where is None:
        raise MessageRefused(
            "topic", f'{type(message).__name__} has none; declare `class X(Event, topic="orders")`'
        )
    check_line("source", source)
    return _sealed(
        message.to_body(),
        where if topic is None else check_topic(where),  # the class checked its own
        key,
        message.type_name,
        message.kind,
        message.version,
        "application/json",
        source,
        correlation_id,
        causation_id,
        headers,
        max_body,
    )


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def seal_body(
    body: bytes,
    *,
    type_: str,
    topic: str,
    kind: Kind = "event",
    version: int = 1,
    content_type: str = "application/json",
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    source: str = "outbox-saga",
    correlation_id: str | None = None,
    causation_id: str | None = None,
    max_body: int = MAX_BODY,
) -> Envelope:
    """The envelope of a ready body: carried as it is.

    JSON is read once, strictly, and refused if readers would differ.
    """
    check_line("content_type", content_type)
    check_line("source", source)
    if kind not in KINDS:
        raise MessageRefused("kind", f"{kind!r} is none; use event, command or reply")
    if type(version) is not int or version < 1:
        raise MessageRefused("version", f"{version!r} is not a version: count from 1")
    if not isinstance(body, bytes):
        raise MessageRefused("body", f"is a {type(body).__name__}; give bytes")
    envelope = _sealed(
        body,
        check_topic(topic),
        key,
        check_type(type_),
        kind,
        version,
        content_type,
        source,
        correlation_id,
        causation_id,
        headers,
        max_body,
    )
    if _is_json(content_type):
        load_json(body)
    return envelope


def _sealed(
    body: bytes,
    topic: str,
    key: str | None,
    type_: str,
    kind: Kind,
    version: int,
    content_type: str,
    source: str,
    correlation_id: str | None,
    causation_id: str | None,
    headers: Mapping[str, str] | None,
    max_body: int,
) -> Envelope:
    """The envelope; checks what has not been checked by now: key, headers, size, whose message."""
    if len(body) > max_body:
        raise MessageRefused(
            "$", f"the body is {len(body)} bytes, more than {max_body}; send a reference instead"
        )
    id_ = new_id()
    if correlation_id is None:
        correlation_id = str(id_)
    else:
        check_line("correlation_id", correlation_id)
    if causation_id is not None:
        check_line("causation_id", causation_id)
    return filled(
        id_,
        topic,
        check_key(key),
        type_,
        body,
        kind,
        version,
        content_type,
        source,
        correlation_id,
        causation_id,
        check_headers(headers) if headers else {},
        0,
    )
