"""Brokers that are no brokers: one that costs nothing, one that costs only time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from outbox_saga.brokers.contract import ACCEPTED, Accepted, Outcome, Publisher, Settled
from outbox_saga.envelopes import Envelope


class NoBroker:
    """Accepts everything at once and says when it has seen enough."""

    def __init__(self, enough: int) -> None:
        self.seen = 0
        self.done = asyncio.Event()
        self._enough = enough

    async def open(self) -> None:
        """Nothing to connect to."""

    async def publish(
        self,
        envelopes: Sequence[Envelope],
        settled: Settled | None = None,  # noqa: ARG002 - the seam
    ) -> Sequence[Outcome]:
        """Accepted, all of them."""
        self._saw(len(envelopes))
        return [ACCEPTED] * len(envelopes)

    async def close(self) -> None:
        """Nothing to disconnect."""

    def _saw(self, count: int) -> None:
        self.seen += count
        if self.seen >= self._enough:
            self.done.set()


class SleepingBroker(NoBroker):
    """Accepts each message after its own sleep: a timer and a future each, as `asyncio.sleep`
    makes them. However many it is given sleep at the same time.

    Args:
        enough: Messages.
        seconds: How long it sleeps for each.
    """

    def __init__(self, enough: int, seconds: float) -> None:
        super().__init__(enough)
        self._seconds = seconds

    async def publish(
        self,
        envelopes: Sequence[Envelope],
        settled: Settled | None = None,  # noqa: ARG002 - the seam
    ) -> Sequence[Outcome]:
        """Accepted, when the last of them has slept."""
        loop = asyncio.get_running_loop()
        sleeps: list[asyncio.Future[None]] = []
        for _ in envelopes:
            sleep = loop.create_future()
            loop.call_later(self._seconds, _over, sleep)
            sleeps.append(sleep)
        for sleep in sleeps:
            await sleep
        self._saw(len(envelopes))
        return [ACCEPTED] * len(envelopes)


def _over(sleep: asyncio.Future[None]) -> None:
    if not sleep.done():  # as it is when the call was cancelled
        sleep.set_result(None)


class Counted(NoBroker):
    """A real publisher, and when it has accepted enough.

    Args:
        enough: Messages.
        publisher: Which.
    """

    def __init__(self, enough: int, publisher: Publisher) -> None:
        super().__init__(enough)
        self._publisher = publisher

    async def open(self) -> None:
        """Connects."""
        await self._publisher.open()

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        """What became of them, as the publisher says."""
        outcomes = await self._publisher.publish(envelopes, settled)
        self._saw(sum(isinstance(outcome, Accepted) for outcome in outcomes))
        return outcomes

    async def close(self) -> None:
        """Disconnects."""
        await self._publisher.close()
