"""Whether all is well with a saga of the agency at rest, whatever has disturbed it.

Its row is what its history replays to; every effect is there, or undone once and in the order of
what depends on what; money is where it belongs; every command, answer and event of the saga has
left exactly once; no moment came early; and what a person did is on record once.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from outbox_saga.commanding import ANSWER, Answer, Asked
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.events import LIFE_CYCLE
from outbox_saga.testing import invariants
from outbox_saga.testing.crash_points import CrashPoints
from outbox_saga.testing.invariants import Effect, HistoryRow, SagaRow, Violation
from tests.crash.agency import TAKEN_PART, Agency, Travels
from tests.crash.append_log import AppendLog
from tests.crash.journey_post import read
from tests.crash.journey_sagas import DEFINED
from tests.crash.provider import Provider
from tests.crash.shop import PIECES, PRICE
from tests.crash.tables import BALANCES, OURS, entry
from tests.crash.world import Facts, World

STEPS_AHEAD = 1.0  # second that two looks at a clock may differ


@dataclass(frozen=True)
class Expected:
    """What a journey comes to.

    Args:
        saga: Its name.
        ends: The states it may end in.
        keeps: Steps whose effect stays when it has completed.
        stays: Steps whose effect stays though it was undone.
        undoes_alone: Steps of which only the undoing is ours, once they are done.
        unknowable: Steps whose effect nobody can know of if the process that made it died before
            it said so: the other side acted after it had said that it never did.
        acts: Operators' actions, each on record once.
        tells: What its history must have, by state in the end.
        data: What of its data is when it has completed.
    """

    saga: str
    ends: tuple[str, ...]
    keeps: Collection[str]
    stays: Collection[str] = ()
    undoes_alone: Collection[str] = ()
    unknowable: Collection[str] = ()
    acts: Collection[str] = ()
    tells: Mapping[str, Collection[str]] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    def judge(self, world: World, earlier: Sequence[HistoryRow]) -> list[Violation]:
        """All that is wrong."""
        return list(dict.fromkeys(_wrong(self, world, world.facts(), earlier)))


def _wrong(
    expected: Expected, world: World, facts: Facts, earlier: Sequence[HistoryRow]
) -> Iterator[Violation]:
    yield from invariants.histories(facts.sagas, facts.history, earlier)
    # what is too late or comes again is noted, and changes nothing else
    changes = [c for c in facts.changes if c.changed or c.new_revision - c.old_revision != 1]
    yield from invariants.revisions(changes)
    yield from invariants.ended(facts.sagas, expected.ends)
    yield from invariants.same_request(facts.requests)
    ids = sorted(s.id for s in facts.sagas)
    if ids != sorted(facts.orders) or len(ids) != 1:
        yield Violation("I1", f"sagas {ids}", f"started for orders {facts.orders}")
    definition = _definition(expected.saga, world)
    for saga in facts.sagas:
        mine = [h for h in facts.history if h.saga_id == saga.id]
        unsaid = set(expected.unknowable) if earlier else set[str]()
        unsaid -= {h.step for h in mine if h.transition == "STEP_COMPLETED"}
        yield from _effects(expected, definition, facts, saga, mine, unsaid)
        yield from _told(expected, saga, mine)
        yield from _travels(definition, world, saga, mine)
    yield from _data(expected, world)
    yield from _money(facts)
    yield from _messages(world, facts)
    yield from _in_time(expected, world)
    yield from _on_record(expected, facts)


@functools.cache
def _definition(name: str, world: World) -> Saga[Any]:
    nobody = Provider(AppendLog(world.folder / "nobody"), CrashPoints(), world.questions)
    return DEFINED[name](Agency(nobody, (), world))


# --- effects -------------------------------------------------------------------------------------


def _effects(
    expected: Expected,
    definition: Saga[Any],
    facts: Facts,
    saga: SagaRow,
    history: Sequence[HistoryRow],
    unsaid: Collection[str],
) -> Iterator[Violation]:
    logs = [[e for e in log if e.saga_id == saga.id] for log in (facts.effects, facts.ledger)]
    both = [e for log in logs for e in log]
    about = f"saga {saga.id} ({saga.name})"
    completed = {h.step for h in history if h.transition == "STEP_COMPLETED"}
    for step in definition.steps:
        does, undoes = _count(both, step, "do"), _count(both, step, "undo")
        if step in expected.undoes_alone:
            wanted = int(saga.state == "compensated" and step in completed)
            if (does, undoes) != (0, wanted):
                yield Violation("I10", f"{about}, step {step}", f"{does} done, {undoes} undone")
            continue
        if step in unsaid and (does, undoes) == (1, 0):
            continue
        kept = expected.keeps if saga.state == "completed" else expected.stays
        if does > 1 or does - undoes != int(step in kept):
            told = f"{saga.state}: {does} done, {undoes} undone"
            yield Violation("I10", f"{about}, step {step}", told)
    for log in logs:
        for step in definition.steps:
            directions = [e.direction for e in log if e.step == step]
            if directions != sorted(directions):
                yield Violation("I11", f"{about}, step {step}", "an effect after its undo")
        undone = [e.step for e in log if e.direction == "undo"]
        yield from _reversed(definition, about, undone, "undone")
    undone = [h.step or "" for h in history if h.transition == "STEP_COMPENSATED"]
    if not any(h.detail == "late" for h in history):  # it came when all else was undone already
        yield from _reversed(definition, about, undone, "by its history undone")


def _count(effects: Iterable[Effect], step: str, direction: str) -> int:
    return sum(e.step == step and e.direction == direction for e in effects)


def _reversed(
    definition: Saga[Any], about: str, undone: Sequence[str], told: str
) -> Iterator[Violation]:
    for at, step in enumerate(undone):
        if wrong := definition.before(step).intersection(undone[:at]):
            yield Violation("I10", about, f"{told}: {undone}; {sorted(wrong)} before {step}")


def _money(facts: Facts) -> Iterator[Violation]:
    """I12: every row of an effect moved what it moves, once."""
    wanted = dict(BALANCES)
    for each in facts.effects:
        goods = each.step in TAKEN_PART
        source, target = ("stock", "reserved") if goods else ("buyer", "shop")
        cents = (PIECES if goods else PRICE) * (1 if each.direction == "do" else -1)
        wanted[source] -= cents
        wanted[target] += cents
    yield from invariants.conserved("I12", "account", facts.balances, wanted)


def _data(expected: Expected, world: World) -> Iterator[Violation]:
    """I7: what events brought, each to where it was for."""
    saga = OURS.saga
    completed = sa.select(saga.c.data).where(saga.c.state == "completed")
    with world.observer.connect() as connection:
        kept = [json.loads(text) for text in connection.scalars(completed)]
    for data in kept:
        found = {name: data[name] for name in expected.data}
        yield from invariants.conserved("I7", "data", found, expected.data)


# --- messages ------------------------------------------------------------------------------------


def _messages(world: World, facts: Facts) -> Iterator[Violation]:
    """I2, I3, I7: what entered the outbox was carried; what was carried was handled once."""
    for id_ in facts.pending:
        yield Violation("I3", f"message {id_}", "still pending at rest")
    for id_ in (*facts.dead, *facts.messages.delayed):
        yield Violation("I3", f"message {id_}", "a dead letter, or delayed")
    for consumer, id_, _ in facts.waiting:
        yield Violation("I7", f"message {id_}, consumer {consumer}", "waits")
    lines = {line["id"]: line for line in world.broker.read()}
    entered = facts.messages.entered
    for id_ in lines.keys() ^ entered.keys():
        told = "carried, and nobody published it" if id_ in lines else "published, never carried"
        yield Violation("I3", f"message {id_}", told)
    for id_, times in entered.items():
        if times != 1:
            yield Violation("I2", f"message {id_}", f"entered the outbox {times} times")
    yield from _commands(facts, list(lines.values()))
    # by all that comes once more at the end each of them was handled
    handled = [id_ for consumer, id_ in facts.inbox if ".saga." not in consumer]
    answers = sum(line["type"] == ANSWER for line in lines.values())
    if len(handled) != answers:
        yield Violation("I1", "answers", f"{len(handled)} commands handled, {answers} answers")


def _commands(facts: Facts, lines: Sequence[Mapping[str, Any]]) -> Iterator[Violation]:
    """I1: a command left for each transition that says so, and for no other."""
    said = Counter(
        (h.saga_id, h.step, "do" if h.transition == "RUNNING" else "undo", h.attempt)
        for h in facts.history
        if h.detail == "its command leaves"
    )
    left: Counter[tuple[str, str | None, str, int | None]] = Counter()
    answered: dict[tuple[Any, ...], set[str]] = {}
    for line in lines:
        envelope = read(dict(line))
        asked = Asked.of(envelope)
        if asked is not None:
            left[str(asked.saga), asked.step, asked.direction, asked.attempt] += 1
        elif line["type"] == ANSWER:
            answer = Answer.from_body(envelope.body, version=1)
            about = (answer.saga, answer.step, answer.direction)
            answered.setdefault(about, set()).add(f"{answer.done} {answer.data}")
    for key in said | left:
        if said[key] != left[key]:
            told = f"left {left[key]} times, by the history {said[key]} times"
            yield Violation("I1", f"command {key}", told)
    for about, told_ in answered.items():
        if len(told_) > 1:
            yield Violation("I7", f"answers {about}", f"were {sorted(told_)}")


def _travels(
    definition: Saga[Any], world: World, saga: SagaRow, history: Sequence[HistoryRow]
) -> Iterator[Violation]:
    """I1: of each transition that is told of one event left, in their order."""
    if definition.events is None:
        return
    wanted = [
        h.transition
        for h in history
        if h.transition in LIFE_CYCLE
        or h.transition == "STARTED"
        or (definition.step_events and h.step is not None)
    ]
    with world.observer.connect() as connection:
        bodies = list(connection.scalars(sa.select(entry.c.body).order_by(entry.c.number)))
    found = [json.loads(body) for body in bodies]
    told = [b["transition"] for b in found if b.keys() == Travels.model_fields.keys()]
    if told != wanted:
        yield Violation("I1", f"saga {saga.id}", f"told {told}, by its history {wanted}")


# --- time, and people ----------------------------------------------------------------------------


def _in_time(expected: Expected, world: World) -> Iterator[Violation]:
    """I15: whatever waited for a time waited so long, by the database's clock."""
    table = OURS.saga_history
    with world.observer.connect() as connection:
        rows = list(connection.execute(sa.select(table).order_by(table.c.number)))
    began: dict[str, Any] = {}
    for row in rows:
        detail = row.detail or ""
        if row.transition == "RUNNING" and detail.startswith("waits for "):
            began[row.step] = (row.at, float(detail.split(" ")[2]))
        over = row.transition == "STEP_COMPLETED" and row.step == "cool"
        nobody = row.transition == "STEP_FAILED" and detail.startswith("no ")
        if (over or nobody) and row.step in began:
            at, seconds = began[row.step]
            if (row.at - at).total_seconds() < seconds - STEPS_AHEAD:
                told = f"waited {(row.at - at).total_seconds()} of {seconds} s"
                yield Violation("I15", f"{expected.saga}, step {row.step}", told)


