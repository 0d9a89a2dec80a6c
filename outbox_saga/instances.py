"""An instance's state as a value, and as the JSON text that its row keeps."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NoReturn, get_args

from outbox_saga.errors import SagaUnreadable

Status = Literal["running", "compensating", "completed", "compensated", "stuck"]
Phase = Literal[
    "waiting",  # not yet done; a local step stays here until its effect commits
    "calling",  # an external step whose intent is committed and whose outcome is not known yet
    "done",
    "failed",  # definitely not done
    "undoing",  # as calling, for the compensation
    "undone",
    "stuck",  # needs a person
    "skipped",  # its when= said no
    "listening",  # waits for an event, or for its time
]
Direction = Literal["do", "undo"]

# whoever waits for a step with one of these may begin
OVER: frozenset[Phase] = frozenset({"done", "skipped"})
# nothing of it is there to be undone
NOTHING_LEFT: frozenset[Phase] = frozenset({"waiting", "failed", "undone", "skipped", "listening"})

ENDED: frozenset[Status] = frozenset({"completed", "compensated", "stuck"})
OVER_FOR_GOOD: frozenset[Status] = frozenset({"completed", "compensated"})


@dataclass(frozen=True, slots=True)
class StepState:
    """How far one step is.

    Args:
        attempts: Forward attempts made or begun.
        undo_attempts: Attempts to compensate made or begun.
        due: Not before this moment, by the database's clock.
        input: What every attempt of an external call gets, stored with the intent; a JSON object.
        unknown: An attempt, of its compensation once it is done, ended without a definite outcome.
        error: Of the last attempt.
        generation: Of the idempotency key; an operator raises it, and that the step has to be done
            anew after it was undone.
        chosen: Its when= said yes.
        wrote: The fields of the data that it returned, where a parallel step might, too.
        early: What its event brought, which came before the step began.
        early_no: Why it fails as soon as it begins: the event that says so came before.
        stuck: At what it needs a person.
        granted: Forward attempts that its policy does not count: a person has given new ones.
            `attempts` itself never falls, so a number stands for one attempt.
        reopened: How often a late success has come after it was undone: each is undone by itself.
        doubt: It has to be there, and nobody knows whether it has been undone.
        called: The attempt of the last call that was begun; questions are attempts as well.
        there: It was carried out, and what it answered is of no use.
    """

    phase: Phase = "waiting"
    attempts: int = 0
    undo_attempts: int = 0
    due: dt.datetime | None = None
    input: Mapping[str, Any] | None = None
    unknown: bool = False
    error: str | None = None
    generation: int = 0
    chosen: bool = False
    wrote: tuple[str, ...] = ()
    early: Mapping[str, Any] | None = None
    early_no: str | None = None
    stuck: Direction | None = None
    granted: int = 0
    reopened: int = 0
    doubt: bool = False
    called: int = 0
    there: bool = False

    @property
    def heard(self) -> bool:
        """Whether its event is there before it could be taken in."""
        return self.early is not None or self.early_no is not None

    def counted(self, attempt: int) -> int:
        """Which one this is of the attempts that its policy grants; 0: before the first."""
        return max(0, attempt - self.granted)

    def key_number(self, direction: Direction) -> int:
        """Which of its keys in this direction is in use. A key is used for one effect."""
        return self.generation + (self.reopened if direction == "undo" else 0)


@dataclass(frozen=True, slots=True)
class SagaState:
    """An instance between two transitions.

    Args:
        reason: Why it is undone, or stuck.
        before: Its status and reason before it got stuck, to which an operator brings it back.
        parked: Why no process that was there could carry it on; it goes on by itself as soon as
            one can.
    """

    status: Status
    data: Mapping[str, Any]
    steps: Mapping[str, StepState]
    reason: str | None = None
    before: tuple[Status, str | None] | None = None
    parked: str | None = None

    def with_step(self, name: str, **changes: Any) -> SagaState:
        """This state with one step changed."""
        return replace(self, steps={**self.steps, name: replace(self.steps[name], **changes)})


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the history.

    Args:
        code: Why, for what counts: `failure` (a business no), `error`, `timeout` (of a step, its
            event or its answer), `deadline` (of the saga), `died`, `not_done`, `unusable`,
            `cancelled`, `late`, `beside_pivot` (no attempt of its own: a step that had failed
            before, and must not fail any more). None: nothing failed.
    """

    transition: str
    step: str | None = None
    attempt: int | None = None
    detail: str | None = None
    started_at: dt.datetime | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """One saga instance as this process holds it.

    Args:
        deaths: Owners that died with it, one after another, since anything was reported.
        orphaned: The last owner did: its lease ran out before this process claimed the instance.
    """

    id: Any
    name: str
    version: int
    shape: str
    source: str
    business_key: str | None
    correlation_id: str
    revision: int
    epoch: int
    state: SagaState = field(repr=False)  # data may be personal: never in a log
    deaths: int = 0
    orphaned: bool = False
    started_at: dt.datetime | None = None  # by the database's clock; None before it is read back


