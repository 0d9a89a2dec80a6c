"""An event for several instances of one saga, of which one cannot take it in now.

The others hear it at once, and once. The one hears it as soon as its definition is here, and its
events in their order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import Event, Saga, Service, nothing_to_undo
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.errors import SagaUnknown
from outbox_saga.instances import Instance
from outbox_saga.queries import sagas
from outbox_saga.queries.clock import Clock
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database

LATER = 3600.0  # seconds: whatever waits for another attempt is due


class Paid(Event, topic="payments"):
    amount: int


class Order(BaseModel):
    first: int | None = None
    second: int | None = None


async def act(_: Any) -> None: ...


def amount_as(field: str) -> Callable[[Paid], dict[str, int]]:
    return lambda paid: {field: paid.amount}


def one_key(_: Paid) -> str:
    return "order:1"


def version(number: int, *, by_key: bool = False) -> Saga[Order]:
    """It waits for two payments; each version has another shape."""
    saga = Saga("sell", data=Order, version=number)
    for name in ("first", "second"):
        saga.wait_for(
            name,
            Paid,
            timeout=36000,
            take=amount_as(name),
            business_key=one_key if by_key else None,
        )
    return saga.step(f"send{number}", act, compensation=nothing_to_undo)


class Sellers:
    """One service in two releases: `newer` does not have version 1 any more."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sagas = [version(1), version(2)]
        self.both, self.newer = self.release(*self.sagas), self.release(self.sagas[1])
        self.made = [self.both, self.newer]
        with self.both.database.begin() as connection:
            upgrade(connection)

    def release(self, *definitions: Saga[Order], later: float = 0.0) -> Service:
        return Service("seller", database=self.url, sagas=definitions, clock=Clock(later))

    async def start(self) -> tuple[UUID, UUID]:
        """An instance of each version, in one conversation."""
        async with self.both.unit_of_work(correlation_id="c") as uow:
            old, new = (saga.start(uow, Order()) for saga in self.sagas)
        return old, new

    async def carry_on(self) -> None:
        service = self.release(*self.sagas, later=3 * LATER)
        orchestrator = service.orchestrator()
        while await orchestrator.run_once():
            pass
        orchestrator.close()
        await service.close()

    async def tries_again(self, *definitions: Saga[Order], later: float = LATER) -> int:
        service = self.release(*definitions, later=later)
        room = service.waiting_room()
        tried = 0
        while now := await room.run_once():
            tried += now
        await service.close()
        return tried

    async def heard(self, id_: UUID) -> list[int | None]:
        await self.carry_on()
        data = (await self.instance(id_)).state.data
        return [data["first"], data["second"]]

    async def instance(self, id_: UUID) -> Instance:
        found = await self.both.database.look(sagas.read, self.both.database.tables, id_)
        assert found is not None
        return found

    def waiting(self) -> list[Any]:
        table = self.both.database.tables.inbox_waiting
        with self.both.database.begin() as connection:
            return list(connection.execute(sa.select(table).order_by(table.c.position)))


def paid(amount: int) -> Envelope:
    return seal(Paid(amount=amount), key="order:1", source="bank", correlation_id="c")


@pytest.fixture
async def sellers(database: Database) -> AsyncIterator[Sellers]:
    made = Sellers(database.url)
    yield made
    for service in made.made:
        await service.close()


async def test_an_event_is_heard_by_those_who_can_and_waits_for_the_one_who_cannot(
    sellers: Sellers,
) -> None:
    old, new = await sellers.start()
    first = paid(1)
    for _ in range(2):  # a repeat changes nothing
        assert await sellers.newer.deliver(first) == 1
    assert (await sellers.heard(new), await sellers.heard(old)) == ([1, None], [None, None])
    (waits,) = sellers.waiting()
    assert (waits.key, waits.attempts) == (f"saga {old}", 1)
    assert "deploy the version it was started with" in waits.error

    # who has heard it does not take its next attempt for the next event
    revision = (await sellers.instance(new)).revision
    assert await sellers.tries_again(sellers.sagas[1]) == 1
    assert (await sellers.instance(new)).revision == revision

    # those that come after it, in the order of their key, are heard as well, and wait as well
    await sellers.newer.deliver(paid(2))
    assert (await sellers.heard(new), await sellers.heard(old)) == ([1, 2], [None, None])
    assert [row.attempts for row in sellers.waiting()] == [2, 0]

    assert await sellers.tries_again(*sellers.sagas, later=2 * LATER) == 2
    assert (await sellers.heard(old), sellers.waiting()) == ([1, 2], [])


async def test_an_event_stands_behind_an_earlier_one_that_waits_for_its_instance(
    sellers: Sellers,
) -> None:
    old, new = await sellers.start()
    await sellers.newer.deliver(paid(1))
    await sellers.both.deliver(paid(2))
    assert (await sellers.heard(new), await sellers.heard(old)) == ([1, 2], [None, None])
    assert await sellers.tries_again(*sellers.sagas) == 2
    assert (await sellers.heard(old), sellers.waiting()) == ([1, 2], [])


async def test_an_event_that_nobody_can_take_in_waits_as_it_is(sellers: Sellers) -> None:
    old, _ = await sellers.start()
    other = sellers.release(version(3))
    sellers.made.append(other)
    event = paid(1)
    await other.deliver(event)
    (waits,) = sellers.waiting()
    assert (waits.message_id, waits.key) == (event.id, "order:1")
    await sellers.tries_again(*sellers.sagas)
    assert await sellers.heard(old) == [1, None]


@pytest.mark.databases("sqlite", "postgres18")
async def test_an_event_for_an_instance_that_has_ended_is_no_dead_letter_though_nobody_reads_it(
    sellers: Sellers, monkeypatch: pytest.MonkeyPatch
) -> None:
    saga = version(4, by_key=True)
    service = sellers.release(saga)
    sellers.made.append(service)
    async with service.unit_of_work() as uow:
        id_ = saga.start(uow, Order(), business_key="order:1")
    table = service.database.tables.saga

    def read(*_: Any, **__: Any) -> Instance:
        raise SagaUnknown("a row of a later release")

    monkeypatch.setattr(sagas, "read", read)
    await service.deliver(paid(1))
    (waits,) = sellers.waiting()
    with service.database.begin() as connection:
        connection.execute(
            sa.update(table).where(table.c.id == id_).values(state="completed", due_at=None)
        )
    await sellers.tries_again(saga)
    assert (waits.attempts, sellers.waiting()) == (1, [])
