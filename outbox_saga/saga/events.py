"""The event that tells of a saga."""

from __future__ import annotations

from uuid import UUID

from outbox_saga.messages import Event


class SagaEvent(Event):
    """What happened to an instance. Derive your own from it, with a topic.

        class OrderSagas(SagaEvent, topic="order-sagas"): ...

        fulfil = Saga("fulfil", data=OrderData, events=OrderSagas)

    All events of an instance have its id as their key, so they come in their order.

    Attributes:
        transition: As in the history: STARTED, COMPENSATION_STARTED, COMPLETED, COMPENSATED,
            FAILED (it is stuck and needs a person), UNPARKED; with `step_events` those of steps,
            too.
        state: Of the instance after it.
        reason: Why it is undone, or stuck.
    """

    saga_id: UUID
    saga: str
    saga_version: int
    business_key: str | None = None
    transition: str
    state: str
    step: str | None = None
    attempt: int | None = None
    reason: str | None = None
