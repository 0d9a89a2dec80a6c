"""What no broker carries, refused by every adapter in the same words.

A row passed these checks when it was published; but rows may come from elsewhere, and a broker
that is told of such a message may end the connection, and what is on its way with it.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from outbox_saga.envelopes import Envelope
from outbox_saga.errors import BrokerError, MessageRefused, PublishUnconfirmed, Unpublishable
from outbox_saga.messages import check_topic

_PRINTABLE: Final = "".join(chr(c) for c in range(0x21, 0x7F))
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def check_outgoing(envelope: Envelope) -> None:
    """Raises Unpublishable for a topic that is no address, or a header that is no header."""
    try:
        check_topic(envelope.topic)
    except MessageRefused as error:
        raise Unpublishable(error.reason, code="invalid_topic") from None
    if not all(map(_HEADER_NAME.fullmatch, envelope.headers)):
        raise Unpublishable("the name of a header is no token (RFC 9110)", code="invalid_headers")


def unsendable(envelope: Envelope, error: Exception) -> BrokerError:
    """What becomes of a message that an adapter itself failed on, and of no other one.

    Unpublishable when it is not as we write them: it would fail so every time.
    """
    if (reason := envelope.ill_typed()) is not None:
        return Unpublishable(reason, code="unreadable")
    return PublishUnconfirmed(
        f"the publisher raised {type(error).__name__}", code="publisher_failed"
    )


def outgoing_headers(envelope: Envelope) -> dict[str, str]:
    """All headers in ASCII, as carriers keep them that trim spaces (HTTP) or fold lines (NATS)."""
    return {name: _kept(value) for name, value in envelope.to_headers().items()}


def _kept(value: str) -> str:
    if value.isprintable() and value == value.strip():
        return value
    return quote(value, safe=_PRINTABLE)
