"""The envelope.

A message's body with everything it needs on the way, and how it stands in headers.

In headers it is a CloudEvent in binary mode (CloudEvents 1.0.2): `ce-id`, `ce-type`, `ce-source`,
with the extensions `ce-correlationid`, `ce-causationid`, `ce-partitionkey`, so other toolkits read
it too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import quote, unquote
from uuid import UUID

from pydantic_core import from_json, to_json

from outbox_saga.errors import MessageRefused
from outbox_saga.ids import new_id
from outbox_saga.messages import Kind, Message, check_topic, check_type
from outbox_saga.payloads import dump_json, load_json

MAX_BODY = 256 * 1024
MAX_KEY = 255
MAX_HEADERS = 16 * 1024

_HEADER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SAFE = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '%"')
_ESCAPED_NUL = "\\u0000"
_KINDS: tuple[Kind, ...] = ("event", "command", "reply")


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message on its way: the bytes delivered are the bytes committed.

    Args:
        id: Stays the same for every attempt and every replay; consumers drop repeats by it.
        topic: Where it goes.
        key: Messages of one key keep the order of their commits; None promises no order.
        type: The message type's name.
        body: The payload, bytes as committed.
        kind: event, command or reply.
        version: Of the body's schema.
        content_type: Of the body.
        source: The service that published it.
        correlation_id: Of the whole conversation.
        causation_id: The id of the message that caused this one.
        headers: What users and tracing add (`traceparent`).
        replay: How often an operator has sent it again; a broker that drops repeats of an id gets
            another one of it for each replay.
    """

    id: UUID
    topic: str
    key: str | None
    type: str
    body: bytes
    kind: Kind = "event"
    version: int = 1
    content_type: str = "application/json"
    source: str = "outbox-saga"
    correlation_id: str = ""
    causation_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    replay: int = 0

    def metadata(self) -> str:
        """What the outbox row keeps beside id, topic, key and body, as JSON text."""
        entries: dict[str, object] = {
            "type": self.type,
            "kind": self.kind,
            "version": self.version,
            "content_type": self.content_type,
            "source": self.source,
            "correlation_id": self.correlation_id,
        }
        if self.causation_id is not None:
            entries["causation_id"] = self.causation_id
        if self.headers:
            entries["headers"] = dict(self.headers)
        if self.replay:
            entries["replay"] = self.replay
        try:
            text = to_json(entries).decode()
        except ValueError:
            text = _ESCAPED_NUL
        if _ESCAPED_NUL in text:  # perhaps: the strict way decides, and names the value
            return dump_json(entries, path="headers").decode()
        return text

    @classmethod
    def from_row(
        cls, id_: UUID, topic: str, key: str | None, metadata: str, body: bytes
    ) -> Envelope:
        """The envelope that was committed as this outbox row."""
        try:
            # read fast: `metadata` wrote it from values that were checked at the door
            entries = from_json(metadata)
        except ValueError as error:
            raise MessageRefused("headers", f"not readable as JSON: {error}") from error
        return _filled(
            id_,
            topic,
            key,
            entries["type"],
            body,
            entries["kind"],
            entries["version"],
            entries["content_type"],
            entries["source"],
            entries["correlation_id"],
            entries.get("causation_id"),
            entries.get("headers", {}),
            entries.get("replay", 0),
        )

    def to_headers(self) -> dict[str, str]:
        """Binary-mode CloudEvents headers, percent-encoded where the specification asks for it."""
        headers = {name: _encode(value) for name, value in self.headers.items()}
        headers["ce-specversion"] = "1.0"
        headers["ce-id"] = str(self.id)
        headers["ce-type"] = self.type
        headers["ce-source"] = _encode(self.source)
        headers["ce-kind"] = self.kind
        headers["ce-dataversion"] = str(self.version)
        headers["ce-correlationid"] = _encode(self.correlation_id)
        if self.causation_id is not None:
            headers["ce-causationid"] = _encode(self.causation_id)
        if self.key is not None:
            headers["ce-partitionkey"] = _encode(self.key)
        headers["content-type"] = self.content_type
        return headers

    @classmethod
    def from_headers(cls, topic: str, headers: Mapping[str, str], body: bytes) -> Envelope:
        """The envelope behind a delivered message.

        Raises MessageRefused for one that is not ours to read.
        """
        ours = {name.lower(): value for name, value in headers.items()}
        try:
            kind = ours.get("ce-kind", "event")
            for name in ("ce-source", "ce-correlationid", "ce-causationid"):
                check_line(name, unquote(ours.get(name, "")))  # handlers send them on
            return cls(
                id=UUID(ours["ce-id"]),
                topic=topic,
                key=unquote(ours["ce-partitionkey"]) if "ce-partitionkey" in ours else None,
                type=ours["ce-type"],
                body=body,
                kind=_KINDS[_KINDS.index(kind)],  # ValueError when unknown
                version=int(ours.get("ce-dataversion", "1")),
                content_type=ours.get("content-type", "application/json"),
                source=unquote(ours.get("ce-source", "")),
                correlation_id=unquote(ours.get("ce-correlationid", "")),
                causation_id=(
                    unquote(ours["ce-causationid"]) if "ce-causationid" in ours else None
                ),
                headers={
                    name: unquote(value)
                    for name, value in ours.items()
                    if not name.startswith(("ce-", "nats-")) and name != "content-type"
                },
            )
        except (KeyError, ValueError) as error:
            raise MessageRefused(
                "headers", f"not a message of outbox-saga or CloudEvents binary mode ({error!r})"
            ) from None


