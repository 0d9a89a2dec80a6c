"""What must always be true.

Checked on values read from the tables and from the other sides' own logs.

Pure: each function takes what was found and returns the violations, each with the ids concerned.
The numbers are those of
`docs/architecture.md` ("Always true").
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

GOOD_ENDS = ("completed", "compensated")
NEXT: Mapping[str, tuple[str, ...]] = {  # legal changes of an instance's state
    "running": ("running", "compensating", "completed", "compensated", "stuck"),
    "compensating": ("compensating", "compensated", "stuck", "running"),
    "completed": (),
    "compensated": ("compensating",),  # a late success re-opens it
    "stuck": ("running", "compensating", "compensated", "completed"),  # an operator's choice
}


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must never be.

    Args:
        invariant: Its number, as in `I7`.
        about: The ids concerned.
        told: What is wrong.
    """

    invariant: str
    about: str
    told: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.about}: {self.told}"


@dataclass(frozen=True, slots=True)
class Delivered:
    """One delivery, as the other side logged it."""

    id: str
    key: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class SagaRow:
    """An instance as its row says."""

    id: str
    name: str
    state: str
    revision: int
    phases: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One row of an instance's history, in the order of their numbers."""

    saga_id: str
    number: int
    revision: int
    transition: str
    step: str | None
    attempt: int | None
    detail: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """One update of an instance's row, as a trigger in the database saw it."""

    saga_id: str
    old_revision: int
    new_revision: int
    old_state: str
    new_state: str
    changed: bool  # state, data or progress


@dataclass(frozen=True, slots=True)
class Effect:
    """What a step did, as the side it was done to logged it, in its order."""

    saga_id: str
    step: str
    direction: Literal["do", "undo"]


@dataclass(frozen=True, slots=True)
class Request:
    """One call that reached the other side."""

    saga_id: str
    step: str
    direction: str
    key: str
    body: str


# --- messages ------------------------------------------------------------------------------------


def messages(
    committed: Mapping[str, bytes],
    pending: Mapping[str, bytes],
    dead: Mapping[str, bytes],
    delivered: Sequence[Delivered],
) -> list[Violation]:
    """I2, I3, I5 and I17.

    Args:
        committed: What business transactions committed to send, from their own rows: id and body.
        pending: In the outbox.
        dead: Among the dead letters.
        delivered: The broker's log.
    """
    arrived: dict[str, set[bytes]] = defaultdict(set)
    for delivery in delivered:
        arrived[delivery.id].add(delivery.body)
    found = [
        Violation("I2", f"message {id_}", "exists, but no business row committed with it")
        for id_ in {*arrived, *pending, *dead} - set(committed)
    ]
    for id_, body in committed.items():
        if id_ not in arrived and id_ not in pending and id_ not in dead:
            found.append(
                Violation(
                    "I3",
                    f"message {id_}",
                    "committed, but neither pending, dead nor at the broker",
                )
            )
        bodies = arrived.get(id_, set()) | {m[id_] for m in (pending, dead) if id_ in m}
        if bodies - {body}:
            found.append(
                Violation("I2", f"message {id_}", "its bytes are not those that were committed")
            )
    return found


def order(
    commits: Iterable[tuple[str, str | None]], delivered: Iterable[Delivered]
) -> list[Violation]:
    """I4: first deliveries of one key in the order in which their transactions committed.

    Args:
        commits: Message id and key, in the order of commit.
        delivered: The broker's log.
    """
    wanted: dict[str, list[str]] = defaultdict(list)
    for id_, key in commits:
        if key is not None:
            wanted[key].append(id_)
    got: dict[str, list[str]] = defaultdict(list)
    for delivery in delivered:
        if delivery.key is not None and delivery.id not in got[delivery.key]:
            got[delivery.key].append(delivery.id)
    return [
        Violation("I4", f"key {key}", f"first deliveries {ids}, commits {wanted[key]}")
        for key, ids in got.items()
        if ids != [id_ for id_ in wanted[key] if id_ in set(ids)]
    ]


