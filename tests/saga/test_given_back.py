"""An instance that waits for somebody else is nobody's, and is due when it was said to be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import Saga, Service, StepContext, nothing_to_undo
from outbox_saga.queries import leases
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.happened import Flight, Surroundings
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database


class Order(BaseModel):
    order_id: int = 7


async def act(_: StepContext[Order]) -> None: ...


async def started(url: str) -> Service:
    saga = Saga("yard", data=Order).step("one", act, compensation=nothing_to_undo, after=())
    saga.step("two", act, compensation=nothing_to_undo, after=())
    saga.timer("cool", 60.0, after=("one", "two"))
    service = Service("yard", database=url, sagas=[saga])
    with service.database.begin() as connection:
        upgrade(connection)
    async with service.unit_of_work() as uow:
        saga.start(uow, Order())
    return service


def row(service: Service) -> Any:
    with service.database.begin() as connection:
        return connection.execute(sa.select(service.database.tables.saga)).one()


async def test_two_branches_that_take_each_other_for_still_running_leave_no_lease_behind(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by proof 3.1: what waited after them stood still until the lease had run out."""
    service = await started(database.url)
    looks = Hand.surroundings

    def surroundings(hand: Hand, reporting: Flight | None) -> Surroundings:
        seen = looks(hand, reporting)
        other: Flight = ("two", "do") if reporting == ("one", "do") else ("one", "do")
        return seen if reporting is None else replace(seen, in_flight=frozenset({other}))

    monkeypatch.setattr(Hand, "surroundings", surroundings)
    orchestrator = service.orchestrator()
    await orchestrator.run_once()
    orchestrator.close()
    left = row(service)
    await service.close()
    assert (left.owner, left.lease_until) == (None, None)
    assert 50 < (left.due_at - left.updated_at).total_seconds() <= 61


async def test_what_has_moved_it_meanwhile_decides_when_it_is_due(database: Database) -> None:
    service = await started(database.url)
    orchestrator = service.orchestrator()
    here, tables = service.database, service.database.tables
    with here.begin() as connection:
        _, (seen,) = leases.claim(
            connection, tables, here.clock, orchestrator.owner, 30.0, orchestrator._known, 1
        )
        moved = sa.update(tables.saga).values(revision=tables.saga.c.revision + 1)
        connection.execute(moved)  # as an answer does, which is due at once
        due = connection.scalar(sa.select(tables.saga.c.due_at))
        leases.release(connection, tables, here.clock, seen, orchestrator.owner, after=900.0)
    orchestrator.close()
    left = row(service)
    await service.close()
    assert (left.owner, left.due_at) == (None, due)
