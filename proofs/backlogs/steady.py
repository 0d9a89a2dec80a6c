"""A relay that works while events are added all the time: how many it removes in a second."""

from __future__ import annotations

import asyncio
import itertools
import sys
from dataclasses import dataclass

from outbox_saga.database import Database
from outbox_saga_relay.relay import Relay
from proofs.backlogs.draining import PAGE, QUARTERS, Counting
from proofs.backlogs.filling import Place
from proofs.backlogs.memory import program

BEGIN = 2.0  # seconds that are not counted: the writer connects, the first pages are small
ADDED = 500  # rows in one of the writer's transactions


@dataclass(frozen=True, slots=True)
class Steady:
    """One run: rows a second that were removed, over all and by quarter; rows left at its end."""

    rate: float
    quarters: list[int]
    left: int


def keep_up(place: Place, seconds: float) -> Steady:
    """The relay and one writer that never pauses, for so long."""
    return asyncio.run(_keep_up(place, seconds))


async def _keep_up(place: Place, seconds: float) -> Steady:
    database = Database(place.url, pool_size=2)
    broker = Counting(sys.maxsize)
    relay = Relay(database, broker, page_rows=PAGE)
    running = asyncio.create_task(relay.run(broker.done))
    try:
        with program("proofs.backlogs.writer", place.url, str(ADDED)) as writer:
            await asyncio.sleep(BEGIN)
            removed = [relay.store.lease.removed]
            for _ in range(QUARTERS):
                await asyncio.sleep(seconds / QUARTERS)
                removed.append(relay.store.lease.removed)
            if writer.poll() is not None or running.done():
                raise RuntimeError("the writer or the relay has ended before its time")
    finally:
        broker.done.set()
        await running
        await database.close()
    quarters = [
        round((after - before) * QUARTERS / seconds)
        for before, after in itertools.pairwise(removed)
    ]
    return Steady((removed[-1] - removed[0]) / seconds, quarters, place.left())
