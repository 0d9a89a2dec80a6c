"""Sagas for the people who look after a service: look, and decide about those that are stuck.

sagas = SagaOperations(service.database, service.sagas)
for seen in await sagas.list(state="stuck"):
    await sagas.resume(seen, Decision("ada", "the bank is back"))
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.decisions import Decision
from outbox_saga.errors import ActionRefused, MessageRefused, SagaUnknown, SeenChanged
from outbox_saga.instances import Entry, Instance
from outbox_saga.queries import sagas as rows
from outbox_saga.queries import sagas_seen, transition
from outbox_saga.queries.operators import note_action
from outbox_saga.queries.sagas_seen import Happening
from outbox_saga.saga.announcing import announce
from outbox_saga.saga.breaking import gates_now
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.definitions import Definitions
from outbox_saga.saga.happened import Resumed, Surroundings, ToDo
from outbox_saga.saga.interventions import Intervention, intervene
from outbox_saga.saga.progress import decide
from outbox_saga.saga.taking_over import take_over, taken_over, why_not

__all__ = ["Happening", "Instance", "Plan", "SagaOperations"]

logger = logging.getLogger("outbox_saga.operators")


@dataclass(frozen=True, slots=True)
class Plan:
    """What an action would do.

    Args:
        entries: Of the history that it would write, and those of what follows at once.
        todo: What would be carried out next.
        leased: A process has the instance now. What follows depends on what that one reports, so
            only what the action itself writes is told.
    """

    entries: tuple[Entry, ...]
    todo: tuple[ToDo, ...]
    leased: bool


class SagaOperations:
    """The sagas of one database, for those who decide about them.

    An action is done if, and only if, the instance is still at the revision it was seen at; who
    and why is on record with it, in the transaction that does it.

    Args:
        database: Where the instances are.
        definitions: Of their versions; to look, none is needed.
    """

    def __init__(self, database: Database, definitions: Iterable[Saga[Any]] = ()) -> None:
        self._database = database
        self._definitions = Definitions(definitions)

    # --- looking ---------------------------------------------------------------------------------

    async def list(self, **wanted: Any) -> Sequence[Instance]:
        """Instances in the order of their ids; options as `queries.sagas_seen.list_sagas`: name,
        state, business_key, correlation_id, after, limit.
        """
        return await self._database.look(sagas_seen.list_sagas, self._database.tables, **wanted)

    async def show(self, id_: UUID) -> tuple[Instance, Sequence[Happening]]:
        """The instance as it is, and all that happened to it.

        Raises SeenChanged when there is none.
        """
        tables = self._database.tables

        def read(connection: sa.Connection) -> tuple[Instance, Sequence[Happening]]:
            return _there(rows.read(connection, tables, id_), id_), sagas_seen.history(
                connection, tables, id_
            )

        return await self._database.look(read)

    async def alive(self, source: str) -> Mapping[tuple[str, int, str], int]:
        """How many instances of this service go on, or may when a person has helped; by saga,
        version and shape.
        """
        return await self._database.look(sagas_seen.alive, self._database.tables, source)

    async def plan(self, seen: Instance, action: Intervention) -> Plan:
        """What the action would write to the history, and what would be carried out next; nothing
        is changed, and no probe of a breaker is taken.

        Raises as the action itself.
        """
        definition = self._definition_of(seen)
        database = self._database
        tables, clock = database.tables, database.clock

        def look(connection: sa.Connection) -> Plan:
            current = _as_seen(rows.read(connection, tables, seen.id), seen)
            leased = sagas_seen.is_leased(connection, tables, clock, seen.id)
            if leased and current.shape != definition.shape:
                raise _in_older_hands(current)
            current = _upcast(definition, current)
            state, entries = intervene(definition, current.state, action)
            if leased:
                return Plan(tuple(entries), (), leased=True)
            around = Surroundings(
                clock.read(connection),
                seed=str(current.id),
                started_at=current.started_at,
                gates=gates_now(connection, tables, clock, definition),
            )
            decision = decide(definition, state, Resumed(), around)
            return Plan((*entries, *decision.entries), decision.todo, leased=False)

        return await database.look(look)

    # --- deciding --------------------------------------------------------------------------------

    async def retry(
        self, seen: Instance, step: str, decision: Decision, *, new_key: bool = False
    ) -> None:
        """The stuck step is tried again, with all its attempts.

        Args:
            new_key: Under a new idempotency key: only where the other side certainly has not
                acted, and would repeat its refusal under the old one.

        Raises:
            SeenChanged: The instance is not as it was seen.
            ActionRefused: The step is not stuck, or cannot be tried again.
            SagaUnknown: No definition of its version and shape was given.
        """
        action = Intervention("retry", step, decision.operator, new_key=new_key)
        await self._act(seen, action, decision)

    async def skip(self, seen: Instance, step: str, decision: Decision) -> None:
        """The saga goes on without the stuck step, or without its compensation. Raises as `retry`.

        Whatever it may have done stays.
        """
        await self._act(seen, Intervention("skip", step, decision.operator), decision)

    async def mark_done(
        self,
        seen: Instance,
        step: str,
        decision: Decision,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """The stuck step, or its compensation, counts as done: by other means, as the decision's
        reason tells. Raises as `retry`.

        Args:
            data: What the step would have returned.
        """
        action = Intervention("mark_done", step, decision.operator, data)
        await self._act(seen, action, decision)

    async def cancel(self, seen: Instance, decision: Decision) -> None:
        """A running saga is undone; what runs settles first. Raises as `retry`.

        ActionRefused when its pivot was carried out, or it is being undone already.
        """
        await self._act(seen, Intervention("cancel", None, decision.operator), decision)

    async def resume(self, seen: Instance, decision: Decision) -> None:
        """Every stuck step is tried again. Raises as `retry`."""
        await self._act(seen, Intervention("resume", None, decision.operator), decision)

    async def _act(self, seen: Instance, action: Intervention, decision: Decision) -> None:
        definition = self._definition_of(seen)
        database = self._database
        tables, clock = database.tables, database.clock

        def act(connection: sa.Connection) -> None:
            current = _as_seen(rows.read(connection, tables, seen.id, lock=True), seen)
            current = _taken_over(connection, database, definition, current)
            state, entries = intervene(definition, current.state, action)
            moved = transition.record(
                connection,
                tables,
                clock,
                current,
                state,
                clock.read(connection),
                entries,
                keep_lease=True,
                keep_deaths=False,
            )
            assert moved, "it is locked"
            announce(connection, tables.schema, definition, current, state, entries)
            detail = {
                "saga": seen.name,
                "step": action.step,
                "revision": current.revision,
                "state": current.state.status,
                "new_key": action.new_key,
            }
            subject = f"saga {seen.id}"
            note_action(
                connection, tables, clock, decision, f"saga.{action.kind}", subject, detail
            )

        await database.run(act)
        logger.info("saga.%s by %s: saga %s", action.kind, decision.operator, seen.id)

    def _definition_of(self, seen: Instance) -> Saga[Any]:
        definition = self._definitions.of(seen)
        if definition is None:
            raise SagaUnknown(
                f"saga {seen.id} is of {seen.name} version {seen.version}, and no definition of "
                "that shape is here; use the release it was started with"
            )
        return definition


def _there(found: Instance | None, id_: UUID) -> Instance:
    if found is None:
        raise SeenChanged(f"there is no saga {id_} here; list them")
    return found


def _as_seen(found: Instance | None, seen: Instance) -> Instance:
    current = _there(found, seen.id)
    if current.revision != seen.revision:
        raise SeenChanged(
            f"saga {seen.id} is at revision {current.revision}, and you saw {seen.revision}; look "
            "again"
        )
    return current


def _in_older_hands(current: Instance) -> ActionRefused:
    return ActionRefused(
        f"saga {current.id} is carried on by a process of an older release now; try again when it "
        "has put it down"
    )


def _upcast(definition: Saga[Any], seen: Instance) -> Instance:
    try:
        return taken_over(definition, seen)
    except MessageRefused as refused:
        raise ActionRefused(f"saga {seen.id}: {why_not(refused)}") from refused


def _taken_over(
    connection: sa.Connection, database: Database, definition: Saga[Any], current: Instance
) -> Instance:
    tables, clock = database.tables, database.clock
    try:
        new = take_over(connection, tables, clock, definition, current, leased=False)
    except MessageRefused as refused:
        raise ActionRefused(f"saga {current.id}: {why_not(refused)}") from refused
    if new is None:
        raise _in_older_hands(current)
    return new
