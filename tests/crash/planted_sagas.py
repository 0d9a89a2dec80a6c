"""Our code with one rule about sagas taken out, for each rule; as `planted_messages`."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.instances import Entry, Instance
from outbox_saga.participants import Participants
from outbox_saga.queries import barriers, leases, sagas, transition
from outbox_saga.saga import (
    calls,
    changes,
    happened,
    interventions,
    onward,
    operating,
    progress,
    recording,
)
from outbox_saga.saga.happened import Call
from outbox_saga.saga.recording import Recording
from tests.crash.planted import PLANTED
from tests.crash.planted_messages import (
    Bug,
    Plant,
    commit_here,
    count_not_looked_at,
    first_commits,
    inbox_first,
    instead,
    lends_for_ever,
)

SERVERS = ("postgres18", "mariadb")


def _recorded(change: Any) -> Plant:
    """What is recorded is something else: `change` gets connection, instance and entries."""

    def plant() -> Any:
        ours = transition.record

        def record(
            connection: sa.Connection,
            tables: Any,
            clock: Any,
            seen: Instance,
            state: Any,
            due: Any,
            entries: Sequence[Entry],
            **options: Any,
        ) -> bool:
            seen, entries = change(connection, tables, seen, entries)
            return ours(connection, tables, clock, seen, state, due, entries, **options)

        return patch.object(transition, "record", record)

    return plant


def _as_it_is_now(connection: Any, tables: Any, seen: Instance, entries: Any) -> Any:
    current = sagas.read(connection, tables, seen.id, lock=True)
    assert current is not None
    return dataclasses.replace(seen, revision=current.revision), entries


def _without_undoings(connection: Any, tables: Any, seen: Instance, entries: Any) -> Any:
    del connection, tables
    return seen, [entry for entry in entries if entry.transition != "STEP_COMPENSATED"]


# --- what is decided -----------------------------------------------------------------------------


def _without_intent() -> Any:
    ours = calls.call

    def call(definition: Any, state: Any, rule: Any, direction: Any, *told: Any) -> Any:
        if direction == "undo":
            return ours(definition, state, rule, direction, *told)
        told[-1].append(Call(rule.name, "do", state.steps[rule.name].attempts + 1))
        return state

    return patch.object(calls, "call", call)


def _undone_before_it_is() -> Any:
    ours = calls.call

    def call(definition: Any, state: Any, rule: Any, direction: Any, *told: Any) -> Any:
        moved = ours(definition, state, rule, direction, *told)
        if direction == "do":
            return moved
        told[1].append(Entry("STEP_COMPENSATED", rule.name, 1))
        return moved.with_step(rule.name, phase="undone", input=None)

    return patch.object(calls, "call", call)


def _undone_as_it_was_done() -> Any:
    ours: Any = vars(onward)["_backward"]

    def backward(definition: Any, *told: Any) -> Any:
        flat = copy.copy(definition)
        steps = reversed(list(definition.steps.items()))
        flat._steps = {name: dataclasses.replace(rule, after=()) for name, rule in steps}
        return ours(flat, *told)

    return patch.object(onward, "_backward", backward)


def _early_is_too_early() -> Any:
    ours = progress.arrived

    def arrived(definition: Any, state: Any, name: str, brought: Any) -> Any:
        if state.steps[name].phase == "waiting":
            return state, (Entry("IGNORED", name, None, "it came too early"),)
        return ours(definition, state, name, brought)

    return patch.object(sys.modules["outbox_saga.saga.arrivals"], "arrived", arrived)


def _skipped_by_nobody() -> Any:
    ours: Any = vars(interventions)["_skipped"]

    def skipped(state: Any, name: str, action: Any, entries: Any) -> Any:
        moved = ours(state, name, action, entries)
        entries[-1] = dataclasses.replace(entries[-1], detail=None)
        return moved

    return patch.object(interventions, "_skipped", skipped)


# --- where it is committed -----------------------------------------------------------------------


def _commands_afterwards() -> Any:
    ours: Any = vars(Recording)["record_alone"]

    def record(self: Any, connection: Any, *told: Any) -> Any:
        found = ours(self, connection, *told)
        commit_here(connection)
        return found

    return patch.object(Recording, "record_alone", record)


# --- who has it, and who takes part --------------------------------------------------------------


def _of_any_shape() -> Any:
    ours: Any = vars(leases)["_due"]

    def due(tables: Any, clock: Any, owner: Any, known: Any, **options: Any) -> Any:
        return ours(tables, clock, owner, dataclasses.replace(known, shapes=None), **options)

    return patch.object(leases, "_due", due)


def _no_barrier(*_: Any) -> None:
    return None


def _undoing_leaves_no_row() -> Any:
    ours = barriers.enter

    def enter(connection: Any, tables: Any, clock: Any, asked: Any, state: Any) -> Any:
        known = ours(connection, tables, clock, asked, state)
        if known is None and state == "cancelled":
            barrier = tables.barrier
            mine = sa.and_(barrier.c.saga_id == asked.saga, barrier.c.step == asked.step)
            connection.execute(sa.delete(barrier).where(mine))
        return known

    return patch.object(barriers, "enter", enter)


def _answers_whatever_was_answered() -> Any:
    ours: Any = vars(Participants)["_enter"]

    def enter(self: Any, connection: Any, asked: Any) -> Any:
        known = ours(self, connection, asked)
        if known is not None and asked.direction == "do":
            return known.model_copy(update={"done": not known.done, "data": {}})
        return known

    return patch.object(Participants, "_enter", enter)


async def _nobody_is_told(self: Any, *_: Any) -> None:
    """Of a call that has succeeded for whoever has lost the instance."""


SAGA_BUGS = {
    bug.rule: bug
    for bug in (
        Bug(
            "a transition is of what was seen",
            "journey parallel",
            _recorded(_as_it_is_now),
            databases=SERVERS,  # SQLite has one writer at a time
        ),
        Bug("the intent is committed before the call", "saga external-query", _without_intent),
        Bug(
            "one key for every attempt",
            "saga external-exception",
            code=PLANTED["key re-made on retry"],
        ),
        Bug(
            "a step's effect and its progress commit together",
            "journey timer",
            code=PLANTED["effect and progress in two transactions"],
        ),
        Bug(
            "what depends on it is undone first",
            "journey commands-undone",
            _undone_as_it_was_done,
        ),
        Bug("undone is what has been undone", "journey kinds-undone", _undone_before_it_is),
        Bug(
            "a late success is undone",
            "journey late-success",
            instead(recording, "came_late", lambda _, state, *__: (state, ())),
        ),
        Bug(
            "a participant asks its barrier",
            "journey answer-lost",
            instead(barriers, "enter", _no_barrier),
        ),
        Bug(
            "an undoing refuses the command that comes after it",
            "journey command-unanswered",
            _undoing_leaves_no_row,
        ),
        Bug(
            "a command that comes again is answered as before",
            "journey answer-lost",
            _answers_whatever_was_answered,
        ),
        Bug(
            "an event and its inbox row commit together",
            "journey event-in-time",
            inbox_first,
        ),
        Bug("an event is taken in once", "journey two-events", count_not_looked_at),
        Bug("an early event is kept", "journey event-early", _early_is_too_early),
        Bug(
            "a moment comes by the database's clock",
            "journey timer",
            instead(happened.Surroundings, "after", lambda self, _: self.now),
        ),
        Bug(
            "a deadline turns back",
            "journey deadline",
            instead(onward, "_deadline", lambda *_: None),
        ),
        Bug(
            "beyond the pivot no deadline counts",
            "journey deadline-beyond-pivot",
            instead(onward, "pivot_done", lambda *_: False),
        ),
        Bug(
            "beyond the pivot nothing turns back",
            "journey retried",
            instead(changes, "pivot_done", lambda *_: False),
        ),
        Bug(
            "a failure counts at its breaker",
            "journey breaker",
            instead(recording, "note_outcome", lambda *_: None),
        ),
        Bug(
            "a step is left out if its when= says so",
            "journey when",
            instead(
                onward,
                "_choose",
                lambda _, state, rule, __: state.with_step(rule.name, chosen=True),
            ),
        ),
        Bug(
            "an action and its record commit together",
            "journey retried",
            first_commits(operating, "note_action"),
        ),
        Bug("who skipped a step is kept", "journey skipped", _skipped_by_nobody),
        Bug(
            "every transition is in the history",
            "journey commands-undone",
            _recorded(_without_undoings),
        ),
        Bug(
            "history commits with what it tells of",
            "journey timer",
            first_commits(sagas, "add_history"),
            databases=("sqlite", "mariadb"),  # on PostgreSQL it is one statement
        ),
        Bug(
            "what is told of a saga commits with it",
            "journey started",
            first_commits(recording, "announce"),
        ),
        Bug(
            "a command commits with the transition that sends it",
            "journey command",
            _commands_afterwards,
        ),
        Bug(
            "an instance is carried on by its own shape only",
            "journey parked",
            _of_any_shape,
        ),
        Bug(
            "whoever is cancelled in a step gives the connection back",
            "journey timer",
            instead(Database, "lend_async", lends_for_ever),
            by="cancel",
        ),
    )
}
