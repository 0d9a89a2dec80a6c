"""24: a compensation that fails five times, and one that fails until a person helps."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import Decision, Failure, Retry, Saga, SagaEvent, Service, nothing_to_undo
from outbox_saga.queries.clock import Clock
from outbox_saga.saga.operating import SagaOperations
from outbox_saga_migrations import upgrade

FAILS = 5
PATIENCE = Retry(max_attempts=8, initial=1.0, max_delay=4.0)  # 8 attempts within half a minute
DEADLINE = 40.0  # seconds in which one that fails for ever has to be stuck
STEP = 1.0  # seconds between two looks, by the database's clock


class Alarm(SagaEvent, topic="alarms"):
    """What tells others of a saga."""


class Order(BaseModel):
    """Nothing."""


class Scene:
    """One service, whose compensation fails so often.

    Args:
        fails: None: until a person has helped.
    """

    def __init__(self, url: str, *, threads: bool, fails: int | None) -> None:
        self.url, self.fails = url, fails
        self.tried = self.undone = 0
        self.saga = self._saga(threads=threads)
        service = self.service()
        with service.database.begin() as connection:
            upgrade(connection)
        asyncio.run(service.close())

    def _saga(self, *, threads: bool) -> Saga[Order]:
        def undo(_: Any) -> None:
            self.tried += 1
            if self.fails is None or self.tried <= self.fails:
                raise RuntimeError("the shelf is locked")
            self.undone += 1

        def either(function: Any) -> Any:
            if threads:
                return function

            async def asynchronous(step: Any) -> Any:
                return function(step)

            return asynchronous

        return (
            Saga("undo_fails", data=Order, events=Alarm)
            .step(
                "take",
                either(lambda _: None),
                compensation=either(undo),
                compensation_retry=PATIENCE,
            )
            .step("no", either(lambda _: Failure("no")), compensation=nothing_to_undo)
            .check()
        )

    def service(self, later: float = 0.0) -> Service:
        """So many seconds from now."""
        return Service("scene", database=self.url, sagas=[self.saga], clock=Clock(later))

    async def start(self) -> UUID:
        """One instance."""
        service = self.service()
        async with service.unit_of_work() as uow:
            id_ = self.saga.start(uow, Order())
        await service.close()
        return id_

    async def look(self, later: float, id_: UUID) -> tuple[str, Counter[str]]:
        """Carries it on as far as it goes then; its status, and what happened how often."""
        service = self.service(later)
        orchestrator = service.orchestrator()
        while await orchestrator.run_once():
            pass
        orchestrator.close()
        seen, history = await SagaOperations(service.database).show(id_)
        await service.close()
        return seen.state.status, Counter(h.entry.transition for h in history)

    async def until_over(self, id_: UUID) -> tuple[str, Counter[str], float, list[str]]:
        """As `look`, until it has ended; when that was, and what was wrong meanwhile."""
        wrong, later = [], 0.0
        while True:
            status, happened = await self.look(later, id_)
            if status == "compensated" and not self.undone:
                wrong.append("it was called compensated before it was")
            if status in ("compensated", "stuck") or later > 2 * DEADLINE:
                return status, happened, later, wrong
            later += STEP

    async def helped(self, id_: UUID) -> list[str]:
        """A person has the lock taken off, and has it tried again."""
        self.fails = 0
        service = self.service()
        sagas = SagaOperations(service.database, [self.saga])
        seen, _ = await sagas.show(id_)
        await sagas.retry(seen, "take", Decision("ada", "the lock is off"))
        tables = service.database.tables
        with service.database.begin() as connection:
            noted = connection.execute(sa.select(tables.operator_action)).all()
            alarms = connection.scalars(
                sa.select(tables.outbox.c.body).where(tables.outbox.c.topic == "alarms")
            ).all()
        await service.close()
        wrong = []
        told = [(n.operator, n.action, n.subject, n.reason) for n in noted]
        if told != [("ada", "saga.retry", f"saga {id_}", "the lock is off")]:
            wrong.append(f"on record is {told}")
        if not any(b'"FAILED"' in body for body in alarms):
            wrong.append("nobody was told that it is stuck")
        return wrong


def play(url: str, *, threads: bool, for_ever: bool) -> dict[str, Any]:
    """What came of it."""
    scene = Scene(url, threads=threads, fails=None if for_ever else FAILS)
    return asyncio.run(_play(scene, for_ever=for_ever))


async def _play(scene: Scene, *, for_ever: bool) -> dict[str, Any]:
    id_ = await scene.start()
    status, happened, seconds, wrong = await scene.until_over(id_)
    failed = happened["COMPENSATION_FAILED"]
    if for_ever:
        if status != "stuck" or seconds > DEADLINE:
            wrong.append(f"after {seconds} s it is {status}")
        if failed != PATIENCE.max_attempts or happened["FAILED"] != 1:
            wrong.append(f"its history tells of {dict(happened)}")
        wrong += await scene.helped(id_)
        status, happened = await scene.look(seconds, id_)
    elif failed != FAILS:
        wrong.append(f"{failed} failures are in its history")
    if status != "compensated" or scene.undone != 1:
        wrong.append(f"it ended {status}, undone {scene.undone} times")
    return {"tried": scene.tried, "over after seconds": seconds, "wrong": wrong}
