"""The rules that the plays of proof 3.2 are about, each as what takes it out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import sqlalchemy as sa

from outbox_saga.ids import new_id
from outbox_saga.instances import Entry
from outbox_saga.queries import sagas, transition
from outbox_saga.saga import arrivals, attempts, progress

Plant = Callable[[], contextlib.AbstractContextManager[Any]]


def transition_without_revision() -> Any:
    """Whoever writes overwrites what it has not seen."""
    ours, read = transition.record, sagas.read

    def record(
        connection: sa.Connection, tables: Any, clock: Any, seen: Any, *told: Any, **o: Any
    ) -> bool:
        current = read(connection, tables, seen.id, lock=True)
        assert current is not None
        stale = dataclasses.replace(seen, revision=current.revision)
        return ours(connection, tables, clock, stale, *told, **o)

    return patch.object(transition, "record", record)


def row_is_not_locked() -> Any:
    """Whoever takes in an answer or an event, or decides, reads the instance as anybody does."""
    ours = sagas.read

    def read(connection: sa.Connection, tables: Any, id_: Any, *, lock: bool = False) -> Any:
        del lock
        return ours(connection, tables, id_)

    return patch.object(sagas, "read", read)


def another_key_each_time() -> Any:
    """Whoever takes over a call of which nobody knows makes it under a key of its own."""
    return patch.object(attempts, "idempotency_key", lambda *_: new_id())


def early_is_too_early() -> Any:
    """An event that comes before the step begins is not kept for it."""
    ours = progress.arrived

    def arrived(definition: Any, state: Any, name: str, brought: Any) -> Any:
        if state.steps[name].phase == "waiting":
            return state, (Entry("IGNORED", name, None, "it came too early"),)
        return ours(definition, state, name, brought)

    return patch.object(arrivals, "arrived", arrived)


WITHOUT: dict[str, dict[str, Plant]] = {  # by play
    "reply and branch": {"a transition is of what was seen": transition_without_revision},
    "reply and cancel": {"the row is locked for an answer": row_is_not_locked},
    "cancel and branch": {"a transition is of what was seen": transition_without_revision},
    "cancel and event": {"the row is locked for a decision": row_is_not_locked},
    "second and branch": {"one key for every attempt": another_key_each_time},
    "branch and event": {"an early event is kept": early_is_too_early},
    "timeout and event": {"the row is locked for an event": row_is_not_locked},
}
