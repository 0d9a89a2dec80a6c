"""Instances whose definition is not here: each says so, and goes on as soon as it is.

Nothing is guessed: an instance is carried on by the very shape that it was started with, or by
none. One that nobody has taken up for a while is marked as parked, with the reason; it stays due,
so that a process with its definition takes it up at once.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.errors import LeaseLost, MessageRefused
from outbox_saga.instances import Entry, Instance
from outbox_saga.queries import leases, transition
from outbox_saga.queries.dialects import limit_idle_transaction
from outbox_saga.queries.leases import Known
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.definitions import Definitions
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.taking_over import take_over, why_not

logger = logging.getLogger("outbox_saga.saga")

OVERDUE = 30.0  # seconds that nobody takes an instance up before it counts as parked
AT_ONCE = 100  # instances that are looked at in one transaction


class Parking:
    """Marks what no process could carry on.

    Args:
        database: Where the instances are.
        definitions: Those of this process.
        known: Their names and shapes.
        overdue: Seconds that an instance must have been due.
    """

    def __init__(
        self,
        database: Database,
        definitions: Definitions,
        known: Known,
        *,
        overdue: float = OVERDUE,
    ) -> None:
        self._database = database
        self._definitions = definitions
        self._known = known
        self._overdue = overdue
        self._next = 0.0

    async def look(self) -> int:
        """Marks what is stranded, at most once in the time that it must have been due; returns how
        many it has found.
        """
        now = time.monotonic()
        if now < self._next:
            return 0
        self._next = now + self._overdue
        tables, clock = self._database.tables, self._database.clock
        found = await self._database.look(
            leases.stranded, tables, clock, self._known, self._overdue, AT_ONCE
        )
        for instance in found:
            await self._database.run(self._park, instance)
        return len(found)

    async def taken_over(self, hand: Hand) -> bool:
        """Whether what is in hand is of its definition's version: now it is, if it was older.

        One whose data cannot be upcast is parked, with the reason.
        """
        seen, definition, database = hand.instance, hand.definition, self._database
        if seen.shape == definition.shape:
            return True
        try:
            new = await database.run(self._take_over, definition, seen, hand.lease)
        except MessageRefused as refused:
            # as it is now: whoever gives it back says when it is looked at again
            hand.instance = await database.run(self._park, seen, why_not(refused))
            return False
        if new is None:
            raise LeaseLost(f"saga {seen.id} was taken over, or moved, meanwhile")
        hand.instance = new
        return True

    def _take_over(
        self, connection: sa.Connection, definition: Saga[Any], seen: Instance, lease: float
    ) -> Instance | None:
        # a process that stands still here must not keep the row from its successor
        limit_idle_transaction(connection, lease)
        tables, clock = self._database.tables, self._database.clock
        return take_over(connection, tables, clock, definition, seen, leased=True)

    def _park(
        self, connection: sa.Connection, seen: Instance, reason: str | None = None
    ) -> Instance:
        # a process that stands still here must not keep the row from whoever can carry it on
        limit_idle_transaction(connection, leases.RELEASE_SECONDS)
        reason = reason or self.why_not(seen)
        entries = [] if seen.state.parked == reason else [Entry("PARKED", detail=reason)]
        state = replace(seen.state, parked=reason)
        tables, clock = self._database.tables, self._database.clock
        moved = transition.record(
            connection,
            tables,
            clock,
            seen,
            state,
            # looked at again after a while, and due for whoever knows it
            clock.read(connection),
            entries,
            keep_lease=True,
            keep_deaths=True,
        )
        if moved and entries:
            logger.error("saga %s is parked: %s", seen.id, reason)
        return replace(seen, revision=seen.revision + 1, state=state) if moved else seen

    def why_not(self, instance: Instance) -> str:
        """What is missing here, and the mend."""
        name, version = instance.name, instance.version
        here = sorted(self._definitions.versions(name))
        if version in here:
            missing = (
                f"version {version} of {name} has another shape here than when the instance "
                "was started: give the changed definition a new version and register the old one "
                "beside it"
            )
        else:
            only = f"only {', '.join(map(str, here))}" if here else "none of that name"
            missing = (
                f"no version {version} of {name} is registered here ({only}): register it "
                "beside the others until its instances have ended"
            )
        return missing
