"""Sagas on real databases whose process dies again and again, as the next ones find them."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from outbox_saga.ids import new_id
from outbox_saga.queries import leases
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.leases import Known
from outbox_saga.saga.execution import Execution
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.happened import Resumed, ToDo
from outbox_saga.saga.outcomes import FATAL_DEATHS
from tests.saga.shop import Shop, refuse

pytestmark = pytest.mark.anyio

LEASE = 30.0


class Doomed:
    """Processes that take up all they can claim, one after another, and die of it."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.at = 0.0

    async def die(self) -> list[ToDo]:
        """One more takes up what is due, and is gone; what it was about to do."""
        service = self.shop.restarted(Clock(self.at))
        owner, database, todo = new_id(), service.database, []
        now, claimed = await database.run(
            leases.claim, database.tables, database.clock, owner, LEASE, Known(["fulfil"]), 10
        )
        orchestrator = service.orchestrator()
        execution = Execution(database, orchestrator._threads)
        for instance in claimed:
            hand = Hand(self.shop.saga, instance, owner, now, time.monotonic(), LEASE)
            happened = Resumed(instance.deaths if instance.orphaned else 0)
            todo += list((await execution.resume(hand, happened)).todo)
        orchestrator.close()
        await service.close()
        self.at += LEASE + 1
        return todo

    async def to_the_end(self) -> None:
        """A process that lives finds what is left."""
        service = self.shop.restarted(Clock(self.at))
        await self.shop.to_the_end(service)
        await service.close()


async def deaths_of(shop: Shop, id_: UUID) -> int:
    table = shop.service.database.tables.saga

    def read(connection: sa.Connection) -> int:
        chosen = sa.select(table.c.deaths).where(table.c.id == id_)
        deaths: int = connection.execute(chosen).scalar_one()
        return deaths

    return await shop.service.database.look(read)


def _reserve_is_done(shop: Shop) -> None:
    """As if the first step of each saga were done: the next one is a call."""
    table = shop.service.database.tables.saga
    with shop.service.database.begin() as connection:
        row = connection.execute(sa.select(table.c.progress).limit(1)).scalar_one()
        done = row.replace('"reserve":{"phase":"waiting"}', '"reserve":{"phase":"done"}')
        assert done != row
        connection.execute(sa.update(table).values(progress=done))


async def test_a_step_whose_process_died_nine_times_has_lost_no_attempt(shop: Shop) -> None:
    attempts: list[int] = []
    shop.hooks["reserve"] = lambda step: attempts.append(step.attempt)
    id_ = await shop.start()
    doomed = Doomed(shop)
    for _ in range(FATAL_DEATHS - 1):
        await doomed.die()
    assert await shop.history(id_) == ["STARTED"]

    await doomed.to_the_end()

    assert attempts == [1]
    assert (await shop.instance(id_)).state.status == "completed"
    assert await deaths_of(shop, id_) == 0


async def test_a_step_whose_process_dies_every_time_fails_and_leaves_nothing(shop: Shop) -> None:
    id_ = await shop.start()
    doomed = Doomed(shop)
    async with asyncio.timeout(60):
        while (await shop.instance(id_)).state.status == "running":
            await doomed.die()

    ended = await shop.instance(id_)
    assert ended.state.status == "compensated"
    assert ended.state.reason == (
        "reserve: gave up after 3 attempts: its process died or stood still 12 times while "
        "carrying it out"
    )
    assert await shop.history(id_) == [
        "STARTED",
        *["STEP_FAILED reserve"] * 3,
        "COMPENSATION_STARTED",
        "COMPENSATED",
    ]
    assert await shop.shelf() == (100, 0)
    assert shop.provider.requests == []


async def test_a_step_that_lives_after_it_was_charged_completes_the_saga(shop: Shop) -> None:
    attempts: list[int] = []
    shop.hooks["reserve"] = lambda step: attempts.append(step.attempt)
    id_ = await shop.start()
    doomed = Doomed(shop)
    for _ in range(FATAL_DEATHS + 2):  # the last but one is charged, and gives the lease back
        await doomed.die()

    await doomed.to_the_end()

    assert attempts == [3]
    assert (await shop.instance(id_)).state.status == "completed"
    assert await shop.shelf() == (99, 1)


async def test_a_compensation_whose_process_dies_every_time_is_stuck_with_the_reason(
    shop: Shop,
) -> None:
    shop.hooks["charge"] = refuse("declined")
    at_the_undo = asyncio.Event()

    def stops(step: Any) -> Any:
        at_the_undo.set()
        raise RuntimeError("not yet")

    shop.hooks["undo reserve"] = stops
    id_ = await shop.start()
    orchestrator = shop.service.orchestrator()
    await orchestrator.run_once()
    orchestrator.close()
    assert at_the_undo.is_set()
    doomed = Doomed(shop)
    async with asyncio.timeout(60):
        while (await shop.instance(id_)).state.status == "compensating":
            await doomed.die()

    ended = await shop.instance(id_)
    assert ended.state.status == "stuck"
    assert ended.state.reason is not None
    assert ended.state.reason.startswith("reserve: gave up after 3 attempts: its process died")
    assert await shop.shelf() == (99, 1)


