"""Handle once.

The inbox row is the first statement of the handler's transaction, so its effect happens once.

Duplicates are acknowledged and nothing runs. The same id with another body is neither handled nor
dropped: it is an error that says so.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Executor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import MessageRefused
from outbox_saga.lent_session import LentSession
from outbox_saga.messages import Message
from outbox_saga.queries.inbox import Arrival, body_hash, note_arrival
from outbox_saga.results import Failure
from outbox_saga.unit_of_work import UnitOfWork

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

logger = logging.getLogger("outbox_saga.inbox")

M = TypeVar("M", bound=Message)


class HandlerFailed(Exception):
    """The handler returned a Failure.

    Its effects were rolled back and the message stays unhandled.
    """


class AlteredMessage(MessageRefused):
    """A message id that was handled before came again with another body: a bug, or an attack."""


class _Context(Generic[M]):
    """What a handler gets.

    Attributes:
        message: Of the class the handler was registered for.
        envelope: The message with its id, key, correlation and headers.
    """

    def __init__(self, message: M, envelope: Envelope, uow: UnitOfWork[Any]) -> None:
        self.message = message
        self.envelope = envelope
        self.uow = uow

    def publish(
        self, message: Message, *, key: str | None = None, headers: Mapping[str, str] | None = None
    ) -> UUID:
        """The message leaves if, and only if, this one is handled.

        It continues the same conversation.
        """
        return self.uow.publish(message, key=key, headers=headers)


class HandlerContext(_Context[M]):
    """For `async def` handlers."""

    @property
    def session(self) -> AsyncSession:
        """The session of the transaction that also holds the inbox row."""
        session: AsyncSession = self.uow.session
        return session


class SyncHandlerContext(_Context[M]):
    """For plain `def` handlers, which run in a thread."""

    @property
    def session(self) -> Session:
        """The session of the transaction that also holds the inbox row."""
        session: Session = self.uow.session
        return session


async def handle_once(
    database: Database,
    threads: Executor,
    consumer: str,
    envelope: Envelope,
    message_class: type[Message],
    handler: Callable[[Any], Any],
    *,
    source: str,
) -> Arrival:
    """The handler's effect happens once per (consumer, message id), together with what it
    publishes, or not at all.

    Args:
        threads: Where plain `def` handlers run.
        consumer: Stable name; two consumers each handle the message once.
        source: Of what the handler publishes.

    Returns:
        "new" when the handler ran and committed, "repeat" when it had done so before.

    Raises:
        MessageRefused: The body does not fit the class.
        AlteredMessage: The id was handled before, with another body.
        Exception: Whatever the handler raised; nothing was committed.
    """
    message = message_class.from_body(envelope.body)
    digest = body_hash(envelope.body)

    def arrive(session: LentSession) -> Arrival:
        connection = session.lend()
        return note_arrival(
            connection, database.tables, database.clock, consumer, envelope.id, digest
        )

    def work_in(session: Any) -> UnitOfWork[Any]:
        return UnitOfWork(
            session,
            schema=database.tables.schema,
            source=source,
            correlation_id=envelope.correlation_id,
            causation_id=str(envelope.id),
        )

    def settle(session: LentSession, answer: object) -> None:
        if isinstance(answer, Failure):
            raise HandlerFailed(str(answer.error))
        if inspect.iscoroutine(answer):
            answer.close()
            raise HandlerFailed(
                "a plain function answered with a coroutine, which nobody awaits: make it "
                "`async def`"
            )
        session.flush()
        session.taken_back()
        session.settle()

    def in_thread() -> Arrival:
        with _carried_out_of_the_thread(), database.lend() as session:
            arrival = arrive(session)
            if arrival == "new":
                with _blaming_the_handler():
                    answer = handler(SyncHandlerContext(message, envelope, work_in(session)))
                settle(session, answer)
            return arrival

    arrival: Arrival
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004  # an object with `async def __call__`
    ):
        async with database.lend_async() as session:
            lent = session.sync_session
            assert isinstance(lent, LentSession)
            arrival = await session.run_sync(lambda _: arrive(lent))
            if arrival == "new":
                with _blaming_the_handler():
                    answer = await handler(HandlerContext(message, envelope, work_in(session)))
                await session.run_sync(lambda _: settle(lent, answer))
    else:
        arrival = await asyncio.get_running_loop().run_in_executor(threads, in_thread)
    if arrival == "repeat":
        logger.info("duplicate dropped: message %s, consumer %s", envelope.id, consumer)
    elif arrival == "altered":
        logger.error("message %s came again with another body, consumer %s", envelope.id, consumer)
        raise AlteredMessage("$", f"message {envelope.id} was handled before, with another body")
    else:
        logger.info("handled: message %s, consumer %s", envelope.id, consumer)
    return arrival


@contextmanager
def _blaming_the_handler() -> Iterator[None]:
    """A message the handler could not publish says nothing about the one it was handling."""
    try:
        yield
    except MessageRefused as error:
        raise HandlerFailed(f"the handler raised {type(error).__name__}: {error}") from error


@contextmanager
def _carried_out_of_the_thread() -> Iterator[None]:
    """What a thread raises arrives as an error of the handler, and not as something else.

    A future cannot carry StopIteration, and nobody would ever be answered. The others would end
    the loop, or look like the cancellation of whoever waits.
    """
    try:
        yield
    except BaseException as error:
        odd = isinstance(error, StopIteration | CancelledError)
        if isinstance(error, Exception) and not odd:
            raise
        raise HandlerFailed(f"the handler raised {type(error).__name__}: {error}") from error


def handled(connection: sa.Connection, database: Database, consumer: str) -> int:
    """How many messages this consumer has handled."""
    inbox = database.tables.inbox
    return connection.execute(
        sa.select(sa.func.count()).select_from(inbox).where(inbox.c.consumer == consumer)
    ).scalar_one()
