"""How many claims a loaded orchestrator makes: several places are filled by one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from outbox_saga.database import Database
from outbox_saga.saga import orchestrator
from outbox_saga.saga.orchestrator import PLACES_A_CLAIM, Orchestrator

pytestmark = pytest.mark.anyio

PLACES = 8


class Counted(Orchestrator):
    """Finds as much as it asks for, as long as there is work; what it takes ends when told."""

    def __init__(self, work: int) -> None:
        super().__init__(Database("sqlite:///none.db"), [], concurrency=PLACES, poll=0.01)
        self.work = work
        self.claims: list[int] = []
        self.going: list[asyncio.Event] = []
        self.claimed = asyncio.Condition()

    async def _claim(self, capacity: int) -> set[asyncio.Task[None]]:
        async with self.claimed:
            self.claimed.notify_all()
        found = min(capacity, self.work)
        if not found:
            return set()
        self.claims.append(found)
        self.work -= found
        ends = [asyncio.Event() for _ in range(found)]
        self.going += ends
        return {asyncio.create_task(self._until(each)) for each in ends}

    async def _until(self, end: asyncio.Event) -> None:
        await end.wait()

    async def until_claimed(self, times: int) -> None:
        async with self.claimed:
            await self.claimed.wait_for(lambda: len(self.claims) >= times)


async def carried(counted: Counted, story: Coroutine[Any, Any, None]) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(counted.run(stop))
    try:
        await asyncio.wait_for(story, 30)
    finally:
        stop.set()
        for each in counted.going:
            each.set()
        await running
        counted.close()


async def test_places_that_become_free_together_are_filled_by_one_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(orchestrator, "TOGETHER", 3600.0)
    counted = Counted(work=PLACES + 100)

    async def story() -> None:
        await counted.until_claimed(1)
        for turn in range(2, 6):
            for _ in range(PLACES // PLACES_A_CLAIM):
                counted.going.pop(0).set()
                await asyncio.sleep(0)  # not in one and the same turn of the loop
            await counted.until_claimed(turn)

    await carried(counted, story())
    assert counted.claims[:5] == [PLACES, *[PLACES // PLACES_A_CLAIM] * 4]


async def test_one_free_place_is_filled_after_a_moment_though_nothing_else_ends() -> None:
    counted = Counted(work=PLACES + 100)

    async def story() -> None:
        await counted.until_claimed(1)
        counted.going.pop(0).set()
        await counted.until_claimed(2)

    await carried(counted, story())
    assert counted.claims == [PLACES, 1]


async def test_a_process_that_waits_for_a_second_place_is_stopped_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(orchestrator, "TOGETHER", 3600.0)
    counted = Counted(work=PLACES + 100)

    async def story() -> None:
        await counted.until_claimed(1)
        counted.going.pop(0).set()
        await asyncio.sleep(0)

    await carried(counted, story())  # within its half a minute
    assert counted.claims == [PLACES]
