"""What sagas have come to is counted from their rows: how they ended, how long it took, why."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from click.testing import CliRunner

from outbox_saga import Failure, Retry, Saga, Service, nothing_to_undo
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.figures import SagaFigures, figures
from outbox_saga_migrations import upgrade
from outbox_saga_relay.cli import main
from tests.fixtures.databases import Database
from tests.saga.shipping import Order, pay, unpay

pytestmark = pytest.mark.databases("sqlite", "postgres18", "mariadb")

ONCE = Retry(max_attempts=1)
HOUR = 3600.0


async def sometimes(step: Any) -> Failure[str] | None:
    """What an order's number says."""
    number = step.data.order_id
    if number == 1:
        return Failure("no")
    if number == 2:
        await asyncio.Event().wait()  # until its time is over
    if number == 3:
        raise RuntimeError("broken")
    return None


def sagas() -> list[Saga[Order]]:
    return [
        Saga("order", data=Order)
        .step("pay", pay, compensation=unpay)
        .step("pack", sometimes, compensation=nothing_to_undo, timeout=0.05, retry=ONCE),
        Saga("patient", data=Order, deadline=60.0).timer("wait", HOUR),
    ]


@pytest.fixture
async def service(database: Database) -> Any:
    made = Service("shop", database=database.url, sagas=sagas(), poll=0.01)
    with made.database.begin() as connection:
        upgrade(connection)
    yield made
    await made.close()


async def carry_on(service: Service) -> None:
    orchestrator = service.orchestrator()
    while await orchestrator.run_once():
        pass
    orchestrator.close()


async def told(service: Service, later: float = 0.0, **options: Any) -> dict[str, SagaFigures]:
    clock = Clock(later)
    found = await service.database.look(figures, service.database.tables, clock, HOUR, **options)
    return {one.saga: one for one in found}


async def test_each_end_and_each_reason_is_counted_once(service: Service) -> None:
    order, patient = service.sagas
    async with service.unit_of_work() as uow:
        for number in (0, 0, 0, 1, 2, 3):
            order.start(uow, Order(order_id=number))
        patient.start(uow, Order(order_id=9))
    await carry_on(service)
    service.database.clock = Clock(120.0)  # its deadline has passed
    await carry_on(service)
    service.database.clock = Clock(0.0)
    async with service.unit_of_work() as uow:
        patient.start(uow, Order(order_id=10))

    found = await told(service, later=121.0)

    orders, waits = found["order"], found["patient"]
    assert (orders.started, dict(orders.ended), dict(orders.alive)) == (
        6,
        {"completed": 3, "compensated": 3},
        {},
    )
    assert orders.triggers == {"failure": 1, "timeout": 1, "error": 1}
    assert (orders.success_rate, orders.compensation_rate) == (0.5, 0.5)
    assert orders.timeouts == 1
    assert orders.per_minute == pytest.approx(6 / 60)
    assert orders.durations.count == 6
    assert orders.durations.p95 is not None
    assert orders.durations.average is not None
    assert 0 < orders.durations.average <= orders.durations.p95 < 60
    steps = {step.step: step for step in orders.steps}
    assert (steps["pay"].completed, steps["pay"].compensated, steps["pay"].failed) == (6, 3, 0)
    assert (steps["pack"].completed, steps["pack"].failed, steps["pack"].timeouts) == (3, 3, 1)
    assert steps["pay"].durations.count == 6
    assert (waits.triggers, waits.timeouts, dict(waits.alive)) == (
        {"deadline": 1},
        1,
        {"running": 1},
    )
    assert (await told(service, later=121.0, name="order")).keys() == {"order"}


async def test_what_ended_before_the_stretch_is_left_out(service: Service) -> None:
    order, _ = service.sagas
    async with service.unit_of_work() as uow:
        order.start(uow, Order(order_id=0))
    await carry_on(service)

    assert (await told(service))["order"].ended == {"completed": 1}
    assert await told(service, later=2 * HOUR) == {}


async def test_the_command_shows_the_same(service: Service) -> None:
    order, _ = service.sagas
    async with service.unit_of_work() as uow:
        order.start(uow, Order(order_id=0))
        order.start(uow, Order(order_id=1))
    await carry_on(service)
    url = service.database.url.render_as_string(hide_password=False)

    def run(*more: str) -> str:
        result = CliRunner().invoke(
            main, ["saga", "figures", "--database-url", url, *more], catch_exceptions=False
        )
        assert result.exit_code == 0
        return result.output

    shown = json.loads(await asyncio.to_thread(run, "--json"))
    (one,) = shown["sagas"]
    assert one["ended"] == {"completed": 1, "compensated": 1}
    assert one["triggers"] == {"failure": 1}
    assert {step["step"]: step["completed"] for step in one["steps"]} == {"pay": 2, "pack": 1}
    assert "failure 1" in await asyncio.to_thread(run, "--hours", "1")
    assert "order" not in await asyncio.to_thread(run, "--name", "nothing")
