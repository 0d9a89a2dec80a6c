"""Who carries sagas on: leases due instances, drives them as far as they go, hands them back.

Any number may run.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any

from sqlalchemy.exc import TimeoutError as PoolTimeout

from outbox_saga.breaker import agreed
from outbox_saga.calling import until_ended
from outbox_saga.database import Database
from outbox_saga.errors import LeaseLost
from outbox_saga.ids import new_id
from outbox_saga.instances import Instance
from outbox_saga.queries import leases
from outbox_saga.queries.dialects import brief
from outbox_saga.queries.leases import Known
from outbox_saga.queries.passing import passes
from outbox_saga.queries.schema import require_tables
from outbox_saga.saga.carrying import TROUBLE_PAUSE, Carrying
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.definitions import Definitions
from outbox_saga.saga.execution import Execution
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.parking import OVERDUE, Parking
from outbox_saga.worker_threads import WorkerThreads

logger = logging.getLogger("outbox_saga.saga")

TOGETHER = 0.02  # seconds that a free place waits for others, while there is more to claim
PLACES_A_CLAIM = 4  # the share of all places for which no claim waits: one by this
LEASE_MARGIN = 1.0  # seconds a lease is longer than the longest step may take


class Orchestrator:
    """Every due instance of its sagas is carried on by exactly one process at a time, and taken
    over if that one dies.

    Args:
        database: Where the instances are.
        definitions: The sagas this process can carry on; instances of others are left alone.
        concurrency: Instances at the same time.
        lease: Seconds after which another process takes over what this one has not renewed; raised
            to the longest step timeout + 1 s, so that a step of a healthy process is never taken
            over.
        poll: Seconds between two looks when nothing is due.
        grace: Seconds that running steps get after `stop`.
        source: The service whose instances are to be told of where no definition of theirs is
            here; None: only those of the same names are.
    """

    def __init__(
        self,
        database: Database,
        definitions: Iterable[Saga[Any]],
        *,
        concurrency: int = 16,
        lease: float = 30.0,
        poll: float = 0.25,
        grace: float = 30.0,
        source: str | None = None,
    ) -> None:
        self.database = database
        self.owner = new_id()  # of this start of this process: a restarted one is somebody else
        self.concurrency = concurrency
        self.poll = poll
        self.grace = grace
        self._definitions = Definitions(definitions)
        # one name, one rule: for all sagas of this process
        agreed(b for d in self._definitions for b in d.breakers.values())
        self._known = Known(self._definitions.names, self._definitions.shapes, source)
        self._parking = Parking(database, self._definitions, self._known)
        longest = max(
            (s.longest for d in self._definitions for s in d.steps.values()),
            default=0.0,
        )
        self.lease = max(lease, longest + LEASE_MARGIN)
        if self.lease > lease:
            logger.info(
                "the lease is %.1f s, not %.1f s: the longest step may take %.1f s; give steps "
                "shorter timeouts for a faster takeover",
                self.lease,
                lease,
                longest,
            )
        # elsewhere a claim that finds nothing has taken a lock, which writers wait for
        self._looks_first = database.url.get_backend_name() != "postgresql"
        self._threads = WorkerThreads(concurrency, "outbox-saga-step")
        self._carrying = Carrying(Execution(database, self._threads), self._release)
        self._hands: dict[Any, Hand] = {}
        self._checked = False

    async def run(self, stop: asyncio.Event) -> None:
        """Carries instances on until `stop` is set.

        Then lets running steps finish and hands everything back.
        """
        drives: set[asyncio.Task[None]] = set()
        beside = [asyncio.create_task(self._renew()), asyncio.create_task(self._watch())]
        stopped = asyncio.create_task(stop.wait())
        pause, more = self.poll / 16, False
        try:
            while not stop.is_set():
                if room := self.concurrency - len(drives):
                    claimed = await self._claim(room)
                    drives |= claimed
                    more = len(claimed) == room  # there may be
                    pause = self.poll / 16 if claimed else min(self.poll, pause * 2)
                await asyncio.wait(
                    {stopped, *drives}, timeout=pause, return_when=asyncio.FIRST_COMPLETED
                )
                drives = {d for d in drives if not d.done()}
                if more:
                    drives = await self._let_some_end(drives, stopped)
        finally:
            for hand in self._hands.values():
                hand.stopping = True
            stopped.cancel()
            if drives:
                _, late = await asyncio.wait(drives, timeout=self.grace)
                for drive in late:
                    drive.cancel()
                await asyncio.gather(*late, return_exceptions=True)
            await until_ended(beside)

    async def _let_some_end(
        self, drives: set[asyncio.Task[None]], stopped: asyncio.Task[Any]
    ) -> set[asyncio.Task[None]]:
        """Those that go on when several places are free, or one has been for a while.

        A claim is a transaction, whatever it finds, and would be one for each that ends.
        """
        enough = self.concurrency - max(1, self.concurrency // PLACES_A_CLAIM)
        ends = None
        while enough < len(drives) and not stopped.done():
            if ends is None and len(drives) < self.concurrency:
                ends = time.monotonic() + TOGETHER
            left = None if ends is None else ends - time.monotonic()
            if left is not None and left <= 0:
                break
            await asyncio.wait(
                {stopped, *drives}, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            drives = {d for d in drives if not d.done()}
        return drives

    async def run_once(self) -> int:
        """Claims what is due, drives it as far as it goes now, and returns how many instances that
        were.
        """
        drives = await self._claim(self.concurrency)
        beside = [asyncio.create_task(self._renew()), asyncio.create_task(self._watch())]
        try:
            await asyncio.gather(*drives)
        finally:
            await until_ended(beside)
        return len(drives)

    def close(self) -> None:
        """Gives the threads back; a timed-out step that still runs keeps its own until it ends."""
        self._threads.shutdown(wait=False)

    # --- claiming --------------------------------------------------------------------------------

    async def _claim(self, capacity: int) -> set[asyncio.Task[None]]:
        if capacity <= 0:
            return set()
        tables, clock = self.database.tables, self.database.clock
        try:
            if not self._checked:
                await self.database.look(require_tables, tables)
                self._checked = True
            await self._parking.look()
            if not self._known.names:
                return set()
            suspects = not any(
                h.instance.deaths >= leases.SUSPECT_DEATHS for h in self._hands.values()
            )
            if self._looks_first and not await self.database.look(
                leases.any_due, tables, clock, self.owner, self._known, suspects=suspects
            ):
                return set()
            begun = time.monotonic()
            now, instances = await self.database.run(
                leases.claim,
                tables,
                clock,
                self.owner,
                self.lease,
                self._known,
                capacity,
                suspects=suspects,
            )
        except Exception as error:
            if not passes(error):
                raise
            logger.warning("the database did not let us claim (%s); trying again", brief(error))
            await asyncio.sleep(TROUBLE_PAUSE)
            return set()
        # read after the database's time: what is due here is due there, too. What becomes due
        # counts from the other end of that, or it would be due there a little early
        read_at = time.monotonic()
        lag = read_at - begun
        drives = set()
        for instance in instances:
            definition = self._definitions.of(instance)
            assert definition is not None, "it was claimed by its shape"
            ends = begun + self.lease
            hand = Hand(definition, instance, self.owner, now, read_at, self.lease, ends, lag=lag)
            self._hands[instance.id] = hand
            drives.add(asyncio.create_task(self._drive(hand)))
        return drives

    async def _renew(self) -> None:
        tables, clock = self.database.tables, self.database.clock
        while True:
            await asyncio.sleep(self.lease / 3)
            ids = list(self._hands)
            if ids:
                begun = time.monotonic()
                try:
                    ours = await self.database.keep(
                        leases.renew, tables, clock, self.owner, ids, self.lease
                    )
                    for id_ in ours & self._hands.keys():
                        self._hands[id_].lease_ends = begun + self.lease
                except Exception as error:  # noqa: BLE001  # logged, and tried again
                    # the next renewal is a third of a lease away, and transitions are guarded by
                    # the epoch
                    logger.warning("leases were not renewed (%s)", brief(error))

    async def _watch(self) -> None:
        """An answer or an event may have moved an instance while a call of it goes on: what it
        leads to does not wait for that call.
        """
        waited: dict[Any, Hand] = {}
        while True:
            await asyncio.sleep(self.poll)
            waiting = {id_: h for id_, h in self._hands.items() if h.waiting is not None}
            for_long = [id_ for id_, hand in waiting.items() if waited.get(id_) is hand]
            waited = waiting
            if not for_long:
                continue
            try:
                revisions = await self.database.look(
                    leases.revisions, self.database.tables, for_long
                )
            except Exception as error:  # noqa: BLE001  # logged, and tried again
                logger.warning("could not look what has moved (%s)", brief(error))
                continue
            for id_, revision in revisions.items():
                hand = waiting[id_]
                moved = revision > hand.instance.revision
                if moved and hand.waiting is not None and not hand.waiting.done():
                    hand.waiting.set_result(None)

    async def _release(self, instance: Instance, after: float | None) -> None:
        tables, clock = self.database.tables, self.database.clock
        try:
            try:
                await self.database.run(
                    leases.release, tables, clock, instance, self.owner, after=after
                )
            except PoolTimeout:  # left as it is, it would seem to have killed this process
                await self.database.keep(
                    leases.release, tables, clock, instance, self.owner, after=after
                )
        except Exception as error:  # noqa: BLE001  # logged
            # its lease ends by itself
            logger.warning("saga %s was not released (%s)", instance.id, brief(error))

    # --- driving ---------------------------------------------------------------------------------

    async def _drive(self, hand: Hand) -> None:
        """As far as it goes, if it can be carried on here."""
        try:
            if hand.instance.shape == hand.definition.shape or await self._taken_over(hand):
                await self._carrying.on(hand)
        finally:
            # whatever ended it: kept in hand its lease would be renewed, and nobody go on with it
            if self._hands.get(hand.instance.id) is hand:
                del self._hands[hand.instance.id]

    async def _taken_over(self, hand: Hand) -> bool:
        """Whether what was started by an older version is one of this one now."""
        try:
            ours = await self._parking.taken_over(hand)
        except LeaseLost as error:
            logger.warning("%s", error)
            # as far as it is still ours: an event may have moved it, and it is taken up again
            await self._release(hand.instance, None)
            return False
        except Exception as error:  # noqa: BLE001  # logged; the instance is taken up again
            logger.warning("saga %s was not taken over (%s)", hand.instance.id, brief(error))
            await self._release(hand.instance, TROUBLE_PAUSE)
            return False
        if not ours:
            await self._release(hand.instance, OVERDUE)
        return ours
