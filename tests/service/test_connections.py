"""Every connection in use: leases are kept all the same, nothing ends, and nobody is to blame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.exc import TimeoutError as PoolTimeout

from outbox_saga import (
    HandlerContext,
    RequestTimeout,
    Saga,
    Service,
    StepContext,
    nothing_to_undo,
)
from outbox_saga.brokers import Subscription
from outbox_saga.commit_outcomes import async_commit_outcome, commit_outcome
from outbox_saga.consuming import consume
from outbox_saga.database import Database
from outbox_saga.errors import CommitUnknown, HandlerBusy
from outbox_saga.ids import new_id
from tests.inbox.processes import FEW, LATER, note, said
from tests.relay.house import PATIENCE, House, Said
from tests.saga.shop import Order

pytestmark = pytest.mark.databases("postgres18", "mariadb")

MOST = 6  # connections of an engine whose `pool_size` is 1


class Full:
    """A database with few connections, which are all in use in the block of `taken`."""

    def __init__(self, house: House) -> None:
        self.database: Database = house.another_database(pool_size=1)
        pool: Any = self.database.async_engine.pool
        self.pool = pool
        pool._timeout = 0.05

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[AsyncExitStack]:
        async with AsyncExitStack() as held:
            while self.pool.checkedout() < MOST:
                await held.enter_async_context(self.database.async_engine.connect())
            yield held


@pytest.fixture
def full(house: House) -> Full:
    return Full(house)


async def seen(house: House, condition: Any, what: str) -> None:
    await asyncio.to_thread(house.until, condition, what)


# --- leases --------------------------------------------------------------------------------------


async def test_a_waiting_message_stays_leased_while_its_handler_takes_its_time(
    house: House, full: Full
) -> None:
    service = Service("shop", database=full.database, poll=0.01)
    inside, go = asyncio.Event(), asyncio.Event()

    @service.on(Said, retry=FEW)
    async def slow(handle: HandlerContext[Said]) -> None:
        if not house.set_aside():
            raise LookupError
        await note(handle)
        inside.set()
        await go.wait()

    await service.deliver(said("one"))
    house.advance(LATER)
    room = service.waiting_room(lease=0.3)
    trying = asyncio.create_task(room.run_once())
    await asyncio.wait_for(inside.wait(), PATIENCE)
    async with full.taken():
        first = house.set_aside()[0].lease_until
        await seen(house, lambda: house.set_aside()[0].lease_until > first, "a renewal")
    go.set()
    assert await asyncio.wait_for(trying, PATIENCE) == 1
    assert (house.notes(), house.set_aside()) == (["one"], [])
    await service.close()


async def test_a_claim_is_renewed_while_its_handler_takes_its_time(
    house: House, full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox_saga.attempts.CLAIM_LEASE", 0.3)
    service = Service("shop", database=full.database)
    inside, go = asyncio.Event(), asyncio.Event()

    @service.on(Said, pessimistic=True)
    async def outside(handle: HandlerContext[Said]) -> None:
        inside.set()
        await go.wait()
        await note(handle)

    def until() -> Any:
        return house.rows(house.tables.inbox_claim)[0].until

    delivering = asyncio.create_task(service.deliver(said("one")))
    await asyncio.wait_for(inside.wait(), PATIENCE)
    async with full.taken():
        first = until()
        await seen(house, lambda: until() > first, "a renewal")
    go.set()
    await asyncio.wait_for(delivering, PATIENCE)
    assert (house.notes(), house.set_aside()) == (["one"], [])
    await service.close()


async def test_a_saga_stays_leased_and_is_given_back(house: House, full: Full) -> None:
    inside, go = asyncio.Event(), asyncio.Event()

    async def slow(step: StepContext[Order]) -> None:
        inside.set()
        await go.wait()

    saga = Saga("slow", data=Order).step("slow", slow, compensation=nothing_to_undo, timeout=5)
    service = Service("shop", database=full.database, sagas=[saga])
    async with service.unit_of_work() as uow:
        saga.start(uow, Order(order_id=1), business_key="one")
    orchestrator = service.orchestrator()
    orchestrator.lease = 0.3

    def row() -> Any:
        return house.rows(house.tables.saga)[0]

    carrying = asyncio.create_task(orchestrator.run_once())
    await asyncio.wait_for(inside.wait(), PATIENCE)
    async with full.taken():
        first = row().lease_until
        await seen(house, lambda: row().lease_until != first, "a renewal")
        carrying.cancel()
        await orchestrator._release(next(iter(orchestrator._hands.values())).instance, None)
        assert row().owner is None
    await asyncio.gather(carrying, return_exceptions=True)
    orchestrator.close()
    await service.close()


# --- enough of them ------------------------------------------------------------------------------


async def test_every_handler_that_may_run_has_a_connection(house: House) -> None:
    """All of them inside, as many as its parts deliver and try again at the same time."""
    service = Service("shop", database=house.another_database(), concurrency=10)
    inside, all_in = [], asyncio.Event()

    async def slow(handle: HandlerContext[Said]) -> None:
        inside.append(handle.message.word)
        if len(inside) == 30:
            all_in.set()
        await all_in.wait()

    for consumer in ("first", "second", "third"):
        service.on(Said, consumer=consumer, timeout=PATIENCE)(slow)
    pool: Any = service.database.async_engine.pool  # used before it is known what runs on it
    pool._timeout = 0.05
    stop = asyncio.Event()
    consuming = asyncio.create_task(service.consume(stop))
    await asyncio.gather(
        *(
            service.handling.deliver(said(str(number)), consumer)
            for consumer in ("first", "second", "third")
            for number in range(10)
        )
    )
    assert len(house.inbox()) == 30
    assert house.set_aside() == []
    stop.set()
    await asyncio.wait_for(consuming, PATIENCE)
    await service.close()


async def test_a_pool_size_that_was_said_is_kept_to(house: House) -> None:
    service = Service("shop", database=house.another_database(pool_size=3), concurrency=50)
    service.on(Said)(note)
    service.publisher()
    pools: Any = (service.database.async_engine.pool, service.database.engine.pool)
    assert [(pool.size(), pool._max_overflow) for pool in pools] == [(3, 5)] * 2


# --- nobody is to blame --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["asynchronous", "plain"])
async def test_a_message_that_finds_no_connection_has_not_failed(
    house: House, full: Full, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service("shop", database=full.database)
    asked: list[str] = []

    async def asynchronous(handle: HandlerContext[Said]) -> None:
        asked.append(handle.message.word)
        await note(handle)

    def plain(handle: Any) -> None:
        asked.append(handle.message.word)
        raise PoolTimeout("QueuePool limit of size 1 overflow 0 reached")  # of its own engine

    service.on(Said, consumer="listener")(asynchronous if kind == "asynchronous" else plain)
    if kind == "asynchronous":
        async with full.taken():
            with pytest.raises(HandlerBusy, match="every connection"):
                await service.deliver(said("one"))
        assert asked == []
    else:
        with pytest.raises(HandlerBusy, match="every connection"):
            await service.deliver(said("one"))
    assert house.set_aside() == []
    assert "listener" in caplog.text
    await service.close()


async def test_a_step_that_finds_no_connection_has_not_failed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox_saga.saga.execution.PATIENCE", 0)
    monkeypatch.setattr("outbox_saga.saga.carrying.TROUBLE_PAUSE", 0.0)
    left = [PoolTimeout("QueuePool limit of size 1 overflow 0 reached")] * 3

    async def act(_: StepContext[Order]) -> None:
        if left:
            raise left.pop()

    saga = Saga("full", data=Order).step("act", act, compensation=nothing_to_undo)
    service = Service("shop", database=house.database, sagas=[saga])
    async with service.unit_of_work() as uow:
        saga.start(uow, Order(order_id=1), business_key="one")
    orchestrator = service.orchestrator()
    for _ in range(4):
        assert await orchestrator.run_once() == 1
    history = house.tables.saga_history
    told = [r.transition for r in house.rows(history, history.c.number)]
    assert told == ["STARTED", "STEP_COMPLETED", "COMPLETED"]
    orchestrator.close()
    await service.close()


async def test_a_consumer_waits_for_a_connection(
    house: House, full: Full, nats_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    service, stop = Service("shop", database=full.database), asyncio.Event()
    service.on(Said, consumer="listener")(note)
    name = f"test{new_id().hex[:12]}"
    broker = f"{nats_url}?create=1&stream={name}&prefix={name}"
    subscription = Subscription("listener", ("talk",), 2)
    async with full.taken():
        consuming = asyncio.create_task(consume(broker, subscription, service.handling, stop))
        await seen(
            house,
            lambda: consuming.done() or "consumer listener: TimeoutError" in caplog.text,
            "a warning",
        )
        assert not consuming.done()
    stop.set()
    await asyncio.wait_for(consuming, PATIENCE)
    await service.close()


async def test_who_waits_for_an_answer_waits_for_a_connection_too(full: Full) -> None:
    service = Service("shop", database=full.database, requests=True)
    async with full.taken():
        with pytest.raises(RequestTimeout):
            await service.async_reply(new_id(), timeout=0.1)
    plain: Any = full.database.engine.pool
    plain._timeout = 0.05
    held = [full.database.engine.connect() for _ in range(MOST)]
    with pytest.raises(RequestTimeout):
        service.reply(new_id(), timeout=0.1)
    for each in held:
        each.close()
    await service.close()


async def test_what_became_of_a_commit_is_not_told_without_a_connection(full: Full) -> None:
    unknown = CommitUnknown((new_id(),), None)
    async with full.taken():
        outcome = await async_commit_outcome(full.database.async_engine, unknown, patience=0.1)
    assert outcome is None
    plain: Any = full.database.engine.pool
    plain._timeout = 0.05
    held = [full.database.engine.connect() for _ in range(MOST)]
    assert commit_outcome(full.database.engine, unknown, patience=0.1) is None
    for each in held:
        each.close()
