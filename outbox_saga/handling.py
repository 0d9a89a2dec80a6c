"""The way of one message through one handler: handled, or kept for later, and only then answered.

What a handler fails on is stored with its attempts and its next try before the delivery is
acknowledged, so a broker never decides what becomes of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from uuid import UUID

from outbox_saga.attempts import Attempts
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope, check_key
from outbox_saga.errors import HandlerBusy, HandlerFailed, LeaseLost, MessageRefused
from outbox_saga.failures import Failures, Trouble
from outbox_saga.handlers import Handler, Handlers
from outbox_saga.inbox import NOTHING, Turn
from outbox_saga.keeping import keep, keep_unread, opened
from outbox_saga.queries import waiting
from outbox_saga.queries.waiting import Delivered, Failed, Leased
from outbox_saga.worker_threads import Threads

logger = logging.getLogger("outbox_saga.inbox")

SUSPICIOUS = 5  # deliveries that came to nothing: from then on it is stored first
ROUNDS = 5  # times a message may find that what it stood behind is gone, and then not
PAUSE = 0.5  # seconds until a waiting message for which there was no room is looked at again
UNKNOWN_PAUSE = 30.0  # seconds: its handler may be in another release


class Handling:
    """Every message is handled once by each consumer that wants it, or waits, or is a dead letter.

    Args:
        database: Where the inbox is.
        threads: Where plain `def` handlers run.
        handlers: Who wants what.
    """

    def __init__(self, database: Database, threads: Threads, handlers: Handlers) -> None:
        self.database = database
        self.handlers = handlers
        self._attempts = Attempts(database, threads, handlers.source)
        self._failures = Failures(database, handlers)
        self._unknown: set[tuple[str, str]] = set()

    # --- deliveries ------------------------------------------------------------------------------

    async def deliver(
        self, envelope: Envelope, consumer: str | None = None, *, attempt: int = 1
    ) -> int:
        """How many handlers wanted the message; each has handled it or it waits for them.

        One that is in trouble keeps it from no other.

        Args:
            consumer: Only its handlers.
            attempt: Which delivery it is, as far as the broker counts.

        Raises:
            HandlerBusy: An earlier delivery is still being handled, or there is no room.
            Exception: It could not be stored, mostly because the database is away. In both cases:
                deliver it again later; whoever has handled it drops it then.
        """
        count = 0
        errors: list[Exception] = []
        for handler in list(self.handlers.wanting(envelope, consumer)):
            count += 1
            try:
                await self._receive(handler, envelope, attempt)
            except Exception as error:  # noqa: BLE001  # raised below
                errors.append(error)
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and _asked_to_end():
                    raise
                errors.append(HandlerFailed(f"the handler raised {type(error).__name__}"))
        if errors:
            raise next((e for e in errors if not isinstance(e, HandlerBusy)), errors[0])
        return count

    async def keep_unread(
        self,
        consumer: str,
        topic: str,
        headers: Mapping[str, str],
        body: bytes,
        refused: MessageRefused,
    ) -> bool:
        """True: a message whose headers cannot be read is a dead letter of this consumer now.

        False: not even its id can be read.
        """
        delivered = keep_unread(consumer, topic, headers, body)
        if delivered is None:
            return False
        trouble = Trouble(Failed("unreadable", str(refused)), dead=True)
        await self._failures.store(delivered, trouble, None, parks=self.handlers.parks(consumer))
        return True

    async def _receive(self, handler: Handler, envelope: Envelope, attempt: int) -> None:
        work = (handler.consumer, envelope.id)
        try:
            check_key(envelope.key)
        except MessageRefused as refused:
            trouble = Trouble(Failed("unreadable", str(refused)), dead=True)
            unread = keep(handler.consumer, envelope)
            await self._failures.store(unread, trouble, None, parks=False)
            return
        if work in self._attempts.watch:
            # another thread for it would only wait for the first one's inbox row
            raise HandlerBusy("an earlier delivery is still being handled")
        if attempt > SUSPICIOUS and not handler.pessimistic:  # whose claims count deaths anyway
            # its process may die of it: from the table, deaths are counted, and come to an end
            await self._failures.suspect(self._keep(handler, envelope), attempt)
            return
        for _ in range(ROUNDS):
            outcome = await self._attempts.make(handler, envelope, NOTHING)
            if outcome in ("new", "repeat"):
                return
            delivered = self._keep(handler, envelope)
            if isinstance(outcome, Trouble):
                parks = handler.parks and not outcome.aside
                await self._failures.store(delivered, outcome, handler, parks=parks)
            elif outcome == "altered":
                await self._failures.alarm(delivered)
            elif outcome == "behind":
                stored = await self._failures.unit(waiting.store, delivered, None)
                if stored == "free":
                    continue  # what it stood behind is gone
                if stored == "altered":
                    await self._failures.alarm(delivered)
                elif stored == "stored":
                    logger.info("message %s waits behind its key, consumer %s", work[1], work[0])
            return
        raise HandlerBusy("others of its key came and went all the time")

    def _keep(self, handler: Handler, envelope: Envelope) -> Delivered:
        answers_as = self.handlers.source if handler.answers else None
        return keep(handler.consumer, envelope, answers_as=answers_as)

    # --- waiting messages ------------------------------------------------------------------------

    async def retry(self, leased: Leased, owner: UUID) -> None:
        """One more attempt at a waiting message, if it can be made now; then it is given back."""
        try:
            envelope = opened(
                leased.message_id, leased.topic, leased.key, leased.headers, leased.body
            )
        except MessageRefused as refused:
            trouble = Trouble(Failed("unreadable", str(refused)), dead=True)
            parks = self.handlers.parks(leased.consumer)
            await self._failures.fail(leased, owner, trouble, None, parks=parks)
            return
        handler = next(
            iter(self.handlers.of_type(leased.topic, envelope.type, leased.consumer)), None
        )
        if handler is None:
            self._tell_unknown(leased, envelope)
            await self._release(leased, owner, UNKNOWN_PAUSE)
        elif leased.orphaned:
            died = Failed("process_died", "the process that handled it gave no answer")
            await self._failures.fail(leased, owner, Trouble(died), handler, parks=handler.parks)
        elif self._no_room(handler, leased):
            await self._release(leased, owner, PAUSE)
        else:
            await self._retry(handler, envelope, leased, owner)

    async def _retry(
        self, handler: Handler, envelope: Envelope, leased: Leased, owner: UUID
    ) -> None:
        try:
            outcome = await self._attempts.make(handler, envelope, Turn(leased, owner))
            if isinstance(outcome, Trouble):
                parks = handler.parks and not outcome.aside
                await self._failures.fail(leased, owner, outcome, handler, parks=parks)
            elif outcome == "repeat":  # a delivery of it came first
                await self._failures.unit(waiting.done, owner, leased)
            elif outcome == "altered":
                await self._failures.alarm(keep(handler.consumer, envelope))
                await self._failures.unit(waiting.done, owner, leased)
        except HandlerBusy:
            await self._release(leased, owner, PAUSE)
        except LeaseLost as lost:
            logger.warning("%s", lost)

    def _no_room(self, handler: Handler, leased: Leased) -> bool:
        room = handler.room
        return (leased.consumer, leased.message_id) in self._attempts.watch or (
            room is not None and room.left <= 0
        )

    def _tell_unknown(self, leased: Leased, envelope: Envelope) -> None:
        kind = (leased.consumer, envelope.type)
        if kind not in self._unknown:
            self._unknown.add(kind)
            logger.warning(
                "consumer %s has no handler of %s here; its waiting messages are left to another "
                "process",
                *kind,
            )

    async def _release(self, leased: Leased, owner: UUID, after: float) -> None:
        await self._failures.unit(waiting.release, owner, leased, after=after)


def _asked_to_end() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
