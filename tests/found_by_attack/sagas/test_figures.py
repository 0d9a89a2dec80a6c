"""A step that failed beside the pivot is told of twice, and has failed once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from click.testing import CliRunner

from outbox_saga import Failure, Retry, Saga, Service, nothing_to_undo
from outbox_saga.queries.figures import figures
from outbox_saga_migrations import upgrade
from outbox_saga_relay.cli import main
from tests.fixtures.databases import Database
from tests.saga.shipping import Order, pay

pytestmark = pytest.mark.databases("sqlite")


async def test_a_step_that_failed_beside_the_pivot_is_counted_once(database: Database) -> None:
    refused = asyncio.Event()

    async def refuse(step: Any) -> Failure[str]:
        asyncio.get_running_loop().call_later(0.1, refused.set)
        return Failure("no")

    async def capture(step: Any) -> None:
        await refused.wait()

    saga = Saga("order", data=Order).step("pay", pay, compensation=nothing_to_undo)
    calls: dict[str, Any] = {"after": "pay", "external": True, "idempotent": True}
    saga.step("beside", refuse, compensation=nothing_to_undo, retry=Retry(max_attempts=3), **calls)
    saga.step("capture", capture, pivot=True, **calls)
    service = Service("shop", database=database.url, sagas=[saga], poll=0.01)
    with service.database.begin() as connection:
        upgrade(connection)
    async with service.unit_of_work() as uow:
        saga.start(uow, Order(order_id=1))
    orchestrator = service.orchestrator()
    while await orchestrator.run_once():
        pass
    orchestrator.close()

    (found,) = await service.database.look(
        figures, service.database.tables, service.database.clock, 3600.0
    )
    assert found.alive == {"stuck": 1}
    assert {step.step: step.failed for step in found.steps} == {
        "beside": 1,
        "capture": 0,
        "pay": 0,
    }
    await service.close()


@pytest.mark.parametrize("hours", ["1e9", "inf"])
def test_a_time_before_all_dates_is_refused_and_not_counted_as_nothing(
    database: Database, hours: str
) -> None:
    result = CliRunner().invoke(
        main, ["saga", "figures", "--database-url", database.url, "--hours", hours]
    )

    assert result.exit_code == 2
    assert "--hours" in result.output
