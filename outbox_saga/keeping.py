"""How a message is kept while it waits, and how it is read again: byte for byte.

One whose headers cannot be read is kept as it came, so that a later release may read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import unquote
from uuid import UUID

from outbox_saga.envelopes import Envelope, check_key
from outbox_saga.errors import MessageRefused
from outbox_saga.ids import altered_id
from outbox_saga.payloads import storable
from outbox_saga.queries.inbox import body_hash
from outbox_saga.queries.waiting import HELD_KEY, Delivered, with_held_key

RAW = "raw"  # in the headers of a row: the broker's headers, as they came
ANSWERS_AS = "answers_as"  # in the headers of a row: the service that would have answered
MAX_TOPIC = 255


def keep(consumer: str, envelope: Envelope, *, answers_as: str | None = None) -> Delivered:
    """The message as its row keeps it.

    Args:
        answers_as: The service, if this consumer carries commands out and answers them.
    """
    key = envelope.key
    try:
        headers = envelope.metadata()
        check_key(key)
    except MessageRefused as refused:  # a header of others, or a key, that no column takes
        headers = json.dumps({RAW: envelope.to_headers()})
        key = None if refused.path == "key" else key
    if answers_as is not None:
        headers = json.dumps({**json.loads(headers), ANSWERS_AS: answers_as})
    return Delivered(consumer, envelope.id, envelope.topic, key, headers, envelope.body)


def keep_unread(
    consumer: str, topic: str, headers: Mapping[str, str], body: bytes
) -> Delivered | None:
    """A message that cannot be read, as its row keeps it; None when not even its id can be."""
    ours = {name.lower(): value for name, value in headers.items()}
    try:
        id_ = UUID(ours.get("ce-id", ""))
    except ValueError:
        return None
    try:
        key = check_key(unquote(ours["ce-partitionkey"])) if "ce-partitionkey" in ours else None
    except MessageRefused:
        key = None
    kept = json.dumps({RAW: dict(headers)})
    where = storable(topic, MAX_TOPIC).encode()[:MAX_TOPIC].decode("utf-8", "ignore")
    return Delivered(consumer, id_, where, key, kept, body)


def holding_up_nothing(delivered: Delivered) -> Delivered:
    """The same, but no later message of its key stands behind it."""
    if delivered.key is None:
        return delivered
    headers = with_held_key(delivered.headers, delivered.key)
    return replace(delivered, key=None, headers=headers)


def answers_as(headers: str) -> str | None:
    """The service that carries the message of this row out, and answers; None: who only listens,
    or nobody knows.
    """
    found = json.loads(headers).get(ANSWERS_AS)
    return found if isinstance(found, str) else None


def altered(delivered: Delivered) -> Delivered:
    """The same under an id of its own, by which it can be handled after all, or discarded.

    It holds up nothing: by its id, its place in the order is in the past.
    """
    id_ = altered_id(delivered.message_id, body_hash(delivered.body))
    return replace(holding_up_nothing(delivered), message_id=id_)


def opened(id_: UUID, topic: str, key: str | None, headers: str, body: bytes) -> Envelope:
    """The message of this row.

    Raises MessageRefused for one that still cannot be read.
    """
    entries = json.loads(headers)
    if RAW in entries:
        envelope = Envelope.from_headers(topic, entries[RAW], body)
        return replace(envelope, id=id_, key=check_key(envelope.key))
    return Envelope.from_row(id_, topic, key or entries.get(HELD_KEY), headers, body)
