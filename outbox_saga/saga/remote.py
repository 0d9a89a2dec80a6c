"""Steps that other services carry out: commands out, answers in.

A command leaves with the transition that says so. Its answer is taken in by a handler, in one
transaction with its inbox row; what follows is the orchestrator's affair: the instance is due from
then on.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeAlias

import sqlalchemy as sa

from outbox_saga.commanding import Answer, Asked, answers_on, replies_topic
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.errors import SagaUnknown
from outbox_saga.handler_context import HandlerContext
from outbox_saga.ids import idempotency_key
from outbox_saga.instances import OVER_FOR_GOOD, Instance
from outbox_saga.messages import Message
from outbox_saga.queries import sagas, transition
from outbox_saga.saga.announcing import announce
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.definitions import Definitions
from outbox_saga.saga.happened import Done, Refused, Send, Surroundings
from outbox_saga.saga.progress import replied
from outbox_saga.saga.taking_over import known

logger = logging.getLogger("outbox_saga.saga")

Handler: TypeAlias = Callable[[HandlerContext[Any]], Awaitable[None]]


def command_of(definition: Saga[Any], instance: Instance, send: Send) -> Envelope:
    """The command as it leaves. All commands of an instance have its id as their key: whoever
    handles them by key gets a command before its undoing.
    """
    step = definition.steps[send.step]
    rule = step.command
    assert rule is not None
    asked = Asked(
        instance.id,
        send.step,
        send.direction,
        send.generation,
        send.attempt,
        replies_topic(instance.source),
        alone=step.kind != "command",
    )
    return seal(
        rule.message(send.direction, send.fields),
        key=str(instance.id),
        headers=asked.headers(),
        source=instance.source,
        correlation_id=instance.correlation_id,
        causation_id=str(idempotency_key(instance.id, send.step, send.direction, send.generation)),
    )


class Answers:
    """Takes in what participants answer to the commands of one service's sagas.

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
        """The type, a consumer's name, and the function that handles it; none without commands."""
        steps = (s for d in self._definitions for s in d.steps.values())
        if any(step.command is not None for step in steps):
            yield (
                answers_on(replies_topic(self._source)),
                f"{self._source}.saga.answers",
                self._take_in,
            )

    async def _take_in(self, handle: HandlerContext[Any]) -> None:
        answer: Answer = handle.message
        await handle.session.run_sync(lambda s: self._move(s.connection(), answer))

    def _move(self, connection: sa.Connection, answer: Answer) -> None:
        tables, clock = self._database.tables, self._database.clock
        if answer.fault:  # no answer: it is neither done nor refused
            logger.warning(
                "the command of step %s of saga %s was given up", answer.step, answer.saga
            )
            return
        instance = sagas.read(connection, tables, answer.saga, lock=True)
        if instance is None:
            raise SagaUnknown(f"an answer came for saga {answer.saga}, which is not here")
        if instance.state.status in OVER_FOR_GOOD:
            logger.info("saga %s is over; an answer for %s came late", instance.id, answer.step)
            return
        definition, instance = known(self._definitions, connection, tables, clock, instance)
        now = clock.read(connection)
        around = Surroundings(now, seed=str(instance.id), started_at=instance.started_at)
        state, entries = replied(
            definition, instance.state, _happened(answer), answer.generation, around
        )
        moved = transition.record(
            connection,
            tables,
            clock,
            instance,
            state,
            None if state.status == "stuck" else now,
            entries,
            keep_lease=True,
            keep_deaths=True,
        )
        assert moved, "it is locked"
        announce(connection, tables.schema, definition, instance, state, entries)


def _happened(answer: Answer) -> Done | Refused:
    if answer.done:
        added = answer.data if answer.direction == "do" else None
        return Done(answer.step, answer.direction, answer.attempt, added or None)
    return Refused(answer.step, answer.direction, answer.attempt, answer.reason)