class _Unfrozen:
    """An envelope's fields, before it is one. See `_filled`."""

    __slots__ = Envelope.__slots__


def _filled(
    id_: UUID,
    topic: str,
    key: str | None,
    type_: str,
    body: bytes,
    kind: Kind,
    version: int,
    content_type: str,
    source: str,
    correlation_id: str,
    causation_id: str | None,
    headers: Mapping[str, str],
    replay: int,
) -> Envelope:
    """The envelope, in a third of the time its constructor takes: a frozen dataclass sets each
    field by a call, and the relay pays that for every row.
    """
    envelope: Any = _Unfrozen()
    envelope.id = id_
    envelope.topic = topic
    envelope.key = key
    envelope.type = type_
    envelope.body = body
    envelope.kind = kind
    envelope.version = version
    envelope.content_type = content_type
    envelope.source = source
    envelope.correlation_id = correlation_id
    envelope.causation_id = causation_id
    envelope.headers = headers
    envelope.replay = replay
    envelope.__class__ = Envelope  # Python allows this, as both have the same slots
    return cast("Envelope", envelope)


def replayed(metadata: str) -> str:
    """The metadata of a row, counted as one more replay; what cannot be read stays as it is.

    Nothing else in it changes, whatever a later version has put there.
    """
    try:
        entries = from_json(metadata)
        entries["replay"] = int(entries.get("replay", 0)) + 1
        return to_json(entries).decode()
    except (AttributeError, TypeError, ValueError):
        return metadata  # no broker has ever seen it


def replays_of(metadata: str) -> int:
    """How often the row with this metadata was replayed before."""
    return int(from_json(metadata).get("replay", 0))


def _encode(text: str) -> str:
    return quote(text, safe=_SAFE + " ") if text.isascii() is False or "%" in text else text


def _is_plain(text: str) -> bool:
    """True for what nearly every key and name is: fine in every way that `check_*` asks for."""
    return type(text) is str and text.isascii() and text.isprintable() and 0 < len(text) <= MAX_KEY


def check_key(key: str | None) -> str | None:
    """The key itself.

    Raises MessageRefused for one that some database or broker could not carry.
    """
    if key is None:
        return None
    if _is_plain(key):
        return key
    if not isinstance(key, str):
        raise MessageRefused("key", f"is a {type(key).__name__}; use a string")
    try:
        size = len(key.encode("utf-8"))
    except UnicodeEncodeError:
        raise MessageRefused("key", "contains a lone surrogate, which is not UTF-8") from None
    if not 0 < size <= MAX_KEY:
        raise MessageRefused("key", f"is {size} bytes; use 1 to {MAX_KEY}, or None for no key")
    if _CONTROL.search(key):
        raise MessageRefused("key", "contains a control character; remove it")
    return key


def check_line(path: str, text: str) -> None:
    """Raises MessageRefused for what could not stand in a header, or would forge another one."""
    if _is_plain(text):
        return
    if not isinstance(text, str):
        raise MessageRefused(path, f"is a {type(text).__name__}; use a string")
    if _CONTROL.search(text):
        raise MessageRefused(path, "contains a control character; remove it")
    if not text.isascii() and path == "content_type":
        raise MessageRefused(path, "is not ASCII; a media type is")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise MessageRefused(path, "contains a lone surrogate, which is not UTF-8") from None
    if size > MAX_KEY:
        raise MessageRefused(path, f"is {size} bytes; use at most {MAX_KEY}")


def _is_header_name(name: object) -> bool:
    return isinstance(name, str) and _HEADER_NAME.fullmatch(name) is not None


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with lower-case names.

    Raises MessageRefused for what could forge another header.
    """
    if not isinstance(headers, Mapping):
        raise MessageRefused("headers", f"are a {type(headers).__name__}; use a mapping")
    checked: dict[str, str] = {}
    for name, value in headers.items():
        if not _is_header_name(name):
            raise MessageRefused(
                "headers",
                f"{name!r} is not a header name: letters, digits, '_' and '-', at most 64",
            )
        lower = name.lower()
        if lower.startswith(("ce-", "ce_", "nats-")) or lower == "content-type":
            raise MessageRefused(f"headers.{name}", "is reserved; choose another name")
        if lower in checked:
            raise MessageRefused(f"headers.{name}", "stands twice (names ignore case)")
        if not isinstance(value, str):
            raise MessageRefused(f"headers.{name}", f"is a {type(value).__name__}; use a string")
        if _CONTROL.search(value):
            raise MessageRefused(f"headers.{name}", "contains a control character; remove it")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise MessageRefused(f"headers.{name}", "contains a lone surrogate") from None
        checked[lower] = value
    # as they travel, where `é` is `%C3%A9`: a carrier's limit is in bytes
    if sum(len(n) + len(_encode(v)) for n, v in checked.items()) > MAX_HEADERS:
        raise MessageRefused(
            "headers",
            f"are longer than {MAX_HEADERS} bytes together, percent-encoded; put it in the body",
        )
    return checked


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
    if kind not in _KINDS:
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
    return _filled(
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
