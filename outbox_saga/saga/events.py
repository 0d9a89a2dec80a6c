"""The event that tells of a saga, and the rules which a class derived from it keeps."""

from __future__ import annotations

import inspect
from typing import Any
from uuid import UUID

from outbox_saga.errors import DefinitionError
from outbox_saga.messages import Event


class SagaEvent(Event):
    """What happened to an instance. Derive your own from it, with a topic.

        class OrderSagas(SagaEvent, topic="order-sagas"): ...

        fulfil = Saga("fulfil", data=OrderData, events=OrderSagas)

    All events of an instance have its id as their key, so they come in their order.

    It may have fields of its own, with defaults; those it has from here stay as they are, or it is
    refused (DefinitionError).

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


def check_events(saga: str, events: object) -> None:
    """The class of the events that tell of the saga.

    Raises:
        DefinitionError: It could not always be made of what there is to tell. That would be found
            out in the transactions that tell it, one after the other, for ever.
    """
    if not (inspect.isclass(events) and issubclass(events, SagaEvent)):
        raise DefinitionError(
            f"saga {saga}: events= is a class derived from SagaEvent, not {events!r}"
        )
    name, known = events.__name__, SagaEvent.model_fields
    if events.topic is None:
        raise DefinitionError(
            f"saga {saga}: {name} has no topic, so it goes nowhere; declare "
            f'`class {name}(SagaEvent, topic="…")`'
        )
    for field, info in events.model_fields.items():
        if field not in known and info.is_required():
            raise DefinitionError(
                f"saga {saga}: {name} needs {field!r}, which nobody gives it; give it a default"
            )
    for field in sorted(_narrowed(events)):
        raise DefinitionError(
            f"saga {saga}: {name} has its own {field!r}, or a validator of it, and might not take "
            "what there is to tell; leave the fields of SagaEvent as they are, and add others"
        )
    try:
        whole = all(
            getattr(events(**told), field) == told[field] for told in _TOLD for field in told
        )
    except Exception as error:  # users' validators
        raise DefinitionError(
            f"saga {saga}: {name} refuses what a saga tells ({type(error).__name__}); leave out "
            "its validators, aliases and settings that are about the fields of SagaEvent"
        ) from error
    if not whole:
        raise DefinitionError(
            f"saga {saga}: {name} changes what a saga tells; leave out its validators and "
            "settings that are about the fields of SagaEvent"
        )


# the least and the most that there is to tell
_TOLD: tuple[dict[str, Any], ...] = tuple(
    {
        "saga_id": UUID(int=2**128 - 1),
        "saga": text * 100,
        "saga_version": 2**31 - 1,
        "business_key": key,
        "transition": "COMPENSATION_STARTED",
        "state": "compensating",
        "step": step,
        "attempt": attempt,
        "reason": reason,
    }
    for text, key, step, attempt, reason in (
        ("s", None, None, None, None),
        ("S", " Order: 1 é" * 20, "t" * 100, 2**31 - 1, " Why not? é" * 45),
    )
)


def _narrowed(events: type[SagaEvent]) -> set[str]:
    """The fields of SagaEvent that a class derived from it has anew, or validates."""
    known = set(SagaEvent.model_fields)
    found: set[str] = set()
    for each in events.__mro__[: events.__mro__.index(SagaEvent)]:
        found |= known.intersection(inspect.get_annotations(each))
    for validator in events.__pydantic_decorators__.field_validators.values():
        found |= (
            known if "*" in validator.info.fields else known.intersection(validator.info.fields)
        )
    return found