def dump_progress(state: SagaState) -> str:
    """The steps as JSON text; defaults are left out."""
    progress: dict[str, Any] = {
        "steps": {name: _dump_step(step) for name, step in state.steps.items()}
    }
    if state.before is not None:
        progress["before"] = list(state.before)
    if state.parked is not None:
        progress["parked"] = state.parked
    return json.dumps(progress, ensure_ascii=False, separators=(",", ":"))


_COUNTED = (
    "attempts", "undo_attempts", "unknown", "generation", "chosen", "granted", "reopened", "doubt",
    "called", "there",
)  # fmt: skip
_GIVEN = ("input", "error", "stuck", "early", "early_no")


def _dump_step(step: StepState) -> dict[str, Any]:
    entry: dict[str, Any] = {"phase": step.phase}
    for name in _COUNTED:
        if value := getattr(step, name):
            entry[name] = value
    for name in _GIVEN:
        if (given := getattr(step, name)) is not None:
            entry[name] = given
    if step.due is not None:
        entry["due"] = step.due.isoformat()
    if step.wrote:
        entry["wrote"] = list(step.wrote)
    return entry


def load_progress(text: str) -> dict[str, StepState]:
    """The steps of a stored progress."""
    return _load_steps(json.loads(text)["steps"])


def _load_steps(entries: Mapping[str, dict[str, Any]]) -> dict[str, StepState]:
    steps: dict[str, StepState] = {}
    for name, entry in entries.items():
        due, wrote = entry.pop("due", None), tuple(entry.pop("wrote", ()))
        moment = dt.datetime.fromisoformat(due) if due else None
        steps[name] = step = StepState(due=moment, wrote=wrote, **entry)
        if step.phase not in _PHASES or step.stuck not in _STUCK:
            raise ValueError("an unknown phase or direction")
        if moment is not None and moment.tzinfo is None:
            raise ValueError("a moment without a zone")
    return steps


def load_state(status: Status, data: str, progress: str, reason: str | None) -> SagaState:
    """The state in a row's columns.

    Raises:
        SagaUnreadable: No release up to this one has written that.
    """
    try:
        return _load_state(status, _load(data), _load(progress), reason)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        # from None: what it is about may be personal
        raise SagaUnreadable(_why_unreadable(status, progress)) from None


def _load_state(status: Status, data: Any, kept: Any, reason: str | None) -> SagaState:
    found = kept.get("before")
    before = None if found is None else (found[0], found[1])
    if not kept.keys() <= _KEPT or not {status, *(before or ())[:1]} <= _STATUSES:
        raise ValueError("something that is not known here")
    if not isinstance(data, dict):
        raise TypeError("data are fields")
    return SagaState(status, data, _load_steps(kept["steps"]), reason, before, kept.get("parked"))


def _load(text: str) -> Any:
    """Only what can be written back: other writers' JSON knows more."""
    loaded = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    if "\\ud" in text or "\\uD" in text:
        json.dumps(loaded, ensure_ascii=False).encode()  # a pair is a character, one alone is not
    return loaded


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number out of range")
    return number


_STATUSES = frozenset(get_args(Status))
_STUCK = frozenset({None, *get_args(Direction)})
_PHASES = frozenset(get_args(Phase))
_KEPT = frozenset({"steps", "before", "parked"})
_STEP = frozenset(f.name for f in fields(StepState))


def _why_unreadable(status: str, progress: str) -> str:
    """What a newer release may have written; names only, no values."""
    try:
        kept = json.loads(progress)
        steps = kept["steps"].values()
        new = {*kept} - _KEPT | {name for step in steps for name in step} - _STEP
        new |= {f"phase {step['phase']}" for step in steps if step["phase"] not in _PHASES}
        new |= {f"state {status}"} if status not in _STATUSES else set()
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        new = set()
    if not new:
        return "its data or progress is not what any release writes; restore its row"
    return (
        f"a newer release wrote what this one does not know ({', '.join(sorted(new))}); "
        "let processes of that release carry it on"
    )


def dump_data(data: Mapping[str, Any]) -> str:
    """The data as JSON text."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
