"""A call of a process that lost its instance meanwhile, and succeeds all the same."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import (
    Event,
    Failure,
    Retry,
    Saga,
    Service,
    StepContext,
    SyncStepContext,
    nothing_to_undo,
)
from outbox_saga.instances import Instance
from outbox_saga.queries import relay, sagas, sagas_seen
from outbox_saga.queries.clock import Clock
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database

LONG = 200.0  # seconds: every lease has run out


class Charged(Event, topic="charges"):
    order_id: int


class Order(BaseModel):
    order_id: int = 7
    receipt: str | None = None
    number: int = 0


class Payer:
    """Its first call hangs until it is let go; what the next ones say, tests say."""

    def __init__(self, url: str, *, threads: bool, answer: Any = None) -> None:
        self.url = url
        self.log: list[str] = []
        self.hangs, self.goes_on = threading.Event(), threading.Event()
        self.next_answer: Any = Failure("no money")
        self.answer = {"receipt": "r1"} if answer is None else answer

        async def pay(step: StepContext[Order]) -> Any:
            if step.attempt == 1:
                self.hangs.set()
                await asyncio.to_thread(self.goes_on.wait, 30)
                step.publish(Charged(order_id=step.data.order_id))
            return self._paid(step.attempt)

        def pay_now(step: SyncStepContext[Order]) -> Any:
            if step.attempt == 1:
                self.hangs.set()
                self.goes_on.wait(30)
                step.publish(Charged(order_id=step.data.order_id))
            return self._paid(step.attempt)

        async def refund(step: StepContext[Order]) -> None:
            self.log.append(f"refund {step.data.receipt}")

        self.saga = (
            Saga("pay", data=Order)
            .step(
                "pay",
                pay_now if threads else pay,
                compensation=refund,
                external=True,
                idempotent=True,
                timeout=25,
                retry=Retry(max_attempts=3, initial=0.01, max_delay=0.01),
            )
            .step("send", _send, compensation=nothing_to_undo)
            .check()
        )
        service = self.later(0)
        with service.database.begin() as connection:
            upgrade(connection)
        service.database.engine.dispose()

    def _paid(self, attempt: int) -> Any:
        answer = self.answer if attempt == 1 else self.next_answer
        self.log.append(f"pay {attempt}: {'no' if isinstance(answer, Failure) else 'yes'}")
        return answer

    def later(self, seconds: float) -> Service:
        return Service("payer", database=self.url, sagas=[self.saga], clock=Clock(seconds))

    async def carry_on(self, after: float) -> None:
        service = self.later(after)
        orchestrator = service.orchestrator()
        while await orchestrator.run_once():
            pass
        orchestrator.close()
        await service.close()

    async def passed(self, id_: UUID, *, before: Any = None) -> Instance:
        """One process calls and stands still; another one carries the instance to its end; then
        the first one's call succeeds.
        """
        zombie = self.later(0)
        orchestrator = zombie.orchestrator()
        stands = asyncio.create_task(orchestrator.run_once())
        await asyncio.to_thread(self.hangs.wait, 30)
        await self.carry_on(LONG)
        if before is not None:
            await before()
        self.goes_on.set()
        await stands
        orchestrator.close()
        await zombie.close()
        await self.carry_on(2 * LONG)
        return await self.instance(id_)

    async def start(self) -> UUID:
        service = self.later(0)
        async with service.unit_of_work() as uow:
            id_ = self.saga.start(uow, Order())
        await service.close()
        return id_

    async def instance(self, id_: UUID) -> Instance:
        service = self.later(0)
        found = await service.database.look(sagas.read, service.database.tables, id_)
        await service.close()
        assert found is not None
        return found

    async def history(self, id_: UUID) -> list[str]:
        service = self.later(0)
        found = await service.database.look(sagas_seen.history, service.database.tables, id_)
        await service.close()
        return [f"{h.entry.transition} {h.entry.step or ''}".strip() for h in found]


async def _send(_: StepContext[Order]) -> None: ...


@pytest.fixture(params=["async", "threads"])
def threads(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "threads")


async def test_what_it_did_is_undone_once_the_saga_has_been_undone(
    database: Database, threads: bool
) -> None:
    payer = Payer(database.url, threads=threads)
    id_ = await payer.start()
    ended = await payer.passed(id_)
    assert ended.state.status == "compensated"
    assert payer.log == ["pay 2: no", "pay 1: yes", "refund r1"]
    assert await payer.history(id_) == [
        "STARTED",
        "RUNNING pay",
        "RUNNING pay",
        "STEP_FAILED pay",
        "COMPENSATION_STARTED",
        "COMPENSATED",
        "STEP_COMPLETED pay",
        "COMPENSATION_STARTED",
        "COMPENSATING_STEP pay",
        "STEP_COMPENSATED pay",
        "COMPENSATED",
    ]


async def test_what_it_did_is_no_second_effect_where_the_saga_has_completed(
    database: Database, threads: bool
) -> None:
    payer = Payer(database.url, threads=threads)
    payer.next_answer = {"receipt": "r1"}
    id_ = await payer.start()
    ended = await payer.passed(id_)
    assert (ended.state.status, ended.state.data["receipt"]) == ("completed", "r1")
    assert payer.log == ["pay 2: yes", "pay 1: yes"]
    assert (await payer.history(id_))[-1] == "COMPLETED"  # who was passed changes nothing


async def test_when_the_saga_ended_stays_when_it_ended(database: Database, threads: bool) -> None:
    payer = Payer(database.url, threads=threads)
    payer.next_answer = {"receipt": "r1"}
    id_ = await payer.start()
    service = payer.later(0)
    moments: list[Any] = []

    async def ended() -> None:
        saga = service.database.tables.saga
        asked = sa.select(saga.c.ended_at).where(saga.c.id == id_)
        moments.append(await service.database.look(lambda c: c.scalar(asked)))

    await payer.passed(id_, before=ended)
    await ended()
    await service.close()
    assert moments[0] is not None
    assert moments[0] == moments[1]


async def test_what_it_answers_need_not_fit_to_be_undone(
    database: Database, threads: bool
) -> None:
    payer = Payer(database.url, threads=threads, answer={"number": "no number"})
    id_ = await payer.start()
    ended = await payer.passed(id_)
    assert ended.state.status == "compensated"
    assert payer.log == ["pay 2: no", "pay 1: yes", "refund None"]


async def test_what_it_said_leaves_only_with_what_it_did(
    database: Database, threads: bool
) -> None:
    payer = Payer(database.url, threads=threads)
    id_ = await payer.start()
    service = payer.later(0)
    counts = []

    async def count() -> None:
        tables = service.database.tables
        counts.append(await service.database.look(relay.pending, tables))

    await payer.passed(id_, before=count)
    await count()
    await service.close()
    assert counts == [0, 1]
