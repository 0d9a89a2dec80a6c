"""Handle once.

The inbox row and the handler's effect are one transaction, so its effect happens once.

Duplicates are acknowledged and nothing runs. The same id with another body is neither handled nor
dropped. A message whose key waits is not handled either: it has to stand behind the others.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.answers import outgoing
from outbox_saga.calling import (
    Deadline,
    OutOfTime,
    call_in_time,
    can_be_carried,
    time_in_thread,
    to_the_end,
)
from outbox_saga.commits import COMMIT_TIMEOUT, async_committing_within, committing_within
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import AlteredMessage, HandlerFailed, LeaseLost, MessageRefused
from outbox_saga.handler_context import (
    HandlerContext,
    SyncHandlerContext,
    _Context,
    continuing,
    read,
)
from outbox_saga.lent_session import LentSession
from outbox_saga.messages import Message
from outbox_saga.queries import claims, waiting
from outbox_saga.queries.dialects import limit_idle_transaction
from outbox_saga.queries.inbox import Arrival, body_hash, note_arrival
from outbox_saga.queries.waiting import Leased
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga.worker_threads import Threads

logger = logging.getLogger("outbox_saga.inbox")

IDLE_MARGIN = 0.5  # seconds: our own timeout comes first while this process is well


@dataclass(frozen=True, slots=True)
class Turn:
    """What an attempt stands on, besides a delivery; gone at its commit, or nothing is committed.

    Args:
        leased: The waiting message it is, and
        owner: whose that is.
        claim: The owner of the claim that was committed before. The inbox row is then written
            last, and no transaction is open until the handler first uses its session.
    """

    leased: Leased | None = None
    owner: UUID | None = None
    claim: UUID | None = None


NOTHING = Turn()
GoesOn = Callable[[asyncio.Task[Any]], object]


async def handle_once(
    database: Database,
    threads: Threads,
    consumer: str,
    envelope: Envelope,
    message_class: type[Message],
    handler: Callable[[Any], Any],
    *,
    source: str,
    timeout: float | None = None,  # noqa: ASYNC109  # only of the handler
    turn: Turn = NOTHING,
    goes_on: GoesOn | None = None,
) -> Arrival:
    """The handler's effect happens once per (consumer, message id), together with what it
    publishes, or not at all.

    Args:
        threads: Where plain `def` handlers run.
        consumer: Stable name; two consumers each handle the message once.
        source: Of what the handler publishes.
        timeout: Seconds the handler may take, with the flush of what it left in its session. An
            async one is then cancelled; a plain one keeps its thread, and can commit nothing any
            more. What follows until the answer of COMMIT has a limit of its own.
        turn: What this attempt stands on.
        goes_on: Called with what an async handler is that swallowed its cancellation.

    Returns:
        "new" when the handler ran and committed; otherwise nothing ran: "repeat" when it had done
        so before, "behind" when the message waits, or others of its key do.

    Raises:
        MessageRefused: The body does not fit the class.
        AlteredMessage: The id was handled before, with another body.
        LeaseLost: What the turn stood on is somebody else's now; nothing was committed.
        Exception: Whatever the handler raised; nothing was committed.
    """
    message = read(message_class, envelope)
    attempt = _Attempt(database, consumer, envelope, source, timeout, turn, goes_on)
    run = attempt.in_task if is_async(handler) else attempt.in_thread
    arrival = await run(threads, message, handler)
    if arrival == "repeat":
        logger.info("duplicate dropped: message %s, consumer %s", envelope.id, consumer)
    elif arrival == "altered":
        raise AlteredMessage("$", f"message {envelope.id} was handled before, with another body")
    elif arrival == "new":
        logger.info("handled: message %s, consumer %s", envelope.id, consumer)
    return arrival


def is_async(handler: Any) -> bool:
    """Whether it is run as a task, and not in a thread."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004  # an object with `async def __call__`
    )


