"""Who tries waiting messages again: leases due ones, hands them to their handlers, one of a key
at a time.

Any number of processes may run it; they share the messages by leases in the database.
"""

from __future__ import annotations

import asyncio
import logging

from outbox_saga.calling import until_ended
from outbox_saga.database import Database
from outbox_saga.handling import Handling
from outbox_saga.ids import new_id
from outbox_saga.queries import waiting
from outbox_saga.queries.dialects import brief
from outbox_saga.queries.passing import passes
from outbox_saga.queries.schema import require_tables
from outbox_saga.queries.waiting import Leased
from outbox_saga.waiting_shares import Share, Shares

logger = logging.getLogger("outbox_saga.inbox")

LEASE = 30.0  # seconds; renewed while a message is in hand
TROUBLE_PAUSE = 1.0


class WaitingRoom:
    """Every due message is tried again by exactly one process at a time, the earliest of its key
    first, and is taken over if that process dies.

    Args:
        handling: Makes the attempts.
        concurrency: Messages at the same time.
        lease: Seconds after which another process takes over what this one has not renewed. That
            counts as an attempt: the process may have died of it.
        poll: Seconds between two looks when nothing is due.
        grace: Seconds that handlers get after `stop`.
    """

    def __init__(
        self,
        handling: Handling,
        *,
        concurrency: int = 16,
        lease: float = LEASE,
        poll: float = 0.25,
        grace: float = 20.0,
    ) -> None:
        self.owner = new_id()  # of this start of this process: a restarted one is somebody else
        self.concurrency = concurrency
        self.lease = lease
        self.poll = poll
        self.grace = grace
        self._handling = handling
        self._database: Database = handling.database
        self._shares = Shares(handling.handlers, poll)
        self._hands: dict[int, Leased] = {}
        self._checked = False

    async def run(self, stop: asyncio.Event) -> None:
        """Tries what is due until `stop` is set; then lets handlers finish, and gives the rest
        back.
        """
        tries: set[asyncio.Task[None]] = set()
        renewing = asyncio.create_task(self._renew())
        stopped = asyncio.create_task(stop.wait())
        pause = self.poll / 16
        try:
            while not stop.is_set():
                begun = await self._begin(self.concurrency - len(tries))
                tries |= begun
                pause = self.poll / 16 if begun else min(self.poll, pause * 2)
                await asyncio.wait(
                    {stopped, *tries}, timeout=pause, return_when=asyncio.FIRST_COMPLETED
                )
                if ended := {t for t in tries if t.done()}:
                    tries -= ended
                    pause = self.poll / 16  # the next of their keys is due now
        finally:
            stopped.cancel()
            if tries:
                _, late = await asyncio.wait(tries, timeout=self.grace)
                for one in late:
                    one.cancel()
                await asyncio.gather(*late, return_exceptions=True)
            await until_ended({renewing})

    async def run_once(self) -> int:
        """Tries what is due now, once; returns how many messages that were."""
        self._shares.look_again()
        tries = await self._begin(self.concurrency)
        renewing = asyncio.create_task(self._renew())
        try:
            await asyncio.gather(*tries)
        finally:
            await until_ended({renewing})
        return len(tries)

    async def _begin(self, capacity: int) -> set[asyncio.Task[None]]:
        consumers = self._shares.consumers
        if capacity <= 0 or not consumers or not (shares := self._shares.open()):
            return set()
        database = self._database
        tables, clock = database.tables, database.clock
        try:
            if not self._checked:
                await database.look(require_tables, tables)
                self._checked = True
            if not await database.look(waiting.any_due, tables, clock, consumers):
                return set()
            found = await database.run(
                self._shares.lease,
                tables,
                clock,
                shares,
                capacity,
                owner=self.owner,
                seconds=self.lease,
                in_hand=list(self._hands),
            )
        except Exception as error:
            if not passes(error):
                raise
            logger.warning("waiting messages were not leased (%s); trying again", brief(error))
            await asyncio.sleep(TROUBLE_PAUSE)
            return set()
        for leased, _ in found:
            self._hands[leased.position] = leased
        return {asyncio.create_task(self._try(*each)) for each in found}

    async def _try(self, leased: Leased, share: Share) -> None:
        try:
            await self._handling.retry(leased, self.owner)
        except Exception as error:  # noqa: BLE001  # logged; it is due again when its lease ends
            logger.warning("message %s waits on (%s)", leased.message_id, brief(error))
            await self._give_back(leased)
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(leased))
            raise
        finally:
            if self._hands.get(leased.position) is leased:
                del self._hands[leased.position]
            share.quiet_until = 0.0  # the next of its key is due now

    async def _give_back(self, leased: Leased) -> None:
        tables, clock = self._database.tables, self._database.clock
        try:
            await self._database.keep(
                waiting.release, tables, clock, self.owner, leased, after=None
            )
        except Exception as error:  # noqa: BLE001  # logged; the lease ends by itself
            logger.warning("message %s was not given back (%s)", leased.message_id, brief(error))

    async def _renew(self) -> None:
        tables, clock = self._database.tables, self._database.clock
        while True:
            await asyncio.sleep(self.lease / 3)
            positions = list(self._hands)
            if positions:
                try:
                    await self._database.keep(
                        waiting.renew, tables, clock, self.owner, positions, self.lease
                    )
                except Exception as error:  # noqa: BLE001  # logged, and tried again
                    # the next renewal is a third of a lease away, and commits look at the owner
                    logger.warning("leases were not renewed (%s)", brief(error))