def _told(expected: Expected, saga: SagaRow, history: Sequence[HistoryRow]) -> Iterator[Violation]:
    seen = {f"{h.transition} {h.step or ''}".strip() for h in history}
    for wanted in expected.tells.get(saga.state, ()):
        if wanted not in seen:
            yield Violation("I8", f"saga {saga.id}", f"{saga.state} without {wanted}")
    parked = Counter(h.transition for h in history if h.transition.endswith("PARKED"))
    if parked["PARKED"] != parked["UNPARKED"]:
        yield Violation("I8", f"saga {saga.id}", f"{dict(parked)}")


def _on_record(expected: Expected, facts: Facts) -> Iterator[Violation]:
    """I20: each action once, with who and why, and in the history of what it was done to."""
    done = Counter(a.action for a in facts.messages.actions)
    if done != Counter(expected.acts):
        yield Violation("I20", expected.saga, f"on record: {dict(done)}")
    for action in facts.messages.actions:
        if (action.operator, action.reason) != ("ada", "it is mended"):
            yield Violation("I20", expected.saga, f"on record without who or why: {action}")
    # that it was cancelled is told once more at its end, as the reason
    noted = [h for h in facts.history if h.transition != "COMPENSATED"]
    by_ada = sum((h.detail or "").endswith("ada") for h in noted)
    if by_ada != len(expected.acts):
        yield Violation("I20", expected.saga, f"by ada {by_ada} times, by the history")
