"""Events that sagas wait for: from a handler into the instance, in one transaction.

The transition and the inbox row commit together. What follows is the orchestrator's affair: the
instance is due from then on. Whoever has it in hand at that moment loses its next compare-and-set
and reads it again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import SagaUnknown, SagaUnreadable
from outbox_saga.handler_context import HandlerContext
from outbox_saga.ids import saga_id
from outbox_saga.instances import OVER_FOR_GOOD, Instance
from outbox_saga.messages import Message
from outbox_saga.queries import sagas, transition
from outbox_saga.saga.announcing import announce
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.definitions import Definitions
from outbox_saga.saga.progress import arrived
from outbox_saga.saga.put_aside import instance_of, put_aside, stands_behind
from outbox_saga.saga.steps import Awaited, Step
from outbox_saga.saga.taking_over import known

Handler: TypeAlias = Callable[[HandlerContext[Any]], Awaitable[None]]


# why an instance cannot take in now what it may another time, or in another process
CANNOT: tuple[type[Exception], ...] = (SagaUnknown, SagaUnreadable)


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event, and for whom."""

    saga: str
    consumer: str
    message: Message
    envelope: Envelope


class Arrivals:
    """What the sagas of one service wait for.

    Args:
        database: Where the instances are.
        source: The service that started them.
        definitions: Its sagas, of every version.
    """

    def __init__(self, database: Database, source: str, definitions: Iterable[Saga[Any]]) -> None:
        self._database = database
        self._source = source
        self._definitions = Definitions(definitions)

    def handlers(self) -> Iterator[tuple[type[Message], str, Handler]]:
        """For each saga and each type of event that it waits for: the type, a consumer's name, and
        the function that handles it.
        """
        wanted: dict[tuple[str, str], type[Message]] = {}
        for definition in self._definitions:
            for step in definition.steps.values():
                for message_class in () if step.event is None else step.event.classes:
                    wanted.setdefault((definition.name, message_class.type_name), message_class)
        for (saga, type_name), message_class in wanted.items():
            consumer = f"{self._source}.saga.{saga}.{type_name}"
            yield message_class, consumer, self._handler(saga, consumer)

    def _handler(self, saga: str, consumer: str) -> Handler:
        async def take_in(handle: HandlerContext[Any]) -> None:
            arrival = Arrival(saga, consumer, handle.message, handle.envelope)
            await handle.session.run_sync(lambda s: self._arrive(s.connection(), arrival))

        return take_in

    def _arrive(self, connection: sa.Connection, arrival: Arrival) -> None:
        """Who can take the event in does so; it waits for each of the others alone.

        If nobody can, it waits as it is, as any message does that its handler fails on.
        """
        tables, clock = self._database.tables, self._database.clock
        missed: dict[UUID, Exception] = {}
        heard = False
        # in the order of their ids: two events for the same two instances do not wait in a circle
        for id_ in sorted(self._ids(connection, arrival)):
            try:
                heard |= self._tell(connection, arrival, id_)
            except CANNOT as why:  # nothing was written for this one
                if not sagas.is_over(connection, tables, id_):
                    missed[id_] = why
        if not heard:
            for error in missed.values():
                raise error
        for id_, error in missed.items():
            put_aside(connection, tables, clock, arrival.consumer, arrival.envelope, id_, error)

    def _ids(self, connection: sa.Connection, arrival: Arrival) -> set[UUID]:
        """The instances that the event is for."""
        told_by = {
            step.event.business_key
            for definition in self._definitions
            if definition.name == arrival.saga
            for step in _waiting_for(definition, arrival.message)
            if step.event is not None
        }
        ids: set[UUID] = set()
        correlation_id = arrival.envelope.correlation_id
        for business_key in told_by:
            if business_key is not None:
                ids.add(saga_id(self._source, arrival.saga, business_key(arrival.message)))
            elif correlation_id is not None:
                ids.update(
                    sagas.of_correlation(
                        connection, self._database.tables, arrival.saga, correlation_id
                    )
                )
        only = instance_of(arrival.envelope)
        return ids if only is None else ids & {only}

    def _tell(self, connection: sa.Connection, arrival: Arrival, id_: UUID) -> bool:
        """Whether the instance goes on, and has the event now, or will have it in its turn."""
        tables, clock, consumer = self._database.tables, self._database.clock, arrival.consumer
        instance = sagas.read(connection, tables, id_, lock=True)
        if instance is None or instance.state.status in OVER_FOR_GOOD:
            return False
        if (
            instance_of(arrival.envelope) is not None
            or not stands_behind(connection, tables, consumer, id_)
            or not put_aside(connection, tables, clock, consumer, arrival.envelope, id_, None)
        ):
            self._move(connection, instance, arrival.message)
        return True

    def _move(self, connection: sa.Connection, instance: Instance, message: Message) -> None:
        tables, clock = self._database.tables, self._database.clock
        definition, instance = known(self._definitions, connection, tables, clock, instance)
        name = self._step_for(definition, instance, message)
        if name is None:
            return
        awaited = definition.steps[name].event
        assert awaited is not None
        state, entries = arrived(
            definition, instance.state, name, _brought(definition, awaited, message)
        )
        moved = transition.record(
            connection,
            tables,
            clock,
            instance,
            state,
            None if state.status == "stuck" else clock.read(connection),
            entries,
            keep_lease=True,
            keep_deaths=True,
        )
        assert moved, "it is locked"
        announce(connection, tables.schema, definition, instance, state, entries)

    @staticmethod
    def _step_for(definition: Saga[Any], instance: Instance, message: Message) -> str | None:
        """The first that this event may be for; the last one, if it is too late for all."""
        names = [step.name for step in _waiting_for(definition, message)]
        steps = instance.state.steps
        open_ = [
            n
            for n in names
            if steps[n].phase == "listening"
            or (steps[n].phase == "waiting" and not steps[n].heard)
        ]
        return next(iter(open_), names[-1] if names else None)


def _brought(definition: Saga[Any], awaited: Awaited, message: Message) -> Mapping[str, Any] | str:
    if awaited.is_no(message):
        return f"{message.type_name} came"
    brought = awaited.take(message) if awaited.take is not None else None
    return definition.fields_of(brought) or {}


def _waiting_for(definition: Saga[Any], message: Message) -> Iterable[Step]:
    for step in definition.steps.values():
        event = step.event
        if event is not None and message.type_name in {each.type_name for each in event.classes}:
            yield step
