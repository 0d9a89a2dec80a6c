"""What `decide` is told, and what it answers: plain values."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from outbox_saga.breaker import Gates
from outbox_saga.instances import Direction, Entry, SagaState

# --- what happened -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resumed:
    """Somebody took the instance up: at its start, when a moment came, or after a crash.

    Args:
        deaths: Owners that died with it, one after another, since anything was reported; 0 unless
            the last one did.
    """

    deaths: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """An action (or a compensation) succeeded; `added` is merged into the data.

    Args:
        kept: False: its effect came too late, and was rolled back.
    """

    step: str
    direction: Direction
    attempt: int
    added: Any = None
    started_at: dt.datetime | None = None
    kept: bool = True


@dataclass(frozen=True, slots=True)
class Refused:
    """A business no: definitely not done, and no use in trying again."""

    step: str
    direction: Direction
    attempt: int
    reason: str
    started_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Errored:
    """A technical failure.

    Args:
        unknown: It may have been done all the same.
        asked: The other side was asked, or may have been; its breaker hears of nothing else.
        code: As of an `Entry`.
    """

    step: str
    direction: Direction
    attempt: int
    error: str
    unknown: bool = False
    started_at: dt.datetime | None = None
    asked: bool = True
    code: str = "error"


@dataclass(frozen=True, slots=True)
class NotFound:
    """The query said, late enough to be believed, that the call was never carried out."""

    step: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Unusable:
    """An external step was done, but its answer does not fit the saga's data.

    It is undone with the rest.
    """

    step: str
    attempt: int
    reason: str


Happened: TypeAlias = Resumed | Done | Refused | Errored | NotFound | Unusable


# --- what to do ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """Run a local step: its effect and the transition in one transaction."""

    step: str
    direction: Direction
    attempt: int


@dataclass(frozen=True, slots=True)
class Call:
    """Call outside, under the key of this step and direction; the intent is committed."""

    step: str
    direction: Direction
    attempt: int


@dataclass(frozen=True, slots=True)
class Query:
    """Ask the other side whether it acted."""

    step: str
    attempt: int


ToDo: TypeAlias = Run | Call | Query


@dataclass(frozen=True, slots=True)
class Send:
    """Send a step's command: in the transaction of the transition that says so.

    Args:
        fields: Of the command.
    """

    step: str
    direction: Direction
    attempt: int
    generation: int
    fields: Mapping[str, Any]


Flight: TypeAlias = tuple[str, Direction]


def flight_of(todo: ToDo) -> Flight:
    """As what it is on its way; a question is about what is to be done."""
    return (todo.step, "do" if isinstance(todo, Query) else todo.direction)


EVERY_GATE_IS_OPEN = Gates()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What `decide` must know and may not ask for.

    Args:
        now: By the database's clock, or a little earlier: what is due by it is due there, too.
        in_flight: Steps that this process is carrying out, without the one that is being reported;
            and calls that it is about to make, if the state that is decided about has their
            intents.
        lease: Seconds after which another process takes the instance over.
        seed: Of the jitter: the instance's id.
        started_at: When the instance was started, by the database's clock.
        gates: What breakers let through.
        lag: Seconds that `now` may be earlier than the database's clock, at most.
        stopping: This process begins nothing any more; another one will.
    """

    now: dt.datetime
    in_flight: frozenset[Flight] = frozenset()
    lease: float = 30.0
    seed: str = ""
    started_at: dt.datetime | None = None
    gates: Gates = EVERY_GATE_IS_OPEN
    lag: float = 0.0
    stopping: bool = False

    def after(self, seconds: float) -> dt.datetime:
        """The moment so many seconds from now: not before that by the database's clock."""
        return self.now + dt.timedelta(seconds=self.lag + seconds)


@dataclass(frozen=True, slots=True)
class Decision:
    """The next state, its history, and what to do.

    Args:
        due: When somebody has to look again; None once the instance has ended.
        busy: Something is to be done now, or is being done: whoever decided keeps the lease.
        sends: Commands that leave with this decision.
        look_at: When something else is due than what is being carried out; None: nothing is.
    """

    state: SagaState
    entries: tuple[Entry, ...]
    todo: tuple[ToDo, ...]
    due: dt.datetime | None
    busy: bool = False
    sends: tuple[Send, ...] = ()
    look_at: dt.datetime | None = None
