"""What one step of a saga is, and the defaults of its policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn, TypeAlias, final

from outbox_saga.breaker import Breaker
from outbox_saga.envelopes import seal
from outbox_saga.instances import Direction
from outbox_saga.messages import Command, Message
from outbox_saga.retries import Retry

Action: TypeAlias = Callable[[Any], Any]
Predicate: TypeAlias = Callable[[Any], bool]
Kind: TypeAlias = Literal["action", "event", "timer", "command"]

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
        fails_on: The class of the event that says that it will not come.
    """

    message_class: type[Message]
    take: Callable[[Any], Mapping[str, Any] | None] | None = None
    business_key: Callable[[Any], str] | None = None
    fails_on: type[Message] | None = None

    @property
    def classes(self) -> tuple[type[Message], ...]:
        """The events that are for the step."""
        return (self.message_class, *(() if self.fails_on is None else (self.fails_on,)))

    def is_no(self, message: Message) -> bool:
        """Whether this one says that the awaited one will not come."""
        return self.fails_on is not None and message.type_name == self.fails_on.type_name


@dataclass(frozen=True, slots=True)
class Commanded:
    """The commands of a step that another service carries out.

    Args:
        do: The class of the command.
        undo: The class of the one that undoes it; None: nothing does.
    """

    do: type[Command]
    undo: type[Command] | None

    def fields(self, direction: Direction, data: Mapping[str, Any]) -> dict[str, Any]:
        """What of the data the command has, by field.

        Raises as its validation does, and MessageRefused for one that could not travel: once it is
        decided that a command leaves, nothing may be in its way.
        """
        command = self._class(direction)
        found = {name: data[name] for name in command.model_fields if name in data}
        seal(self.message(direction, found))
        return found

    def message(self, direction: Direction, fields: Mapping[str, Any]) -> Command:
        """The command with these fields."""
        command = self._class(direction)
        named = {command.model_fields[name].alias or name: fields[name] for name in fields}
        return command.model_validate(named)

    def _class(self, direction: Direction) -> type[Command]:
        command = self.do if direction == "do" else self.undo
        assert command is not None
        return command


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a saga.

    See `Saga.step`, `Saga.wait_for` and `Saga.timer` for the fields. A step that waits, for an
    answer too, does so for its `seconds`; its timeout is that of its compensation, as the leases
    of instances go by it.
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
    command: Commanded | None = None
    breaker: Breaker | None = None

    @property
    def runs(self) -> bool:
        """Whether anything of it is carried out by who has the instance, for its timeout."""
        undoes = self.compensation is not None and self.compensation is not nothing_to_undo
        return self.kind == "action" or (self.kind != "command" and undoes)


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
