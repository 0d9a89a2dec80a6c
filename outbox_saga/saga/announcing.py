"""What a saga tells others of itself: events that leave with the transition they tell of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from outbox_saga.envelopes import seal
from outbox_saga.instances import Entry, Instance, SagaState, StepState
from outbox_saga.queries.sagas_seen import went_on
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.events import LIFE_CYCLE, SagaEvent
from outbox_saga.tables import tables_in
from outbox_saga.unit_of_work import UnitOfWork

logger = logging.getLogger("outbox_saga.saga")

_UNTOUCHED = StepState()


def announce(
    connection: sa.Connection,
    schema: str | None,
    definition: Saga[Any],
    seen: Instance,
    state: SagaState,
    entries: Sequence[Entry],
) -> None:
    """The events of this transition leave if, and only if, its transaction commits.

    Args:
        connection: In that transaction.
        seen: The instance before the transition.
        state: After it.
        entries: Of its history.
    """
    if definition.events is None:
        return
    uow = UnitOfWork(
        connection, schema=schema, source=seen.source, correlation_id=seen.correlation_id
    )
    # not by the start itself: key locks have to be the last ones of the caller's transaction
    first = seen.revision == 0 or (
        # parked by processes without its definition, or taken over: who did it tells nothing
        all(step == _UNTOUCHED for step in seen.state.steps.values())
        and not went_on(connection, tables_in(schema), seen.id, seen.revision)
    )
    told = [Entry("STARTED"), *entries] if first else entries
    for entry in told:
        whole = entry.transition in LIFE_CYCLE or entry.transition == "STARTED"
        if whole or (definition.step_events and entry.step is not None):
            _tell(uow, definition.events, seen, state, entry, entry.detail if whole else None)


def _tell(
    uow: UnitOfWork[Any],
    event_class: type[SagaEvent],
    seen: Instance,
    state: SagaState,
    entry: Entry,
    reason: str | None,
) -> None:
    try:
        event = event_class(
            saga_id=seen.id,
            saga=seen.name,
            saga_version=seen.version,
            business_key=seen.business_key,
            transition=entry.transition,
            state=state.status,
            step=entry.step,
            attempt=entry.attempt,
            reason=reason,
        )
        envelope = seal(
            event, key=str(seen.id), source=uow.source, correlation_id=uow.correlation_id
        )
    except Exception as error:  # noqa: BLE001  # whatever users' validators and serializers raise
        # whoever listens misses one event; held up by it, the saga would neither end, nor be
        # undone, nor get stuck, for that is an event, too. No statement is in here: what the
        # database refuses has to be heard
        logger.error(  # noqa: TRY400  # what it says may show the data
            "saga %s: its event of %s cannot be told: %s does not take it (%s)",
            seen.id,
            entry.transition,
            event_class.__name__,
            type(error).__name__,
        )
        return
    uow.keep_sealed(envelope)
