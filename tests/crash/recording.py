"""A broker that keeps everything in a log that outlives us, and takes not everything at once."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from outbox_saga.brokers.contract import ACCEPTED, Outcome, Refused, Settled
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import BrokerDown, PublishUnconfirmed, Unpublishable
from outbox_saga.testing.crash_points import CrashPoints

if TYPE_CHECKING:
    from tests.crash.world import World

TIMES = {"later": 2, "down": 1}  # how often such a word is not taken


class RecordingPublisher:
    """Each message it stores is an effect of its own.

    The first word of a message says what becomes of it: `poison` is never taken until somebody has
    mended the broker, `later` not at its first attempts, and at `down` the broker goes down once.
    """

    def __init__(self, world: World, points: CrashPoints) -> None:
        self._world = world
        self._points = points

    async def open(self) -> None:
        pass

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        return [self._store(envelope) for envelope in envelopes]

    def _store(self, envelope: Envelope) -> Outcome:
        refused = self._refusal(envelope)
        if refused is not None:
            with self._points.effect("broker: refuse a message"):
                self._world.refused.append(id=str(envelope.id))
            return refused
        with self._points.effect("broker: store a message"):
            self._world.broker.append(
                id=str(envelope.id),
                key=envelope.key,
                body=base64.b64encode(envelope.body).decode(),
                replay=envelope.replay,
            )
        return ACCEPTED

    def _refusal(self, envelope: Envelope) -> Refused | None:
        body: Any = json.loads(envelope.body)
        word = body["word"].partition(" ")[0]
        if word not in ("poison", *TIMES) or self._world.mended.read():
            return None
        if word == "poison":
            return Refused(Unpublishable("never", code="refused"))
        before = sum(line["id"] == str(envelope.id) for line in self._world.refused.read())
        if before >= TIMES[word]:
            return None
        if word == "down":
            return Refused(BrokerDown("not now", code="down"))
        return Refused(PublishUnconfirmed("no answer", code="timeout"))

    async def close(self) -> None:
        pass
