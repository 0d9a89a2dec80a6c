"""Participants: services that carry out what other services' sagas command.

Whatever comes, in whatever order and however often: a command is carried out once and answered
with the same answer each time, an undoing undoes it once, and a command that comes after its
undoing is refused. What decides is one row, in the transaction of the effect: see
`queries.barriers`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from outbox_saga.answers import fields, outgoing
from outbox_saga.commanding import Answer, Asked
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import AlteredRequest, ConfigurationError
from outbox_saga.handler_context import HandlerContext, SyncHandlerContext
from outbox_saga.handlers import Handlers
from outbox_saga.ids import idempotency_key
from outbox_saga.inbox import is_async
from outbox_saga.messages import Command
from outbox_saga.payloads import storable
from outbox_saga.queries import barriers
from outbox_saga.queries.inbox import body_hash
from outbox_saga.results import Failure, Success

MAX_REASON = 500  # characters of a no that travel

CANCELLED = "it was undone before it came"
_COMMAND = "command"  # beside the fields of an answer that is kept: what it was the answer to


class Participants:
    """Wraps the handlers of one service's commands.

    Args:
        database: Where its barrier rows are, with what its handlers change.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._undone_by: dict[type[Command], type[Command]] = {}

    def pair(self, command: type[Command], undo: type[Command] | None) -> None:
        """`undo` undoes what `command` has done."""
        if undo is not None:
            self._undone_by[command] = undo

    def check(self, handlers: Handlers) -> None:
        """Raises ConfigurationError for a command that nobody here could undo."""
        for command, undo in self._undone_by.items():
            if undo.topic is None or not any(handlers.of_type(undo.topic, undo.type_name, None)):
                raise ConfigurationError(
                    f"{command.__name__} is undone by {undo.__name__}, which nothing handles "
                    f"here: decorate a function with @service.handles({undo.__name__})"
                )

    def wrap(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The handler that takes part: carries out, answers, and never twice."""
        if is_async(function):

            async def take_part(handle: HandlerContext[Any]) -> Any:
                asked = Asked.of(handle.envelope)
                if asked is None:
                    return _for_nobody(await function(handle))
                session = handle.session
                known = await session.run_sync(
                    lambda s: self._enter(s.connection(), asked, handle.envelope)
                )
                if known is None:
                    _give_key(handle, asked)
                    nested = await session.begin_nested()
                    answer = _answer(handle, asked, await function(handle))
                    # a no leaves nothing behind: neither rows nor messages
                    await (nested.commit() if answer.done else nested.rollback())
                    await session.run_sync(
                        lambda s: self._note(s.connection(), asked, handle.envelope, answer)
                    )
                    known = answer
                _reply(handle, asked, known)
                return None

            return take_part

        def take_part_in_thread(handle: SyncHandlerContext[Any]) -> Any:
            asked = Asked.of(handle.envelope)
            if asked is None:
                return _for_nobody(function(handle))
            session = handle.session
            known = self._enter(session.connection(), asked, handle.envelope)
            if known is None:
                _give_key(handle, asked)
                nested = session.begin_nested()
                known = _answer(handle, asked, function(handle))
                if known.done:
                    nested.commit()
                else:
                    nested.rollback()
                self._note(session.connection(), asked, handle.envelope, known)
            _reply(handle, asked, known)
            return None

        return take_part_in_thread

    # --- the barrier -----------------------------------------------------------------------------

    def _enter(self, connection: sa.Connection, asked: Asked, command: Envelope) -> Answer | None:
        """The answer that is known already; None: the handler has to act.

        Raises AlteredRequest: Another command has this answer.
        """
        tables, clock = self._database.tables, self._database.clock
        doing = asked.acts
        known = barriers.enter(connection, tables, clock, asked, "doing" if doing else "cancelled")
        if doing:
            if known is None or (asked.alone and known.state == "refused"):
                return None  # who would not undo it before may do so now
            if known.answer is not None:
                _same_request(asked, command, json.loads(known.answer).get(_COMMAND))
                original = Answer.model_validate_json(known.answer)
                return original.model_copy(update={"attempt": asked.attempt})
            return Answer.to(asked, done=False, reason=CANCELLED)
        if known is not None and known.state == "done":
            return None
        # it never came, or has done nothing, or is undone
        return Answer.to(asked, done=True)

    def _note(
        self, connection: sa.Connection, asked: Asked, command: Envelope, answer: Answer
    ) -> None:
        tables, clock = self._database.tables, self._database.clock
        if asked.acts:
            state: barriers.State = "done" if answer.done else "refused"
            kept = {**answer.model_dump(mode="json"), _COMMAND: _told_apart_by(command)}
            barriers.note(connection, tables, clock, asked, state, json.dumps(kept))
        elif answer.done:
            barriers.note(connection, tables, clock, asked, "undone")


def _told_apart_by(command: Envelope) -> dict[str, Any]:
    return {
        "type": command.type,
        "version": command.version,
        "sha256": body_hash(command.body).hex(),
    }


def _same_request(asked: Asked, command: Envelope, known: dict[str, Any] | None) -> None:
    """One id is one request. A saga sends what it has kept, so of its commands nothing is asked;
    bodies of two versions cannot be compared, and releases before this one kept nothing.
    """
    if asked.fault_to is None or known is None:
        return
    now = _told_apart_by(command)
    if known["type"] != now["type"] or (known["version"] == now["version"] and known != now):
        raise AlteredRequest(
            f"request {asked.saga} was asked before with another command ({known['type']}), and "
            "has its answer: ask each under an id of its own",
            code="altered",
        )


def _give_key(handle: HandlerContext[Any] | SyncHandlerContext[Any], asked: Asked) -> None:
    # the same for every sending, which have ids of their own
    handle.key = str(idempotency_key(asked.saga, asked.step, asked.direction, asked.generation))


def _answer(
    handle: HandlerContext[Any] | SyncHandlerContext[Any], asked: Asked, told: object
) -> Answer:
    """What the handler's answer comes to; messages that it returns are published."""
    if isinstance(told, Failure):
        reason = storable(str(told.error), MAX_REASON)
        return Answer.to(asked, done=False, reason=reason)
    value = told.value if isinstance(told, Success) else told
    data = fields(value)
    if data is None:
        for message, key in outgoing(value):
            handle.publish(message, key=key)
    return Answer.to(asked, done=True, data=data)


def _for_nobody(told: object) -> object:
    """As a handler of events answers: of a command that was plainly published nobody wants to know
    what came of it, and the messages leave all the same.
    """
    if isinstance(told, Failure):
        return told
    value = told.value if isinstance(told, Success) else told
    return value if fields(value) is None else None


def _reply(
    handle: HandlerContext[Any] | SyncHandlerContext[Any], asked: Asked, answer: Answer
) -> None:
    handle.uow.publish(answer, topic=asked.reply_to, key=str(asked.saga))
