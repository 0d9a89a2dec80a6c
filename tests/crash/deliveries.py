"""What a broker has for our handlers: lines of a log, and their way through `consuming`."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any
from uuid import UUID

from outbox_saga.envelopes import Envelope
from outbox_saga.errors import MessageRefused
from outbox_saga.testing.crash_points import CrashPoints

if TYPE_CHECKING:
    from tests.crash.world import World


class Delivery:
    """What a broker brought to one consumer; what it is answered outlives us."""

    def __init__(self, world: World, points: CrashPoints, line: dict[str, Any], name: str) -> None:
        self._world, self._points, self._line, self._name = world, points, line, name
        self.attempt = 1
        self.topic: str = line["topic"]
        self.headers: dict[str, str] = {"ce-id": line["id"]}
        self.body = base64.b64decode(line["body"])

    @property
    def envelope(self) -> Envelope:
        if self._line.get("unreadable"):
            raise MessageRefused("headers", "nobody can read them")
        return arrived(self._line)

    async def acknowledge(self) -> None:
        with self._points.effect("broker: acknowledge"):
            self._world.acknowledged.append(id=self._name)

    async def retry(self, delay: float) -> None:
        """It comes again whenever somebody looks."""

    async def reject(self, reason: str) -> None:
        raise AssertionError(f"rejected: {reason}")


def arriving(envelope: Envelope, **odd: Any) -> dict[str, Any]:
    """An envelope as a line of the arrivals' log."""
    return {
        **odd,
        "id": str(envelope.id),
        "topic": envelope.topic,
        "key": envelope.key,
        "type": envelope.type,
        "body": base64.b64encode(envelope.body).decode(),
    }


def arrived(line: dict[str, Any]) -> Envelope:
    """The envelope of such a line."""
    return Envelope(
        id=UUID(line["id"]),
        topic=line["topic"],
        key=line["key"],
        type=line["type"],
        body=base64.b64decode(line["body"]),
        correlation_id=line["id"],
    )
