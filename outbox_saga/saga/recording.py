"""The transition: compare-and-set, history, messages and breakers, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.errors import LeaseLost
from outbox_saga.instances import ENDED, Entry, Instance, SagaState
from outbox_saga.queries import breakers, sagas, transition
from outbox_saga.queries.delayed import Delayed
from outbox_saga.queries.dialects import limit_idle_transaction
from outbox_saga.saga.announcing import announce
from outbox_saga.saga.breaking import let_through, note_outcome
from outbox_saga.saga.changes import unstuck
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.happened import (
    Decision,
    Done,
    Errored,
    Happened,
    NotFound,
    Refused,
    Resumed,
    Unusable,
)
from outbox_saga.saga.progress import came_late, decide
from outbox_saga.saga.remote import command_of
from outbox_saga.unit_of_work import UnitOfWork


class Recording:
    """Writes what `decide` decided, whoever else has moved the instance meanwhile."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record_alone(
        self, connection: sa.Connection, hand: Hand, happened: Happened, kept: Sequence[Delayed]
    ) -> tuple[Decision, Instance]:
        """As `record`, in a transaction of its own, which the caller commits."""
        # a process that stands still before the commit must not keep the row from its successor
        limit_idle_transaction(connection, hand.lease)
        return self.record(connection, hand, happened, kept)

    def record(
        self,
        connection: sa.Connection,
        hand: Hand,
        happened: Happened,
        kept: Sequence[Delayed],
    ) -> tuple[Decision, Instance]:
        """Compare-and-set and history, in the transaction of `connection`; the caller commits.

        A lost compare-and-set is not a lost step: another branch of the same saga moved it, so the
        row is read again, locked, and decided again. Only a lease that was taken over ends it.

        Args:
            kept: What the step published; it leaves if the step has succeeded.
        """
        tables, clock = self._database.tables, self._database.clock
        flight = None
        if isinstance(happened, Done | Refused | Errored):
            flight = (happened.step, happened.direction)
        elif isinstance(happened, NotFound | Unusable):
            flight = (happened.step, "do")
        hand.will_begin(flight, ())
        seen = hand.instance
        opened = note_outcome(connection, tables, clock, hand.definition, happened)
        probes: frozenset[str] = frozenset()
        for locked in (False, True):
            if locked:
                # the first decision's; left there they would hold back the calls of this one
                breakers.give_back(connection, tables, clock, probes)
                current = sagas.read(connection, tables, seen.id, lock=True)
                if current is None or current.epoch != seen.epoch:
                    raise LeaseLost(f"saga {seen.id} was taken over; this attempt was rolled back")
                seen = current
            state, around = seen.state, hand.deciding(seen.state, flight)
            decision, probes = let_through(
                connection,
                tables,
                clock,
                hand.definition,
                lambda gates, state=state, around=around: decide(  # type: ignore[misc]
                    hand.definition, state, happened, replace(around, gates=gates)
                ),
                hand.lease,
            )
            if opened is not None:
                decision = replace(decision, entries=(*decision.entries, opened))
            if decision.state == seen.state and not decision.entries:
                hand.will_begin(flight, decision.todo)
                return decision, seen  # nothing to write: an instance taken up to run a local step
            if not locked and _sets_a_moment(state, decision):
                # counted from a moment before another one's lock was waited for, it would be early
                continue
            if transition.record(
                connection,
                tables,
                clock,
                seen,
                decision.state,
                decision.due,
                decision.entries,
                keep_lease=decision.busy,
                keep_deaths=isinstance(happened, Resumed),
            ):
                break
        else:
            raise LeaseLost(f"saga {seen.id} was taken over; this attempt was rolled back")
        announce(
            connection, tables.schema, hand.definition, seen, decision.state, decision.entries
        )
        uow = UnitOfWork(connection, schema=tables.schema)
        if isinstance(happened, Done) and not came_too_late(decision):
            for message in kept:
                uow.keep_sealed(*message)
        for send in decision.sends:
            uow.keep_sealed(command_of(hand.definition, seen, send))
        # the row is still locked: nobody decides between the commit and this
        hand.will_begin(flight, decision.todo)
        deaths = seen.deaths if isinstance(happened, Resumed) else 0
        moved = replace(seen, revision=seen.revision + 1, state=decision.state, deaths=deaths)
        return decision, moved

    def record_late(
        self, connection: sa.Connection, hand: Hand, happened: Done, kept: Sequence[Delayed]
    ) -> None:
        """Another process has the instance: it is told, and finds it at its next transition."""
        tables, clock = self._database.tables, self._database.clock
        limit_idle_transaction(connection, hand.lease)
        current = sagas.read(connection, tables, hand.instance.id, lock=True)
        if current is None:
            return
        generation = hand.instance.state.steps[happened.step].generation
        # one of a later version has data that is not ours to write
        usable = current.shape == hand.instance.shape
        state, entries = came_late(
            hand.definition, current.state, happened, generation, usable=usable
        )
        if state == current.state:
            return  # it is known already: who was passed changes nothing
        moved = transition.record(
            connection,
            tables,
            clock,
            current,
            state,
            None if state.status in ENDED else clock.read(connection),
            entries,
            keep_lease=True,
            keep_deaths=True,
        )
        assert moved, "it is locked"
        announce(connection, tables.schema, hand.definition, current, state, entries)
        uow = UnitOfWork(connection, schema=tables.schema)
        for message in kept:
            uow.keep_sealed(*message)

    def give_up(self, connection: sa.Connection, hand: Hand, why: str) -> None:
        """The instance waits for a person, if it is still as seen."""
        tables, clock = self._database.tables, self._database.clock
        seen = hand.instance
        reason = f"could not be carried on: {why}"
        state = replace(
            unstuck(seen.state), status="stuck", reason=reason,
            before=(seen.state.status, seen.state.reason),
        )  # fmt: skip
        entries = [Entry("FAILED", None, None, reason, code="error")]
        if transition.record(
            connection, tables, clock, seen, state, None, entries,
            keep_lease=False, keep_deaths=False,
        ):  # fmt: skip
            announce(connection, tables.schema, hand.definition, seen, state, entries)


def _sets_a_moment(state: SagaState, decision: Decision) -> bool:
    """Whether a step waits for a moment that it did not wait for before."""
    return any(
        step.due is not None and step.due != state.steps[name].due
        for name, step in decision.state.steps.items()
    )


def came_too_late(decision: Decision) -> bool:
    """What happened changes nothing any more; only its coming is on record."""
    return any(entry.transition == "IGNORED" for entry in decision.entries)
