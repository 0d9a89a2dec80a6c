"""The envelope.

A message's body with everything it needs on the way, and how it stands in headers.

In headers it is a CloudEvent in binary mode (CloudEvents 1.0.2): `ce-id`, `ce-type`, `ce-source`,
with the extensions `ce-correlationid`, `ce-causationid`, `ce-partitionkey`, so other toolkits read
it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import unquote
from uuid import UUID

from pydantic_core import from_json, to_json

from outbox_saga.envelopes.header_rules import check_line, encode
from outbox_saga.errors import MessageRefused
from outbox_saga.messages import Kind
from outbox_saga.payloads import dump_json

_ESCAPED_NUL = "\\u0000"
KINDS: tuple[Kind, ...] = ("event", "command", "reply")
_TYPES: dict[str, Any] = {
    "id": UUID,
    "topic": str,
    "key": str | None,
    "type": str,
    "body": bytes,
    "kind": str,
    "version": int,
    "content_type": str,
    "source": str,
    "correlation_id": str,
    "causation_id": str | None,
    "headers": Mapping,
    "replay": int,
}


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
        return filled(
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

    def ill_typed(self) -> str | None:
        """Why nobody can send it: a part of it that is not of its type; None when all are.

        A row that others wrote may have such metadata. `from_row` does not look, because the relay
        would pay for that with every row; who fails on a message asks.
        """
        for name, type_ in _TYPES.items():
            if not isinstance(value := getattr(self, name), type_):
                return f"its {name} is a {type(value).__name__}"
        if self.kind not in KINDS:
            return f"its kind is none of {', '.join(KINDS)}"
        for value in self.headers.values():
            if not isinstance(value, str):
                return f"one of its headers is a {type(value).__name__}"
        return None

    def to_headers(self) -> dict[str, str]:
        """Binary-mode CloudEvents headers, percent-encoded where the specification asks for it."""
        headers = {name: encode(value) for name, value in self.headers.items()}
        headers["ce-specversion"] = "1.0"
        headers["ce-id"] = str(self.id)
        headers["ce-type"] = self.type
        headers["ce-source"] = encode(self.source)
        headers["ce-kind"] = self.kind
        headers["ce-dataversion"] = str(self.version)
        headers["ce-correlationid"] = encode(self.correlation_id)
        if self.causation_id is not None:
            headers["ce-causationid"] = encode(self.causation_id)
        if self.key is not None:
            headers["ce-partitionkey"] = encode(self.key)
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
                kind=KINDS[KINDS.index(kind)],  # ValueError when unknown
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
    """An envelope's fields, before it is one. See `filled`."""

    __slots__ = Envelope.__slots__


def filled(
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
