"""A driver may swallow the cancellation of a loop that asks it something at that moment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from outbox_saga import calling
from outbox_saga.calling import until_ended
from tests.saga.shop import Shop

pytestmark = pytest.mark.anyio


async def test_a_loop_that_swallows_a_cancellation_is_ended_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calling, "CANCELLED_AGAIN", 0.01)
    asked: list[int] = []

    async def deaf() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                asked.append(1)
                if len(asked) == 3:
                    raise

    async def fails() -> None:
        raise OSError

    tasks = {asyncio.create_task(deaf()), asyncio.create_task(fails())}
    await asyncio.sleep(0)
    await asyncio.wait_for(until_ended(tasks), 30)
    assert len(asked) == 3
    assert all(task.done() for task in tasks)


async def test_an_orchestrator_ends_though_its_look_has_swallowed_the_cancellation(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stood still on MariaDB, once in eight thousand tests, with only its watch alive."""
    monkeypatch.setattr(calling, "CANCELLED_AGAIN", 0.01)
    service = shop.service
    orchestrator = service.orchestrator()
    swallowed = asyncio.Event()
    begun = asyncio.Event()

    async def deaf_once() -> None:
        while True:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed.is_set():
                    raise
                swallowed.set()

    monkeypatch.setattr(orchestrator, "_watch", deaf_once)
    shop.hooks["charge"] = lambda step: _when(begun)
    await shop.start()
    try:
        await asyncio.wait_for(orchestrator.run_once(), 30)
    finally:
        orchestrator.close()
    assert swallowed.is_set()


async def _when(begun: asyncio.Event) -> Any:
    await begun.wait()
    return {"charge": "c"}