class _Attempt:
    """One run of a handler in one transaction."""

    def __init__(
        self,
        database: Database,
        consumer: str,
        envelope: Envelope,
        source: str,
        timeout: float | None,
        turn: Turn,
        goes_on: GoesOn | None,
    ) -> None:
        self._database = database
        self._consumer = consumer
        self._envelope = envelope
        self._source = source
        self._timeout = timeout
        self._turn = turn
        self._goes_on = goes_on

    async def in_task(
        self, _: Threads, message: Message, handler: Callable[[Any], Any]
    ) -> Arrival:
        async with self._database.lend_async() as session:
            lent = session.sync_session
            assert isinstance(lent, LentSession)
            arrival: Arrival = await session.run_sync(lambda _: self._begin(lent))
            if arrival != "new":
                return arrival
            context = HandlerContext(message, self._envelope, self._uow(session), self._consumer)

            async def act(context: HandlerContext[Any]) -> None:
                self._publish(context, await handler(context))
                await session.flush()  # may wait for locks as long as any statement

            try:
                with _blaming_the_handler():
                    await call_in_time(act, context, self._timeout, self._goes_on)
            except OutOfTime as error:
                in_use = error.task is not None
                await session.run_sync(lambda _: lent.abandon(in_use=in_use))
                raise self._out_of_time(str(error)) from None
            # nothing of the user's runs from here on; a cancelled commit would leave its outcome
            # unknown
            await to_the_end(self._settle_in_task(session, lent))
            return arrival

    async def _settle_in_task(self, session: Any, lent: LentSession) -> None:
        try:
            async with async_committing_within(COMMIT_TIMEOUT):
                await session.run_sync(lambda _: self._settle(lent))
        except TimeoutError as error:
            await session.run_sync(lambda _: lent.abandon())
            raise _out_of_commit_time(error) from None

    async def in_thread(
        self, threads: Threads, message: Message, handler: Callable[[Any], Any]
    ) -> Arrival:
        deadline = Deadline()

        def work(begin: Callable[[], None]) -> Arrival:
            with _carried_out_of_the_thread(), self._database.lend() as session:
                arrival = self._begin(session)
                if arrival == "new":
                    begin()
                    context = SyncHandlerContext(
                        message, self._envelope, self._uow(session), self._consumer
                    )
                    with _blaming_the_handler():
                        self._publish(context, handler(context))
                        session.flush()  # may wait for locks as long as any statement
                    if not deadline.claim_commit():
                        session.undo()
                        raise self._out_of_time()
                    self._settle_in_thread(session)
                return arrival

        future, in_time = await time_in_thread(threads, work, self._timeout)
        if not in_time and deadline.expire():
            future.add_done_callback(_ended_late)
            raise self._out_of_time()
        arrival: Arrival = await to_the_end(future)
        return arrival

    def _settle_in_thread(self, session: LentSession) -> None:
        try:
            with committing_within(session, COMMIT_TIMEOUT):
                self._settle(session)
        except TimeoutError as error:
            raise _out_of_commit_time(error) from None

    def _begin(self, session: LentSession) -> Arrival:
        # a process that stands still must not hold its locks for longer than its handler may take
        idle = None if self._timeout is None else self._timeout + IDLE_MARGIN
        if self._turn.claim is None:
            return self._note(session.lend(), idle)

        def begin(connection: sa.Connection) -> None:
            if idle is not None:
                limit_idle_transaction(connection, idle)

        session.lend_at_first_use(begin)
        return "new"

    def _note(self, connection: sa.Connection, idle: float | None = None) -> Arrival:
        return note_arrival(
            connection,
            self._database.tables,
            self._database.clock,
            self._consumer,
            self._envelope.id,
            body_hash(self._envelope.body),
            key=self._envelope.key,
            look_for_waiting=self._turn == NOTHING,
            idle_seconds=idle,
        )

    def _uow(self, session: Any) -> UnitOfWork[Any]:
        schema = self._database.tables.schema
        return continuing(self._envelope, session, schema=schema, source=self._source)

    @staticmethod
    def _publish(context: _Context[Any], answer: object) -> None:
        for message, key in outgoing(answer):
            context.publish(message, key=key)

    def _settle(self, session: LentSession) -> None:
        connection = session.taken_back()
        self._redeem(connection, self._turn)
        session.settle()

    def _redeem(self, connection: sa.Connection, turn: Turn) -> None:
        tables, clock, id_ = self._database.tables, self._database.clock, self._envelope.id
        held = True
        if turn.claim is not None:
            held = self._note(connection) == "new" and claims.release(
                connection, tables, turn.claim, self._consumer, id_
            )
        if held and turn.leased is not None and turn.owner is not None:
            held = waiting.done(connection, tables, clock, turn.owner, turn.leased)
        if not held:
            raise LeaseLost(f"message {id_} was taken over; this attempt was rolled back")

    def _out_of_time(self, more: str = "") -> HandlerFailed:
        told = f"timed out after {self._timeout} s"
        return HandlerFailed(f"{told}: {more}" if more else told, code="handler_timeout")


@contextmanager
def _blaming_the_handler() -> Iterator[None]:
    """A message the handler could not publish says nothing about the one it was handling."""
    try:
        yield
    except MessageRefused as error:
        raise HandlerFailed(f"the handler raised {type(error).__name__}: {error}") from error


@contextmanager
def _carried_out_of_the_thread() -> Iterator[None]:
    """What a thread raises arrives as an error of the handler, and not as something else."""
    try:
        yield
    except BaseException as error:
        if can_be_carried(error):
            raise
        raise HandlerFailed(f"the handler raised {type(error).__name__}: {error}") from error


def _out_of_commit_time(error: TimeoutError) -> HandlerFailed:
    return HandlerFailed(str(error), code="handler_timeout")


def _ended_late(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        logger.info("a handler that had timed out ended with %s", type(error).__name__)


def handled(connection: sa.Connection, database: Database, consumer: str) -> int:
    """How many messages this consumer has handled."""
    inbox = database.tables.inbox
    return connection.execute(
        sa.select(sa.func.count()).select_from(inbox).where(inbox.c.consumer == consumer)
    ).scalar_one()
