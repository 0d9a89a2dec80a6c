"""Calls side by side, of a process that lost its instance meanwhile, and both succeed."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from outbox_saga import Failure, Saga, Service, StepContext, SyncStepContext
from outbox_saga.errors import LeaseLost
from outbox_saga.queries import sagas
from outbox_saga.queries.clock import Clock
from outbox_saga.saga.execution import Execution
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database

LONG = 200.0  # seconds: every lease has run out
STEPS = ("pay", "book")


class Order(BaseModel):
    order_id: int = 7


class Trip:
    """Two calls at the same time; the first of each hangs until it is let go, others are no."""

    def __init__(self, url: str, *, threads: bool) -> None:
        self.url = url
        self.log: list[str] = []
        self.hangs = {name: threading.Event() for name in STEPS}
        self.goes_on = {name: threading.Event() for name in STEPS}
        self.saga = Saga("trip", data=Order)
        for name in STEPS:
            self.saga.step(
                name,
                self._acts_now if threads else self._acts,
                compensation=self._undoes,
                external=True,
                idempotent=True,
                timeout=25,
                after=[],
            )
        service = self.later(0)
        with service.database.begin() as connection:
            upgrade(connection)
        service.database.dispose()

    async def _acts(self, step: StepContext[Order]) -> Any:
        if step.attempt > 1:
            return Failure("sold out")
        self.hangs[step.step].set()
        await asyncio.to_thread(self.goes_on[step.step].wait, 30)
        self.log.append(step.step)
        return None

    def _acts_now(self, step: SyncStepContext[Order]) -> Any:
        if step.attempt > 1:
            return Failure("sold out")
        self.hangs[step.step].set()
        self.goes_on[step.step].wait(30)
        self.log.append(step.step)
        return None

    async def _undoes(self, step: StepContext[Order]) -> None:
        self.log.append(f"undo {step.step}")

    def later(self, seconds: float) -> Service:
        return Service("trip", database=self.url, sagas=[self.saga], clock=Clock(seconds))

    async def start(self) -> UUID:
        service = self.later(0)
        async with service.unit_of_work() as uow:
            id_ = self.saga.start(uow, Order())
        await service.close()
        return id_

    async def carry_on(self, after: float) -> None:
        service = self.later(after)
        orchestrator = service.orchestrator()
        while await orchestrator.run_once():
            pass
        orchestrator.close()
        await service.close()

    async def status(self, id_: UUID) -> str:
        service = self.later(0)
        found = await service.database.look(sagas.read, service.database.tables, id_)
        await service.close()
        assert found is not None
        return found.state.status


@pytest.mark.parametrize("threads", [False, True], ids=["async", "threads"])
async def test_each_of_them_is_recorded_and_undone(
    database: Database, threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trip = Trip(database.url, threads=threads)
    report = Execution._report

    async def reported(*args: Any) -> Any:
        try:
            return await report(*args)
        except LeaseLost:  # the other one is still calling when this one is told
            trip.goes_on["book"].set()
            raise

    monkeypatch.setattr(Execution, "_report", reported)
    id_ = await trip.start()
    zombie = trip.later(0)
    orchestrator = zombie.orchestrator()
    stands = asyncio.create_task(orchestrator.run_once())
    for name in STEPS:
        await asyncio.to_thread(trip.hangs[name].wait, 30)
    await trip.carry_on(LONG)
    assert await trip.status(id_) == "compensated"
    trip.goes_on["pay"].set()
    await stands
    orchestrator.close()
    await zombie.close()
    await trip.carry_on(2 * LONG)
    assert await trip.status(id_) == "compensated"
    assert sorted(trip.log) == ["book", "pay", "undo book", "undo pay"]
