"""Deadlines, and steps that are left out, on real databases."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from outbox_saga import Saga, Service, StepContext, SyncStepContext
from outbox_saga.queries.clock import Clock
from tests.saga.shop import Shop


class Trip(BaseModel):
    kilometres: int
    hotel: bool | None = None


class Agency:
    """Books trips; keeps a log of what it did."""

    def __init__(self, shop: Shop, *, threads: bool, **options: Any) -> None:
        self.shop = shop
        self.log: list[str] = []

        async def act(step: StepContext[Trip]) -> dict[str, Any] | None:
            return self._note(step)

        def act_in_thread(step: SyncStepContext[Trip]) -> dict[str, Any] | None:
            return self._note(step)

        action: Any = act_in_thread if threads else act
        self.saga = (
            Saga("trip", data=Trip, **options)
            .step("train", action, compensation=action)
            .step("hotel", action, compensation=action, when=lambda trip: trip.kilometres > 300)
            .step("tell", action, compensation=action)
            .check()
        )

    def _note(self, step: Any) -> dict[str, Any] | None:
        self.log.append(f"{step.direction} {step.step}")
        return {"hotel": True} if (step.step, step.direction) == ("hotel", "do") else None

    def service(self, later: float = 0.0) -> Service:
        return Service("agency", database=self.shop.url, sagas=[self.saga], clock=Clock(later))

    async def start(self, kilometres: int) -> UUID:
        async with self.shop.service.unit_of_work() as uow:
            return self.saga.start(uow, {"kilometres": kilometres})

    async def to_the_end(self, later: float = 0.0) -> None:
        service = self.service(later)
        await self.shop.to_the_end(service)
        await service.close()


@pytest.fixture(params=[False, True], ids=["async", "threads"])
def threads(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
async def shop(database: Any) -> Any:
    made = Shop(database.url, threads=False)
    yield made
    await made.service.close()


@pytest.mark.parametrize(
    ("kilometres", "steps"),
    [(500, ["do train", "do hotel", "do tell"]), (100, ["do train", "do tell"])],
)
async def test_a_step_is_carried_out_or_left_out_as_the_data_says_and_the_history_tells(
    shop: Shop, threads: bool, kilometres: int, steps: list[str]
) -> None:
    agency = Agency(shop, threads=threads)
    id_ = await agency.start(kilometres)

    await agency.to_the_end()

    assert agency.log == steps
    ended = await shop.instance(id_)
    assert ended.state.status == "completed"
    assert ended.state.data["hotel"] is (True if kilometres > 300 else None)
    assert ("STEP_SKIPPED hotel" in await shop.history(id_)) == (kilometres <= 300)


async def test_a_saga_that_nobody_carried_on_before_its_deadline_does_nothing_and_says_why(
    shop: Shop, threads: bool
) -> None:
    agency = Agency(shop, threads=threads, deadline=60)
    id_ = await agency.start(500)

    await agency.to_the_end(later=61)

    assert agency.log == []
    ended = await shop.instance(id_)
    assert (ended.state.status, ended.state.reason) == (
        "compensated",
        "its deadline of 60 s has passed",
    )


async def test_a_deadline_that_has_not_passed_changes_nothing(shop: Shop, threads: bool) -> None:
    agency = Agency(shop, threads=threads, deadline=60)
    id_ = await agency.start(500)

    await agency.to_the_end(later=30)

    assert (await shop.instance(id_)).state.status == "completed"
