"""What a broker carries for the agency: each message as a line of a log, and which ones get lost.

What is lost is told by the message itself, so that no process has to remember it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection
from typing import Any
from uuid import UUID

from outbox_saga.commanding import ANSWER, Answer, Asked
from outbox_saga.envelopes import Envelope

Loses = Callable[[Envelope], bool]


def posted(envelope: Envelope) -> dict[str, Any]:
    """As a line."""
    return {
        "id": str(envelope.id),
        "topic": envelope.topic,
        "key": envelope.key,
        "type": envelope.type,
        "kind": envelope.kind,
        "body": base64.b64encode(envelope.body).decode(),
        "source": envelope.source,
        "correlation_id": envelope.correlation_id,
        "causation_id": envelope.causation_id,
        "headers": dict(envelope.headers),
        "replay": envelope.replay,
    }


def read(line: dict[str, Any]) -> Envelope:
    """The envelope of such a line."""
    given = line | {"id": UUID(line["id"]), "body": base64.b64decode(line["body"])}
    return Envelope(**given)


def _commands(*attempts: int) -> Loses:
    def loses(envelope: Envelope) -> bool:
        asked = Asked.of(envelope)
        return asked is not None and asked.direction == "do" and asked.attempt in attempts

    return loses


def _first_answer(envelope: Envelope) -> bool:
    return envelope.type == ANSWER and Answer.from_body(envelope.body, version=1).attempt == 1


LOSES: dict[str, Loses] = {  # by saga
    "command-lost": _commands(1),
    "command-unanswered": _commands(1, 2),
    "answer-lost": _first_answer,
}


def lost(envelope: Envelope, sagas: Collection[str]) -> bool:
    """Whether it never arrives, in the journey of one of these sagas."""
    return any(LOSES[name](envelope) for name in sagas if name in LOSES)
