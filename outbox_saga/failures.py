"""What becomes of a message that was not handled: kept with the reason and its next try, and told.

Only then is its delivery acknowledged.
"""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from outbox_saga.calling import told
from outbox_saga.database import Database
from outbox_saga.errors import CommitUnknown, HandlerFailed, LeaseLost
from outbox_saga.faults import tell
from outbox_saga.handlers import Handler, Handlers
from outbox_saga.keeping import altered, holding_up_nothing
from outbox_saga.patience import patiently
from outbox_saga.queries import claims, waiting
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import is_transient
from outbox_saga.queries.waiting import Delivered, Failed, Leased, Stored
from outbox_saga.tables import Tables

logger = logging.getLogger("outbox_saga.inbox")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a message was not handled, and what an attempt leaves to be tidied up."""

    failed: Failed
    dead: bool = False  # no attempt can help
    aside: bool = False  # it holds up nothing, whatever the handler's `poison` says
    claim: UUID | None = None
    goes_on: bool = False  # out of time, it acts still: its claim stays


class Failures:
    """Keeps what was not handled, for one database.

    Args:
        handlers: Of the service; who made a request is told that one of them has given it up.
    """

    def __init__(self, database: Database, handlers: Handlers) -> None:
        self._database = database
        self._handlers = handlers

    async def store(
        self,
        delivered: Delivered,
        trouble: Trouble,
        handler: Handler | None,
        *,
        parks: bool,
    ) -> None:
        """A delivery failed for the first time: it waits now, or is a dead letter.

        Args:
            handler: Whose retries it gets; None: there is none, and it gets no attempt.
            parks: Whether a dead letter holds up its key.
        """
        delay = _delay(trouble, handler, 1, delivered.message_id)
        if delay is None and not parks:
            delivered = holding_up_nothing(delivered)

        def verb(connection: sa.Connection, tables: Tables, clock: Clock) -> Stored:
            _tidy(connection, tables, trouble, delivered.consumer, delivered.message_id)
            stored = waiting.store(
                connection, tables, clock, delivered, trouble.failed, delay=delay
            )
            if stored == "stored" and delay is None:
                tell(connection, tables, self._handlers, delivered, trouble.failed.code)
            return stored

        try:
            stored: Stored = await self.unit(verb)
        except LeaseLost as lost:
            logger.warning("%s", lost)
            return
        if stored == "altered":
            await self.alarm(delivered)
        elif stored == "stored":
            _tell(delivered.consumer, delivered.message_id, trouble.failed, 1, delay)

    async def suspect(self, delivered: Delivered, deliveries: int) -> None:
        """It waits from now on, due at once, and no attempt is charged.

        Nobody knows how many of its deliveries ended with the death of their process: a broker
        counts those as well that were only given back, as while the database was away.
        """
        told_so = f"delivered {deliveries} times; none of them counts as an attempt"
        failed = Failed("no_answer", told_so)
        stored = await self.unit(waiting.store, delivered, failed, attempts=0)
        if stored == "altered":
            await self.alarm(delivered)
        elif stored == "stored":
            logger.warning(
                "message %s came %s times without an answer, consumer %s: kept, and run from "
                "there",
                delivered.message_id,
                deliveries,
                delivered.consumer,
            )

    async def fail(
        self,
        leased: Leased,
        owner: UUID,
        trouble: Trouble,
        handler: Handler | None,
        *,
        parks: bool,
    ) -> None:
        """A waiting message failed once more: it waits on, or is a dead letter."""
        attempts = leased.attempts + 1
        delay = _delay(trouble, handler, attempts, leased.message_id)

        def verb(connection: sa.Connection, tables: Tables, clock: Clock) -> bool:
            _tidy(connection, tables, trouble, leased.consumer, leased.message_id)
            failed = waiting.fail(
                connection, tables, clock, owner, leased, trouble.failed, delay=delay, parks=parks
            )
            if failed and leased.orphaned:  # of whoever died, and is counted here
                claims.told(connection, tables, leased.consumer, leased.message_id)
            if failed and delay is None:
                tell(connection, tables, self._handlers, leased, trouble.failed.code)
            return failed

        if await self.unit(verb):
            _tell(leased.consumer, leased.message_id, trouble.failed, attempts, delay)

    async def alarm(self, delivered: Delivered) -> None:
        """The same id with another body: kept, not handled, and told."""
        known, told_so = delivered.message_id, "its id came before with another body"
        failed = Failed("altered", f"{told_so}: message {known}")
        stored = await self.unit(waiting.store, altered(delivered), failed, delay=None)
        if stored == "stored":
            logger.error(
                "message %s came again with another body, consumer %s: a dead letter; find the "
                "publisher that re-uses ids",
                known,
                delivered.consumer,
            )

    async def unit(self, verb: Any, *args: Any, **kwargs: Any) -> Any:
        """A verb of `queries` in a transaction of its own, patiently."""
        tables, clock = self._database.tables, self._database.clock
        return await patiently(lambda: self._database.run(verb, tables, clock, *args, **kwargs))


def _delay(
    trouble: Trouble, handler: Handler | None, attempts: int, message_id: UUID
) -> float | None:
    if trouble.dead or handler is None or handler.retry.exhausted(attempts):
        return None
    return handler.retry.delay(attempts, seed=f"{handler.consumer}:{message_id}")


def _tidy(
    connection: sa.Connection, tables: Tables, trouble: Trouble, consumer: str, message_id: UUID
) -> None:
    if trouble.claim is None:
        return
    if trouble.goes_on:  # this attempt is counted with its message, and not once more
        claims.told(connection, tables, consumer, message_id, trouble.claim)
    elif not claims.release(connection, tables, trouble.claim, consumer, message_id):
        raise LeaseLost(f"message {message_id} was taken over; this attempt does not count")


def _tell(
    consumer: str, message_id: UUID, failed: Failed, attempts: int, delay: float | None
) -> None:
    # class and code only: what a handler raised may carry what it was working on
    what = f"{failed.code}, {failed.error_class}" if failed.error_class else failed.code
    if delay is None:
        logger.error(
            "message %s is a dead letter of consumer %s after %s attempts (%s)",
            message_id,
            consumer,
            attempts,
            what,
        )
    else:
        logger.warning(
            "consumer %s failed on message %s, attempt %s (%s); again in %.1f s",
            consumer,
            message_id,
            attempts,
            what,
            delay,
        )


def failed_by(error: BaseException) -> Failed:
    """What is kept of an error: its text, its class, and where it was raised."""
    raised = error
    if isinstance(error, HandlerFailed) and error.__cause__ is not None:
        raised = error.__cause__  # ours only carries it
    code = error.code if isinstance(error, HandlerFailed) else "handler_failed"
    if isinstance(error, DBAPIError | CommitUnknown) and is_transient(error):
        code = "database"
    text = error.args[0] if isinstance(error, HandlerFailed) else told(error)
    return Failed(code, str(text), type(raised).__name__, _trace(raised))


def _trace(error: BaseException) -> str | None:
    """Files, lines and functions, the cause first; no source, no values."""
    lines: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        frames = traceback.extract_tb(link.__traceback__)
        lines[:0] = [
            *(f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames),
            type(link).__name__,
        ]
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\n".join(lines) or None