async def test_a_call_whose_process_dies_every_time_is_stuck_after_as_many_as_it_may(
    shop: Shop,
) -> None:
    id_ = await shop.start()
    orchestrator = shop.service.orchestrator()
    never = asyncio.Event()
    shop.hooks["charge"] = lambda _: never.wait()
    running = asyncio.create_task(orchestrator.run_once())
    async with asyncio.timeout(20):
        while not shop.provider.requests:
            await asyncio.wait({running}, timeout=0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    orchestrator.close()
    doomed = Doomed(shop)
    doomed.at = 60.0
    async with asyncio.timeout(60):
        while (await shop.instance(id_)).state.status == "running":
            await doomed.die()

    ended = await shop.instance(id_)
    assert ended.state.status == "stuck"
    assert ended.state.reason == (
        "charge: outcome unknown after 26 attempts: its process died or stood still at the last "
        "one"
    )
    assert (await shop.history(id_)).count("RUNNING charge") == 26
    assert await shop.shelf() == (99, 1)  # what was reserved stays: nobody knows about the charge


async def test_an_outcome_that_is_reported_forgives_the_deaths_before_it(shop: Shop) -> None:
    id_ = await shop.start()
    doomed = Doomed(shop)
    for _ in range(4):
        await doomed.die()
    assert await deaths_of(shop, id_) == 3

    def fails(step: Any) -> Any:
        raise RuntimeError("no luck")

    shop.hooks["reserve"] = fails
    service = shop.restarted(Clock(doomed.at))
    orchestrator = service.orchestrator()
    await orchestrator.run_once()
    orchestrator.close()
    await service.close()

    assert "STEP_FAILED reserve" in await shop.history(id_)
    assert await deaths_of(shop, id_) == 0


async def test_an_intent_forgives_no_deaths(shop: Shop) -> None:
    id_ = await shop.start()
    doomed = Doomed(shop)
    _reserve_is_done(shop)
    for attempt in range(1, 5):
        (todo,) = await doomed.die()
        assert (todo.step, todo.attempt) == ("charge", attempt)

    assert await deaths_of(shop, id_) == 3


async def test_a_stop_in_the_middle_of_a_step_is_no_death(shop: Shop) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def waits(step: Any) -> None:
        asked.set()
        await answer.wait()

    shop.hooks["charge"] = waits
    id_ = await shop.start()
    stop, orchestrator = asyncio.Event(), shop.service.orchestrator()
    running = asyncio.create_task(orchestrator.run(stop))
    await asyncio.wait_for(asked.wait(), 20)
    stop.set()
    (hand,) = orchestrator._hands.values()
    while not hand.stopping:
        await asyncio.wait({running}, timeout=0)
    answer.set()
    await asyncio.wait_for(running, 20)
    orchestrator.close()

    later = shop.restarted(Clock(60.0))
    database = later.database
    _, (claimed,) = await database.run(
        leases.claim, database.tables, database.clock, new_id(), LEASE, Known(["fulfil"]), 10
    )
    await later.close()
    assert claimed.id == id_
    assert (claimed.deaths, claimed.orphaned) == (0, False)


async def test_of_sagas_that_may_kill_one_is_in_hand_at_a_time_and_the_others_go_on(
    shop: Shop,
) -> None:
    for order_id in range(6):
        await shop.start(order_id)
    _reserve_is_done(shop)
    doomed = Doomed(shop)
    for _ in range(2):
        await doomed.die()
    for order_id in range(6, 9):
        await shop.start(order_id)
    begun: list[int] = []
    go_on = asyncio.Event()

    async def holds(step: Any) -> None:
        begun.append(step.data.order_id)
        await go_on.wait()

    shop.hooks["charge"] = holds
    service = shop.restarted(Clock(doomed.at))
    orchestrator = service.orchestrator()
    first = asyncio.create_task(orchestrator.run_once())
    async with asyncio.timeout(20):
        while len(begun) < 4:
            await asyncio.wait({first}, timeout=0.02)

    assert await orchestrator.run_once() == 0
    assert len([n for n in begun if n < 6]) == 1
    assert sorted(begun)[-3:] == [6, 7, 8]
    go_on.set()
    assert await first == 4
    async with asyncio.timeout(20):
        for others in range(1, 6):
            assert await orchestrator.run_once() == 1
            assert len(begun) == 4 + others
    orchestrator.close()
    await service.close()
    assert sorted(begun) == list(range(9))
