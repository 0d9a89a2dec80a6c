"""A small shop for the orchestrator's tests: one account table, a payment provider, one saga."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import Event, Failure, Retry, Saga, Service, StepContext, SyncStepContext
from outbox_saga.instances import Instance
from outbox_saga.queries import sagas
from outbox_saga.queries.clock import Clock
from outbox_saga_migrations import upgrade

metadata = sa.MetaData()
stock = sa.Table(
    "stock",
    metadata,
    sa.Column("sku", sa.String(20), primary_key=True),
    sa.Column("free", sa.Integer, nullable=False),
    sa.Column("reserved", sa.Integer, nullable=False),
)


class Reserved(Event, topic="stock"):
    order_id: int


class Order(BaseModel):
    order_id: int
    quantity: int = 1
    charge: str | None = None
    booked: bool = False


@dataclass
class Provider:
    """The other side: acts once per key, keeps a log of every request."""

    requests: list[tuple[str, str, int]] = field(default_factory=list)
    acted: dict[str, str] = field(default_factory=dict)

    def act(self, kind: str, key: str, attempt: int) -> None:
        self.requests.append((kind, key, attempt))
        self.acted.setdefault(key, kind)

    def count(self, kind: str) -> int:
        return sum(1 for acted in self.acted.values() if acted == kind)


Hook = Callable[[Any], Any]


class Shop:
    """A service with a saga of four steps; `hooks` are called inside a step, by its name."""

    def __init__(self, url: str, *, threads: bool, **options: Any) -> None:
        self.provider = Provider()
        self.hooks: dict[str, Hook] = {}
        self.saga = self._saga(threads=threads)
        self.options = options
        self.url = url
        self.service = self.restarted()
        with self.service.database.begin() as connection:
            upgrade(connection)
        with self.service.database.begin() as connection:
            metadata.create_all(connection)
            connection.execute(sa.insert(stock).values(sku="tea", free=100, reserved=0))

    def restarted(self, clock: Clock | None = None) -> Service:
        """As another process would have it: own engines, own owner; possibly at a later time."""
        return Service(
            "shop",
            database=self.url,
            sagas=[self.saga],
            clock=clock if clock is not None else Clock(),
            poll=0.02,
            **self.options,
        )

    def _hook(self, step: Any) -> Any:
        name = step.step if step.direction == "do" else f"undo {step.step}"
        hook = self.hooks.get(name)
        return None if hook is None else hook(step)

    def _saga(self, *, threads: bool) -> Saga[Order]:
        hook = self._hook

        def move(session: Any, quantity: int) -> Any:
            return session.execute(
                sa.update(stock).values(
                    free=stock.c.free - quantity, reserved=stock.c.reserved + quantity
                )
            )

        async def reserve(step: StepContext[Order]) -> Any:
            await move(step.session, step.data.quantity)
            step.publish(Reserved(order_id=step.data.order_id), key="tea")
            answer = hook(step)
            return await answer if asyncio.iscoroutine(answer) else answer

        async def release(step: StepContext[Order]) -> Any:
            await move(step.session, -step.data.quantity)
            return hook(step)

        def reserve_in_thread(step: SyncStepContext[Order]) -> Any:
            move(step.session, step.data.quantity)
            step.publish(Reserved(order_id=step.data.order_id), key="tea")
            return hook(step)

        def release_in_thread(step: SyncStepContext[Order]) -> Any:
            move(step.session, -step.data.quantity)
            return hook(step)

        async def charge(step: StepContext[Order]) -> Any:
            self.provider.act("charge", step.key, step.attempt)
            answer = hook(step)
            if asyncio.iscoroutine(answer):
                answer = await answer
            return answer if answer is not None else {"charge": step.key}

        async def refund(step: StepContext[Order]) -> Any:
            self.provider.act("refund", step.key, step.attempt)
            return hook(step)

        async def book(step: StepContext[Order]) -> Any:
            answer = hook(step)
            return answer if answer is not None else {"booked": True}

        async def unbook(step: StepContext[Order]) -> Any:
            return hook(step)

        quick = Retry(max_attempts=3, initial=0.01, max_delay=0.02)
        return (
            Saga("fulfil", data=Order)
            .step(
                "reserve",
                reserve_in_thread if threads else reserve,
                compensation=release_in_thread if threads else release,
                retry=quick,
                compensation_retry=quick,
                timeout=2,
            )
            .step(
                "charge",
                charge,
                compensation=refund,
                external=True,
                idempotent=True,
                retry=quick,
                compensation_retry=quick,
                timeout=2,
            )
            .step("book", book, compensation=unbook, retry=quick, compensation_retry=quick)
        )

    # --- what tests ask -------------------------------------------------------------------------

    async def start(self, order_id: int = 1, **data: Any) -> UUID:
        async with self.service.unit_of_work() as uow:
            return self.saga.start(
                uow, Order(order_id=order_id, **data), business_key=f"order:{order_id}"
            )

    async def to_the_end(self, service: Service | None = None) -> None:
        """Carried on until nothing is left to do, or the deadline of the test comes first."""
        service = service or self.service
        orchestrator = service.orchestrator()
        tables = service.database.tables
        try:
            async with asyncio.timeout(30):
                while await service.database.look(sagas.unfinished, tables):
                    await orchestrator.run_once()
        finally:
            orchestrator.close()

    async def instance(self, id_: UUID) -> Instance:
        found = await self.service.database.look(sagas.read, self.service.database.tables, id_)
        assert found is not None
        return found

    async def history(self, id_: UUID) -> list[str]:
        table = self.service.database.tables.saga_history

        def read(connection: sa.Connection) -> list[str]:
            rows = connection.execute(
                sa.select(table).where(table.c.saga_id == id_).order_by(table.c.number)
            )
            return [f"{r.transition} {r.step}" if r.step else r.transition for r in rows]

        return await self.service.database.look(read)

    async def shelf(self) -> tuple[int, int]:
        def read(connection: sa.Connection) -> tuple[int, int]:
            row = connection.execute(sa.select(stock.c.free, stock.c.reserved)).one()
            return row.free, row.reserved

        return await self.service.database.look(read)

    async def published(self) -> int:
        table = self.service.database.tables.outbox

        def read(connection: sa.Connection) -> int:
            counted = connection.execute(sa.select(sa.func.count()).select_from(table))
            return counted.scalar_one()

        return await self.service.database.look(read)


def refuse(reason: str) -> Hook:
    """A hook that makes its step answer a business no."""
    return lambda _: Failure(reason)