def handled_once(
    effects: Sequence[tuple[str, str]], inbox: Collection[tuple[str, str]]
) -> list[Violation]:
    """I7: one effect per (consumer, message id), and an inbox row with each.

    Args:
        effects: (consumer, message id) of each run of a handler that committed.
        inbox: (consumer, message id) of each inbox row.
    """
    found = []
    times = Counter(effects)
    for (consumer, id_), count in times.items():
        if count > 1:
            found.append(
                Violation("I7", f"message {id_}, consumer {consumer}", f"{count} effects")
            )
    for consumer, id_ in set(times) ^ set(inbox):
        told = (
            "an inbox row without effect"
            if (consumer, id_) in inbox
            else "an effect without inbox row"
        )
        found.append(Violation("I7", f"message {id_}, consumer {consumer}", told))
    return found


# --- sagas ---------------------------------------------------------------------------------------


def histories(
    sagas: Iterable[SagaRow], rows: Sequence[HistoryRow], earlier: Sequence[HistoryRow] = ()
) -> list[Violation]:
    """I8: append-only, numbered without gaps within a revision, and replays to the current state.

    Args:
        sagas: The instances now.
        rows: Their histories now.
        earlier: The histories at an earlier moment, whose rows must all be there unchanged.
    """
    found = [
        Violation("I8", f"saga {row.saga_id}", f"history row {row.number} was changed or removed")
        for row in set(earlier) - set(rows)
    ]
    of: dict[str, list[HistoryRow]] = defaultdict(list)
    for row in rows:
        of[row.saga_id].append(row)
    for saga in sagas:
        mine = of.pop(saga.id, [])
        about = f"saga {saga.id} ({saga.name})"
        if not mine or mine[0].transition != "STARTED" or mine[0].number != 0:
            found.append(Violation("I8", about, "its history does not begin with STARTED"))
        if mine and mine[-1].revision > saga.revision:
            found.append(Violation("I8", about, "its history is ahead of its revision"))
        numbers = [row.number for row in mine]
        if numbers != sorted(set(numbers)):
            found.append(Violation("I8", about, "history numbers repeat or go back"))
        state, phases = replay(mine, saga.phases)
        if state != saga.state:
            found.append(
                Violation("I8", about, f"is {saga.state}, its history replays to {state}")
            )
        for step, phase in saga.phases.items():
            if phases[step] != phase:
                told = f"step {step} is {phase}, its history replays to {phases[step]}"
                found.append(Violation("I8", about, told))
    found += [Violation("I8", f"saga {id_}", "a history without an instance") for id_ in of]
    return found


_STATES = {
    "STARTED": "running",
    "COMPENSATION_STARTED": "compensating",
    "COMPLETED": "completed",
    "COMPENSATED": "compensated",
    "FAILED": "stuck",
    "RUNNING": "running",  # of the saga itself: the pivot was carried out while others had failed
}
_PHASES = {
    "RUNNING": "calling",
    "COMPENSATING_STEP": "undoing",
    "STEP_COMPLETED": "done",
    "STEP_COMPENSATED": "undone",
    "STEP_FAILED": "failed",
    "COMPENSATION_FAILED": "stuck",
    "STEP_SKIPPED": "skipped",
    "COMPENSATION_SKIPPED": "undone",
}


