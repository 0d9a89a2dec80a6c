"""What one step of a saga is, and the defaults of its policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn, TypeAlias, final

from outbox_saga.messages import Message
from outbox_saga.retries import Retry

Action: TypeAlias = Callable[[Any], Any]
Predicate: TypeAlias = Callable[[Any], bool]
Kind: TypeAlias = Literal["action", "event", "timer"]

DEFAULT_TIMEOUT = 30.0
FORWARD_RETRY = Retry(max_attempts=3)
COMPENSATION_RETRY = Retry(max_attempts=12, initial=0.5, max_delay=60.0)
AFTER_PIVOT_RETRY = Retry(max_attempts=50, initial=0.5, max_delay=300.0)


@final
class NothingToUndo:
    """Says that a step leaves nothing behind: its compensation was not merely forgotten."""

    def __repr__(self) -> str:
        return "nothing_to_undo"


nothing_to_undo: Final = NothingToUndo()


def minutes(number: float) -> float:
    """So many minutes in seconds."""
    return number * 60.0


def hours(number: float) -> float:
    """So many hours in seconds."""
    return number * 3600.0


def nobody_acts(_: Any) -> NoReturn:
    """The action of a step that only waits."""
    raise AssertionError("a step that waits is never carried out")


@dataclass(frozen=True, slots=True)
class Awaited:
    """The event that a step waits for.

    Args:
        message_class: Its class.
        take: Which fields of the saga's data it brings; None: none.
        business_key: Of the instance it is for; None: that is told by its correlation id.
    """

    message_class: type[Message]
    take: Callable[[Any], Mapping[str, Any] | None] | None = None
    business_key: Callable[[Any], str] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a saga.

    See `Saga.step`, `Saga.wait_for` and `Saga.timer` for the fields. A step that waits does so for
    its `seconds`; its timeout is that of its compensation, as the leases of instances go by it.
    """

    name: str
    action: Action
    compensation: Action | NothingToUndo | None
    external: bool
    idempotent: bool
    query: Action | None
    timeout: float
    retry: Retry
    compensation_retry: Retry
    after: tuple[str, ...]
    pivot: bool
    reads: frozenset[str] | None = None
    writes: frozenset[str] | None = None
    when: Predicate | None = None
    kind: Kind = "action"
    event: Awaited | None = None
    seconds: float | Callable[[Any], float] = 0.0


def all_before(steps: Mapping[str, Step], name: str) -> set[str]:
    """All steps that this one waits for, directly or not."""
    found: set[str] = set()
    queue = list(steps[name].after)
    while queue:
        other = queue.pop()
        if other not in found:
            found.add(other)
            queue += steps[other].after
    return found
