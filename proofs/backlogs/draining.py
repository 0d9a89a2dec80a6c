"""A relay drains a backlog into a publisher that costs nothing; the clock, and what it cost.

The clock runs from the moment at which the relay holds its leases and has read nothing, until its
last row is removed and that is committed. So neither the import of the program, nor connecting,
nor the taking and giving back of leases is in it, whatever the size of the backlog; the first
page, which is small, and statements that are not prepared yet are.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from outbox_saga.brokers.contract import ACCEPTED, Outcome
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga_relay.relay import Relay
from proofs.backlogs.filling import Place

PAGE = 500  # rows: the relay's own default
QUARTERS = 4
LOOK = 0.0005  # seconds between two looks whether the last row has gone


class Counting:
    """A publisher that accepts everything at once, counts, and knows when each part of it came."""

    def __init__(self, rows: int) -> None:
        self.began = 0.0
        self.passed: list[float] = []
        self.seen = 0
        self.done = asyncio.Event()
        self._rows = rows

    async def open(self) -> None:
        """The relay holds its leases now."""
        self.began = time.monotonic()

    async def publish(
        self,
        envelopes: Sequence[Envelope],
        settled: object = None,  # noqa: ARG002 - the seam
    ) -> Sequence[Outcome]:
        """Accepted, all of them."""
        self.seen += len(envelopes)
        while self.seen >= self._rows * (len(self.passed) + 1) / QUARTERS:
            self.passed.append(time.monotonic() - self.began)
            if len(self.passed) == QUARTERS:
                self.done.set()
        return [ACCEPTED] * len(envelopes)

    async def close(self) -> None:
        """Nothing to disconnect."""


@dataclass(frozen=True, slots=True)
class Drained:
    """One run.

    Args:
        rows: That were published and removed.
        seconds: By the clock of this module.
        quarters: Rows a second in each quarter of the backlog, by what the publisher saw.
        duplicates: Messages that came more than once.
    """

    rows: int
    seconds: float
    quarters: list[int] = field(default_factory=list)
    duplicates: int = 0

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds


def drain(place: Place, rows: int) -> Drained:
    """All of the outbox, which holds so many rows."""
    return asyncio.run(_drain(place, rows))


async def _drain(place: Place, rows: int) -> Drained:
    database = Database(place.url, pool_size=2)
    broker = Counting(rows)
    relay = Relay(database, broker, page_rows=PAGE)
    last = asyncio.create_task(_removed(relay, broker, rows))
    running = asyncio.create_task(relay.run(broker.done))
    done, _ = await asyncio.wait({last, running}, return_when=asyncio.FIRST_COMPLETED)
    if last not in done:
        last.cancel()
        await running
        raise RuntimeError(
            f"the relay ended with {relay.store.lease.removed} of {rows} rows removed"
        )
    ended = last.result()
    await running
    await database.close()
    marks = [0.0, *broker.passed]
    return Drained(
        rows=rows,
        seconds=ended - broker.began,
        quarters=[
            round(rows / QUARTERS / (after - before))
            for before, after in itertools.pairwise(marks)
        ],
        duplicates=broker.seen - rows,
    )


async def _removed(relay: Relay, broker: Counting, rows: int) -> float:
    await broker.done.wait()
    while relay.store.lease.removed < rows:  # noqa: ASYNC110 - a counter that another thread moves
        await asyncio.sleep(LOOK)
    return time.monotonic()
