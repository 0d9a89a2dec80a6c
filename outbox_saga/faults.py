"""Telling whoever made a request that its handler, or a person, has given it up."""

from __future__ import annotations

import logging
from collections.abc import Callable

import sqlalchemy as sa

from outbox_saga.commanding import Answer, Asked
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import DISCARDED, MessageRefused
from outbox_saga.handlers import Handlers
from outbox_saga.keeping import answers_as, opened
from outbox_saga.queries.waiting import Delivered, Leased
from outbox_saga.tables import Tables
from outbox_saga.unit_of_work import UnitOfWork

logger = logging.getLogger("outbox_saga.inbox")


def tell(
    connection: sa.Connection,
    tables: Tables,
    handlers: Handlers,
    given_up: Delivered | Leased,
    code: str,
) -> None:
    """Whoever asked to be told is told, if, and only if, this transaction commits.

    Who only listens says nothing about it: whoever carries it out may do so all the same. What the
    message says about it may be anything, and keeps nobody from giving it up.

    Args:
        handlers: Of the service that gives it up.
        given_up: The message, which is a dead letter from now on.
        code: Of what its handler failed on: no text, which may show what it was working on.
    """

    def answering(envelope: Envelope) -> str | None:
        wanting = handlers.wanting(envelope, given_up.consumer)
        return handlers.source if any(handler.answers for handler in wanting) else None

    _tell(connection, tables, given_up, code, answering)


def tell_discarded(connection: sa.Connection, tables: Tables, discarded: Delivered) -> None:
    """As `tell`, of a message that a person has discarded: its row says who would have answered.

    Nobody is told of one that was kept by a release before this.
    """
    source = answers_as(discarded.headers)
    if source is not None:
        _tell(connection, tables, discarded, DISCARDED, lambda _: source)


def _tell(
    connection: sa.Connection,
    tables: Tables,
    given_up: Delivered | Leased,
    code: str,
    answering: Callable[[Envelope], str | None],
) -> None:
    try:
        envelope = opened(
            given_up.message_id, given_up.topic, given_up.key, given_up.headers, given_up.body
        )
        asked = Asked.of(envelope)
        if asked is None or asked.fault_to is None:
            return
        source = answering(envelope)
        if source is None:
            return
        uow = UnitOfWork(
            connection,
            schema=tables.schema,
            source=source,
            correlation_id=envelope.correlation_id or str(envelope.id),
            causation_id=str(envelope.id),
        )
        answer = Answer.to(asked, done=False, fault=code)
        uow.publish(answer, topic=asked.fault_to, key=str(asked.saga))
    except MessageRefused as refused:
        logger.warning(
            "nobody is told that message %s is given up (%s)", given_up.message_id, refused.path
        )