def replay(rows: Iterable[HistoryRow], steps: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The state and the steps' phases that a history leads to."""
    state, phases = "none", dict.fromkeys(steps, "waiting")
    for row in rows:
        detail = row.detail or ""
        if row.step is None:
            state = _STATES.get(row.transition, state)
        elif row.transition in _PHASES and not detail.endswith("(will be tried again)"):
            phases[row.step] = _phase(row.transition, detail)
    return state, phases


def _phase(transition: str, detail: str) -> str:
    if detail.startswith("stuck: "):
        return "stuck"
    if transition == "RUNNING" and detail.startswith("waits for "):
        return "listening"
    if transition == "STEP_FAILED" and detail.endswith(": it is undone"):
        return "done"  # nobody has answered: as far as anybody knows it may be
    return _PHASES[transition]


def revisions(changes: Iterable[Change]) -> list[Violation]:
    """I8.

    Every transition is one revision, every revision one legal transition, and none is changed
    afterwards.
    """
    found = []
    for c in changes:
        about = f"saga {c.saga_id}"
        if c.new_revision - c.old_revision != int(c.changed):
            told = f"revision {c.old_revision} → {c.new_revision}, state changed: {c.changed}"
            found.append(Violation("I8", about, told))
        if c.new_state != c.old_state and c.new_state not in NEXT[c.old_state]:
            found.append(
                Violation("I8", about, f"{c.old_state} → {c.new_state} is no legal transition")
            )
    return found


def ended(sagas: Iterable[SagaRow], good: Collection[str] = GOOD_ENDS) -> list[Violation]:
    """I9: every saga has ended, in one of these states."""
    return [
        Violation("I9", f"saga {s.id} ({s.name})", f"is {s.state}; expected {' or '.join(good)}")
        for s in sagas
        if s.state not in good
    ]


def undone_once(
    saga: SagaRow,
    logs: Iterable[Sequence[Effect]],
    history: Sequence[HistoryRow],
    undoable: Collection[str],
) -> list[Violation]:
    """I10 and I11.

    A completed saga's effects are there once; a compensated one's were undone once, in reverse.

    Args:
        saga: It has ended.
        logs: One for each side that effects were done to.
        history: Of this saga.
        undoable: The steps that leave something to undo.
    """
    found = []
    about = f"saga {saga.id} ({saga.name})"
    seen: set[str] = set()
    for log in logs:
        mine = [e for e in log if e.saga_id == saga.id]
        done = [e.step for e in mine if e.direction == "do"]
        undone = [e.step for e in mine if e.direction == "undo"]
        seen |= set(done)
        for step in {*done, *undone}:
            does, undoes = done.count(step), undone.count(step)
            wanted = does if saga.state == "compensated" and step in undoable else 0
            if does != 1:
                found.append(Violation("I10", f"{about}, step {step}", f"{does} effects"))
            if undoes != wanted:
                found.append(
                    Violation(
                        "I10",
                        f"{about}, step {step}",
                        f"{saga.state}: {does} done, {undoes} undone",
                    )
                )
            directions = [e.direction for e in mine if e.step == step]
            if directions != sorted(directions):
                found.append(Violation("I11", f"{about}, step {step}", "an effect after its undo"))
        expected = [s for s in reversed(done) if s in undone]
        if undone != expected and sorted(undone) == sorted(expected):
            found.append(Violation("I10", about, f"done {done}, undone {undone}: not in reverse"))
    if saga.state == "completed":
        found += [
            Violation("I10", f"{about}, step {step}", "completed without its effect")
            for step in set(undoable) - seen
        ]
    for rows in _undoings(history):
        completed = [h.step for h in rows if h.transition == "STEP_COMPLETED"]
        compensated = [h.step for h in rows if h.transition == "STEP_COMPENSATED"]
        if compensated and compensated != [s for s in reversed(completed) if s in compensated]:
            told = f"history: completed {completed}, compensated {compensated}: not in reverse"
            found.append(Violation("I10", about, told))
    return found


def _undoings(history: Sequence[HistoryRow]) -> list[list[HistoryRow]]:
    """The history in parts: a late success re-opens a saga of which nothing was left."""
    parts: list[list[HistoryRow]] = [[]]
    for row in history:
        parts[-1].append(row)
        if row.transition == "COMPENSATED":
            parts.append([])
    return parts


def same_request(requests: Iterable[Request]) -> list[Violation]:
    """I13.

    One key for a saga's step and direction, whatever the attempt, and one request under it.
    """
    keys: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    bodies: dict[str, set[str]] = defaultdict(set)
    for r in requests:
        keys[r.saga_id, r.step, r.direction].add(r.key)
        bodies[r.key].add(r.body)
    found = [
        Violation("I13", f"saga {saga_id}, step {step} ({direction})", f"keys {sorted(several)}")
        for (saga_id, step, direction), several in keys.items()
        if len(several) > 1
    ]
    found += [
        Violation("I13", f"key {key}", f"different requests: {sorted(several)}")
        for key, several in bodies.items()
        if len(several) > 1
    ]
    return found


def conserved(
    invariant: str, about: str, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> list[Violation]:
    """I12, I1: these figures are those figures."""
    return [
        Violation(
            invariant, f"{about} {name}", f"is {found.get(name)}, must be {wanted.get(name)}"
        )
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
