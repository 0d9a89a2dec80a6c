"""The outside provider.

Takes money and gives it back, once per idempotency key, and keeps a ledger of every request.
"""

from __future__ import annotations

import json
import threading
from typing import Any

from outbox_saga import HandlerContext, SyncHandlerContext
from outbox_saga.saga.context import _Context
from outbox_saga.testing.crash_points import CrashPoints
from tests.crash.append_log import AppendLog


class Provider:
    """Another company's service; its ledger survives our process.

    Args:
        ledger: Every request and what it changed.
        points: Of the process that calls it: a request is an outside effect.
        questions: What handlers asked it.
    """

    def __init__(self, ledger: AppendLog, points: CrashPoints, questions: AppendLog) -> None:
        self._ledger = ledger
        self._questions = questions
        self._points = points
        self._lock = threading.Lock()

    def act(self, context: _Context[Any], cents: int, *, once: bool = True) -> None:
        """Moves `cents` to us (negative.

        Back), once per key, or, with `once=False`, each time it is asked.
        """
        with self._points.effect(f"provider: {context.step} {context.direction}"), self._lock:
            self._ledger.append(
                saga_id=str(context.saga_id),
                step=context.step,
                direction=context.direction,
                key=context.key,
                request=json.dumps(context.data.model_dump(mode="json"), sort_keys=True),
                cents=cents,
                effective=not (once and self._knows(context.key)),
            )

    def knows(self, context: _Context[Any]) -> bool:
        """Whether it acted under this key."""
        with self._points.effect(f"provider: {context.step} query"), self._lock:
            return self._knows(context.key)

    def asked(self, consumer: str, handle: HandlerContext[Any] | SyncHandlerContext[Any]) -> int:
        """How often this consumer has asked it because of this message, now included."""
        id_ = str(handle.envelope.id)
        with self._points.effect(f"provider: asked by {consumer}"), self._lock:
            self._questions.append(consumer=consumer, id=id_, key=handle.key)
            lines = self._questions.read()
        return sum((line["consumer"], line["id"]) == (consumer, id_) for line in lines)

    def _knows(self, key: str) -> bool:
        return any(line["key"] == key and line["effective"] for line in self._ledger.read())
