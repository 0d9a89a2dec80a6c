"""What a saga tells others of itself: events that leave with the transition they tell of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from outbox_saga.instances import Entry, Instance, SagaState
from outbox_saga.queries.sagas_seen import went_on
from outbox_saga.saga.definition import Saga
from outbox_saga.tables import tables_in
from outbox_saga.unit_of_work import UnitOfWork

LIFE_CYCLE = frozenset({"COMPLETED", "COMPENSATION_STARTED", "COMPENSATED", "FAILED", "UNPARKED"})


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
        seen.state.parked is not None  # by processes without its definition, which tell nothing
        and not went_on(connection, tables_in(schema), seen.id, seen.revision)
    )
    told = [Entry("STARTED"), *entries] if first else entries
    for entry in told:
        whole = entry.transition in LIFE_CYCLE or entry.transition == "STARTED"
        if whole or (definition.step_events and entry.step is not None):
            uow.publish(
                definition.events(
                    saga_id=seen.id,
                    saga=seen.name,
                    saga_version=seen.version,
                    business_key=seen.business_key,
                    transition=entry.transition,
                    state=state.status,
                    step=entry.step,
                    attempt=entry.attempt,
                    reason=entry.detail if whole else None,
                ),
                key=str(seen.id),
            )
