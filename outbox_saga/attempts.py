"""One attempt of one handler at one message: in its place, under its claim, within its time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from uuid import UUID

from sqlalchemy.exc import TimeoutError as PoolTimeout

from outbox_saga.calling import NoThread, to_the_end
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import (
    AlteredMessage,
    AlteredRequest,
    HandlerBusy,
    LeaseLost,
    MessageRefused,
)
from outbox_saga.failures import Trouble, failed_by
from outbox_saga.handlers import Handler
from outbox_saga.ids import new_id
from outbox_saga.inbox import NOTHING, Turn, handle_once
from outbox_saga.patience import patiently
from outbox_saga.queries import claims
from outbox_saga.queries.dialects import brief
from outbox_saga.queries.inbox import Arrival
from outbox_saga.queries.waiting import Failed
from outbox_saga.thread_watch import ThreadWatch, Work
from outbox_saga.worker_threads import Threads

logger = logging.getLogger("outbox_saga.inbox")

CLAIM_LEASE = 30.0  # seconds; renewed while the handler runs


class Attempts:
    """Makes attempts at messages, in one process.

    Args:
        database: Where the inbox is.
        threads: Where plain `def` handlers run.
        source: Of what handlers publish.
    """

    def __init__(self, database: Database, threads: Threads, source: str) -> None:
        self.watch = ThreadWatch()
        self._database = database
        self._threads = threads
        self._source = source
        self._renewals: set[asyncio.Task[None]] = set()
        self._claims: set[UUID] = set()  # that are renewed

    async def make(self, handler: Handler, envelope: Envelope, turn: Turn) -> Arrival | Trouble:
        """What came of it; nothing is committed but what a handler did to its end.

        Raises:
            HandlerBusy: Somebody is handling the message, or the handler has no place.
            LeaseLost: What it stood on is somebody else's now.
        """
        work = (handler.consumer, envelope.id)
        async with self._place(handler, work):
            if not handler.pessimistic:
                return await self._run(handler, envelope, turn)
            async with self._claimed(handler, envelope, turn) as claim:
                if not isinstance(claim, UUID):
                    return claim
                outcome = await self._run(handler, envelope, replace(turn, claim=claim))
                if isinstance(outcome, Trouble):
                    return replace(outcome, claim=claim, goes_on=work in self.watch)
                return outcome

    async def _run(self, handler: Handler, envelope: Envelope, turn: Turn) -> Arrival | Trouble:
        work = (handler.consumer, envelope.id)
        threads = self.watch.executor(self._threads, work)
        # what does nothing outside and has no places may be left to itself: it commits nothing
        watched = handler.pessimistic or handler.room is not None
        try:
            return await patiently(
                lambda: handle_once(
                    self._database,
                    threads,
                    handler.consumer,
                    envelope,
                    handler.message_class,
                    handler.function,
                    source=self._source,
                    timeout=handler.timeout,
                    turn=turn,
                    goes_on=partial(self.watch.goes_on, work) if watched else None,
                )
            )
        except LeaseLost:
            raise
        except PoolTimeout as error:  # that says nothing about the message
            logger.warning("consumer %s, message %s: %s", *work, brief(error))
            raise HandlerBusy("every connection to the database is in use") from None
        except NoThread as error:  # nothing ran: the message has not failed
            raise HandlerBusy(str(error)) from None
        except AlteredMessage:
            return "altered"
        except AlteredRequest as error:
            return Trouble(failed_by(error), dead=True, aside=True)
        except MessageRefused as refused:
            return Trouble(Failed("unreadable", str(refused)), dead=True)
        except Exception as error:  # noqa: BLE001  # users' code
            return Trouble(failed_by(error))

    @asynccontextmanager
    async def _place(self, handler: Handler, work: Work) -> AsyncIterator[None]:
        room = handler.room
        if room is None:
            yield
            return
        if not await room.take():
            raise HandlerBusy("all its places are held by what is overdue and goes on")
        try:
            yield
        finally:
            if not self.watch.when_out(work, room.came_out):
                room.leave()
            elif room.outlived():
                logger.warning(
                    "consumer %s: all its places for %s (%s) are held by what is overdue and "
                    "goes on; its messages go back until one of them ends",
                    handler.consumer,
                    handler.message_class.type_name,
                    room.places,
                )

    @asynccontextmanager
    async def _claimed(
        self, handler: Handler, envelope: Envelope, turn: Turn
    ) -> AsyncIterator[UUID | Arrival | Trouble]:
        """The owner of a claim, which is renewed as long as the handler runs; or why there is
        none.
        """
        claim, work = new_id(), (handler.consumer, envelope.id)
        database = self._database
        arrival, attempts = await patiently(
            lambda: database.run(
                claims.take,
                database.tables,
                database.clock,
                claim,
                CLAIM_LEASE,
                *work,
                envelope.body,
                key=envelope.key,
                look_for_waiting=turn == NOTHING,
            )
        )
        if arrival == "busy":
            raise HandlerBusy("somebody is handling it, or died of it a moment ago")
        if arrival != "new":
            yield arrival
            return
        if attempts > handler.retry.max_attempts:
            died = Failed(
                "process_died", f"{attempts - 1} processes that handled it gave no answer"
            )
            yield Trouble(died, dead=True, claim=claim)
            return
        self._claims.add(claim)
        renewing = asyncio.create_task(self._renew(claim, work))
        self._renewals.add(renewing)
        renewing.add_done_callback(self._renewals.discard)
        try:
            yield claim
        except BaseException:
            if work not in self.watch:  # nobody need wait for its end
                await to_the_end(self._give_up(claim, work))
            raise
        finally:

            def end() -> None:
                self._claims.discard(claim)  # a driver may swallow the cancellation
                renewing.cancel()

            if not self.watch.when_out(work, end):
                end()

    async def _renew(self, claim: UUID, work: Work) -> None:
        while claim in self._claims:
            await asyncio.sleep(CLAIM_LEASE / 3)
            try:
                database = self._database
                await database.keep(
                    claims.renew, database.tables, database.clock, claim, CLAIM_LEASE, *work
                )
            except Exception as error:  # noqa: BLE001  # logged, and tried again
                logger.warning("a claim was not renewed (%s)", brief(error))

    async def _give_up(self, claim: UUID, work: Work) -> None:
        try:
            await self._database.keep(claims.release, self._database.tables, claim, *work)
        except Exception as error:  # noqa: BLE001  # logged; the claim ends by itself
            logger.warning("a claim was not given up (%s)", brief(error))
