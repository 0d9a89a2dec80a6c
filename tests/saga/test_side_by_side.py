"""What one branch of a saga does while another one takes its time; and what a stop leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import Event, Failure, Retry, Saga, Service, nothing_to_undo
from outbox_saga.envelopes import seal
from outbox_saga.queries.clock import Clock
from outbox_saga.saga.operating import Happening, SagaOperations
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database

PATIENCE = 20.0
ONCE = Retry(max_attempts=1)


class Order(BaseModel):
    order_id: int = 1


class Paid(Event, topic="payments"):
    order_id: int


async def act(_: Any) -> None: ...


class Slow:
    """A step that has begun, and goes on until it is let go."""

    def __init__(self, answer: Any = None) -> None:
        self.began, self.let_go = asyncio.Event(), asyncio.Event()
        self.answer = answer

    async def goes_on(self, _: Any) -> Any:
        self.began.set()
        await self.let_go.wait()
        return self.answer


class House:
    """One service with one saga, of which one instance has started."""

    def __init__(self, url: str, saga: Saga[Order]) -> None:
        self.url, self.saga = url, saga
        self.service = self.at(0.0)
        with self.service.database.begin() as connection:
            upgrade(connection)
        self.id: UUID

    def at(self, later: float) -> Service:
        return Service(
            "house", database=self.url, sagas=[self.saga], poll=0.02, clock=Clock(later)
        )

    async def start(self) -> None:
        async with self.service.unit_of_work() as uow:
            self.id = self.saga.start(uow, Order(), business_key="order:1")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Event]:
        stop, orchestrator = asyncio.Event(), self.service.orchestrator()
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
            tasks.create_task(orchestrator.run(stop))
            yield stop
            stop.set()
        orchestrator.close()

    async def goes_on(self, later: float) -> None:
        service = self.at(later)
        orchestrator = service.orchestrator()
        while await orchestrator.run_once():
            pass
        orchestrator.close()
        await service.close()

    async def seen(self) -> tuple[str, list[Happening]]:
        seen, history = await SagaOperations(self.service.database).show(self.id)
        return seen.state.status, list(history)

    async def has(self, transition: str, step: str | None = None) -> bool:
        _, history = await self.seen()
        return any((h.entry.transition, h.entry.step) == (transition, step) for h in history)


@pytest.mark.databases("sqlite", "postgres18")
async def test_a_branch_goes_on_while_another_one_takes_its_time(database: Database) -> None:
    slow, again = Slow(), asyncio.Event()
    asked: list[int] = []

    async def flaky(step: Any) -> None:
        asked.append(step.attempt)
        if step.attempt == 1:
            raise ConnectionError
        again.set()

    saga = Saga("s", data=Order)
    outside: Any = {"compensation": nothing_to_undo, "external": True, "idempotent": True}
    saga.step("slow", slow.goes_on, after=(), **outside)
    saga.step("flaky", flaky, after=(), retry=Retry(max_attempts=3, initial=0.01), **outside)
    saga.timer("pause", 0.05, after=())
    saga.step("behind", act, after="pause", **outside)
    house = House(database.url, saga)
    await house.start()
    async with house.running():
        await again.wait()
        while not await house.has("STEP_COMPLETED", "behind"):  # noqa: ASYNC110 - a table
            await asyncio.sleep(0.01)
        assert not slow.let_go.is_set()
        slow.let_go.set()
        while not await house.has("COMPLETED"):  # noqa: ASYNC110 - a table
            await asyncio.sleep(0.01)
    await house.service.close()
    assert asked == [1, 2]


@pytest.mark.databases("sqlite", "postgres18")
async def test_what_an_event_leads_to_does_not_wait_for_a_call_beside_it(
    database: Database,
) -> None:
    slow, went_on = Slow(), asyncio.Event()

    async def behind(_: Any) -> None:
        went_on.set()

    saga = Saga("s", data=Order)
    outside: Any = {"compensation": nothing_to_undo, "external": True, "idempotent": True}
    saga.step("slow", slow.goes_on, after=(), **outside)
    saga.wait_for(
        "paid", Paid, timeout=600, after=(), business_key=lambda e: f"order:{e.order_id}"
    )
    saga.step("behind", behind, after="paid", **outside)
    house = House(database.url, saga)
    await house.start()
    async with house.running():
        await slow.began.wait()
        await house.service.deliver(seal(Paid(order_id=1), source="bank"))
        await went_on.wait()
        assert not slow.let_go.is_set()
        slow.let_go.set()
    await house.service.close()


@pytest.mark.databases("sqlite", "postgres18")
async def test_an_event_that_comes_after_its_time_is_too_late_though_a_call_goes_on_beside_it(
    database: Database,
) -> None:
    slow = Slow()
    saga = Saga("s", data=Order)
    saga.step("slow", slow.goes_on, after=(), compensation=act, external=True, idempotent=True)
    saga.wait_for("paid", Paid, timeout=0.05, after=(), business_key=lambda _: "order:1")
    house = House(database.url, saga)
    await house.start()
    async with house.running():
        while not await house.has("STEP_FAILED", "paid"):  # noqa: ASYNC110 - a table
            await asyncio.sleep(0.01)
        await house.service.deliver(seal(Paid(order_id=1), source="bank"))
        slow.let_go.set()
        while not await house.has("COMPENSATED"):  # noqa: ASYNC110 - a table
            await asyncio.sleep(0.01)
    await house.service.close()


@pytest.mark.databases("sqlite", "postgres18")
@pytest.mark.parametrize("direction", ["do", "undo"])
async def test_a_stop_costs_no_attempt_of_a_call_that_was_not_made(
    database: Database, direction: str
) -> None:
    calls: list[str] = []

    async def call(step: Any) -> None:
        calls.append(f"{step.direction} {step.step}")

    async def find(_: Any) -> None: ...

    saga = Saga("s", data=Order)
    outside: Any = {"external": True, "idempotent": True}
    if direction == "undo":
        slow = Slow(Failure("no"))
        saga.step("card", call, compensation=call, compensation_retry=ONCE, **outside)
        saga.step("slow", slow.goes_on, compensation=nothing_to_undo, **outside)
    else:
        slow = Slow()
        saga.step("slow", slow.goes_on, compensation=nothing_to_undo, **outside)
        saga.step("card", call, compensation=call, external=True, query=find, retry=ONCE)
    house = House(database.url, saga)
    await house.start()
    stop, orchestrator = asyncio.Event(), house.service.orchestrator()
    running = asyncio.create_task(orchestrator.run(stop))
    async with asyncio.timeout(PATIENCE):
        await slow.began.wait()
        (hand,) = orchestrator._hands.values()
        stop.set()
        while not hand.stopping:
            await asyncio.wait({running}, timeout=0)
        slow.let_go.set()
        await running
    orchestrator.close()
    assert f"{direction} card" not in calls

    await house.goes_on(later=600)
    status, _ = await house.seen()
    await house.service.close()
    assert (status, calls[-1]) == (
        "compensated" if direction == "undo" else "completed",
        f"{direction} card",
    )


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_timer_counts_from_when_its_row_was_free_and_not_from_when_it_was_waited_for(
    database: Database,
) -> None:
    slow = Slow()
    saga = Saga("s", data=Order).step(
        "first", slow.goes_on, compensation=nothing_to_undo, external=True, idempotent=True
    )
    house = House(database.url, saga.timer("pause", 1.0))
    await house.start()
    table = house.service.database.tables.saga
    async with house.running():
        await slow.began.wait()
        with house.service.database.engine.connect() as other:
            other.execute(sa.select(table.c.id).with_for_update())
            slow.let_go.set()
            # somebody has the row for so long; the database itself counts it
            nap = "pg_sleep(0.7)" if database.name.startswith("postgres") else "sleep(0.7)"
            await asyncio.to_thread(other.execute, sa.text(f"SELECT {nap}"))
            other.rollback()
        while not await house.has("COMPLETED"):  # noqa: ASYNC110 - a table
            await asyncio.sleep(0.01)
    _, history = await house.seen()
    await house.service.close()
    at = {h.entry.step: h.at for h in history if h.entry.transition == "STEP_COMPLETED"}
    assert (at["pause"] - at["first"]).total_seconds() > 0.9
