"""What one step of a saga is, and the defaults of its policies."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeAlias, final

from outbox_saga.breaker import Breaker
from outbox_saga.envelopes import seal
from outbox_saga.instances import Direction
from outbox_saga.messages import Command, Message
from outbox_saga.retries import Retry

Action: TypeAlias = Callable[[Any], Any]
Predicate: TypeAlias = Callable[[Any], bool]
# what users give as a compensation
Undoing: TypeAlias = "Action | type[Command] | Compensation | NothingToUndo"
Kind: TypeAlias = Literal["action", "event", "timer", "command"]
Undone: TypeAlias = Literal["local", "external", "command"]

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


@dataclass(frozen=True, slots=True)
class Compensation:
    """A compensation that is of another kind than its step; made by `local` and `external`.

    Args:
        action: What undoes the step.
        external: Whether it acts outside this database.
    """

    action: Action
    external: bool


def local(action: Action) -> Compensation:
    """The compensation runs in one transaction with the saga's own state, whatever kind of step it
    undoes.
    """
    return Compensation(action, external=False)


def external(action: Action) -> Compensation:
    """The compensation runs outside any transaction, whatever kind of step it undoes: its intent
    is committed first, and it is called again under the same idempotency key, as often as
    `compensation_retry` allows; then the saga is stuck.
    """
    return Compensation(action, external=True)


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
    """The commands of a step that another service carries out, or undoes.

    Args:
        do: The class of the command that carries it out; None: no command does.
        undo: The class of the one that undoes it; None: no command does.
    """

    do: type[Command] | None
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
    answer too, does so for its `seconds`; `undone` is how it is undone, if it is.
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
    undone: Undone = "local"
    undo_timeout: float = DEFAULT_TIMEOUT

    @property
    def has_compensation(self) -> bool:
        """Whether anything undoes it."""
        return self.compensation is not None and self.compensation is not nothing_to_undo

    @property
    def must_be_known(self) -> bool:
        """Whether a command does it and a function undoes it, so that it has to be known first
        what came of the command. Of another command its participant knows.
        """
        return self.kind == "command" and self.has_compensation and self.undone != "command"

    @property
    def longest(self) -> float:
        """Seconds that one attempt takes at most of who has the instance; leases go by it."""
        acts = self.timeout if self.kind == "action" else 0.0
        undoes = self.has_compensation and self.undone != "command"
        return max(acts, self.undo_timeout if undoes else 0.0)

    def time_for(self, direction: Direction) -> float:
        """Seconds for one attempt that who has the instance makes."""
        return self.timeout if direction == "do" else self.undo_timeout

    def asks(self, direction: Direction) -> bool:
        """Whether a command does it, in this direction."""
        return (self.kind if direction == "do" else self.undone) == "command"

    def calls(self, direction: Direction) -> bool:
        """Whether it acts outside this database, in this direction."""
        return self.external if direction == "do" else self.undone == "external"


class Undo(NamedTuple):
    """How a step is undone.

    Args:
        by: What users gave, without what says of which kind it is.
        command: Its class, if it is one.
    """

    by: Action | NothingToUndo | None
    kind: Undone
    command: type[Command] | None = None


def undoing(given: Undoing | None, *, external: bool) -> Undo:
    """What users gave as the compensation of a step that acts outside, or does not."""
    if isinstance(given, Compensation):
        return Undo(given.action, "external" if given.external else "local")
    if inspect.isclass(given) and issubclass(given, Command):
        by: Any = given
        return Undo(by, "command", given)
    other: Any = given
    return Undo(other, "external" if external else "local")


def commands(do: type[Command] | None, undo: type[Command] | None) -> Commanded | None:
    """The commands of a step; None if there are none."""
    return None if do is None and undo is None else Commanded(do, undo)


def usually_undone(step: Step) -> Undone:
    """How a step of this kind is undone, if nothing else is said."""
    if step.kind == "command" and step.has_compensation:
        return "command"
    return "external" if step.external else "local"


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
