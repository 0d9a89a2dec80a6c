"""How a saga's command, or a request, and its answer travel: what their headers and bodies say."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pydantic import Field

from outbox_saga.envelopes import Envelope
from outbox_saga.errors import MessageRefused
from outbox_saga.instances import Direction
from outbox_saga.messages import Reply

ANSWER = "outbox_saga.answer"  # the type of every answer

_SAGA, _STEP, _DIRECTION = "saga-id", "saga-step", "saga-direction"
_GENERATION, _ATTEMPT, _REPLY_TO = "saga-generation", "saga-attempt", "saga-reply-to"
_FAULT_TO = "saga-fault-to"
# as the header says it: direction, and whether it undoes what no command has done
_DIRECTIONS: dict[str, tuple[Direction, bool]] = {
    "do": ("do", False),
    "undo": ("undo", False),
    "undo-alone": ("undo", True),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """For which step of which saga a command was sent; a request stands for a saga of its own.

    Args:
        saga: Its id; of a request its own.
        direction: To do it, or to undo it.
        generation: As of the step's idempotency key; only an operator raises it.
        attempt: Which sending it is; all of one generation are about one effect.
        reply_to: The topic that the answer goes to.
        alone: It undoes what no command has done: whoever gets it carries it out, once, though
            nothing came before it.
        fault_to: The topic on which it is told that nobody could carry it out so far: a handler
            has given it up, and a person decides. None: nobody is told.
    """

    saga: UUID
    step: str
    direction: Direction
    generation: int
    attempt: int
    reply_to: str
    alone: bool = False
    fault_to: str | None = None

    @property
    def acts(self) -> bool:
        """Whether it is carried out by itself, and not as the undoing of what came before."""
        return self.direction == "do" or self.alone

    def headers(self) -> dict[str, str]:
        """What the command carries."""
        return {
            _SAGA: str(self.saga),
            _STEP: self.step,
            _DIRECTION: f"{self.direction}-alone" if self.alone else self.direction,
            _GENERATION: str(self.generation),
            _ATTEMPT: str(self.attempt),
            _REPLY_TO: self.reply_to,
            **({} if self.fault_to is None else {_FAULT_TO: self.fault_to}),
        }

    @classmethod
    def of(cls, envelope: Envelope) -> Asked | None:
        """What the command carries; None for one that no saga has sent.

        Raises MessageRefused for one that says so and cannot be read.
        """
        headers = envelope.headers
        if _SAGA not in headers:
            return None
        try:
            direction, alone = _DIRECTIONS[headers[_DIRECTION]]
            return cls(
                UUID(headers[_SAGA]),
                headers[_STEP],
                direction,
                int(headers[_GENERATION]),
                int(headers[_ATTEMPT]),
                headers[_REPLY_TO],
                alone,
                headers.get(_FAULT_TO),
            )
        except (KeyError, ValueError) as error:
            raise MessageRefused(
                "headers", f"it says that a saga has sent it, and not how ({error!r})"
            ) from None


class Answer(Reply, name=ANSWER):
    """What a participant answers to a command.

    Attributes:
        done: It was carried out, once, however often it was asked for. False: definitely not.
        data: What the participant's handler returned.
        reason: Of a no.
        fault: The code of what a handler failed on, for good as far as it goes: neither done nor
            refused, and a person may still have it carried out. Empty: it is an answer.
    """

    saga: UUID
    step: str
    direction: Direction
    generation: int
    attempt: int
    done: bool
    data: dict[str, Any] = Field(default_factory=dict)
    reason: str = ""
    fault: str = ""

    @classmethod
    def to(
        cls,
        asked: Asked,
        *,
        done: bool,
        data: Mapping[str, Any] | None = None,
        reason: str = "",
        fault: str = "",
    ) -> Answer:
        """The answer to this."""
        return cls(
            saga=asked.saga,
            step=asked.step,
            direction=asked.direction,
            generation=asked.generation,
            attempt=asked.attempt,
            done=done,
            data=dict(data or {}),
            reason=reason,
            fault=fault,
        )


def replies_topic(service: str) -> str:
    """Where the answers to this service's commands go."""
    return f"{service}.replies"


def requests_topic(service: str) -> str:
    """Where the answers to this service's own requests go; no service's sagas listen there."""
    return f"{service}.replies.requests"


def answers_on(topic: str) -> type[Answer]:
    """The class of the answers that come on this topic."""
    return types.new_class("Answer", (Answer,), {"name": ANSWER, "topic": topic})
