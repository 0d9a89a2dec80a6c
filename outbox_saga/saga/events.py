"""The event that tells of a saga, and the rules which a class derived from it keeps."""

from __future__ import annotations

import inspect
from typing import Any
from uuid import UUID

from outbox_saga.envelopes import seal
from outbox_saga.errors import DefinitionError
from outbox_saga.messages import Event

# what is told of a saga besides its STARTED; with `step_events` what is of a step, too
LIFE_CYCLE = frozenset({"COMPLETED", "COMPENSATION_STARTED", "COMPENSATED", "FAILED", "UNPARKED"})
OF_STEPS = frozenset(
    {
        "RUNNING",
        "HELD_BACK",
        "BREAKER_OPENED",
        "EVENT_STORED",
        "STEP_COMPLETED",
        "STEP_FAILED",
        "STEP_SKIPPED",
        "COMPENSATING_STEP",
        "STEP_COMPENSATED",
        "COMPENSATION_FAILED",
        "COMPENSATION_SKIPPED",
        "IGNORED",
    }
)


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


def check_events(saga: str, events: object, *, step_events: bool) -> None:
    """The class of the events that tell of the saga.

    Args:
        step_events: They tell of its steps, too.

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
    whole = LIFE_CYCLE | {"STARTED"}
    for transition in sorted(whole | OF_STEPS if step_events else whole):
        for told in _TOLD:
            _check_takes(saga, events, {**told, "transition": transition})


def _check_takes(saga: str, events: type[SagaEvent], told: dict[str, Any]) -> None:
    try:
        event = events(**told)
        seal(event)
        kept = all(getattr(event, field) == value for field, value in told.items())
    except Exception as error:  # users' validators and serializers
        raise DefinitionError(
            f"saga {saga}: {events.__name__} refuses what a saga tells ({type(error).__name__}, "
            f"of {told['transition']}); leave out its validators, aliases and settings that are "
            "about the fields of SagaEvent"
        ) from error
    if not kept:
        raise DefinitionError(
            f"saga {saga}: {events.__name__} changes what a saga tells; leave out its validators "
            "and settings that are about the fields of SagaEvent"
        )


# the least and the most that there is to tell
_TOLD: tuple[dict[str, Any], ...] = tuple(
    {
        "saga_id": UUID(int=2**128 - 1),
        "saga": text * 100,
        "saga_version": 2**31 - 1,
        "business_key": key,
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
