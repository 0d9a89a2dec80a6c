"""What a saga tells others of itself leaves with the transition it tells of."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga import Failure, Retry, Saga, SagaEvent, Service, nothing_to_undo
from outbox_saga.errors import DefinitionError
from outbox_saga.queries.clock import Clock
from outbox_saga.saga.parking import OVERDUE
from tests.fixtures.databases import Database as Given
from tests.saga.shipping import CancelShipment, House, Order, ShipOrder, Shipping, pay, unpay


class Sagas(SagaEvent, topic="sagas"):
    pass


async def no(step: Any) -> Failure[str]:
    return Failure("not today")


@pytest.fixture
async def house(database: Given, fresh_database: Any) -> Any:
    made: list[House] = []

    def make(saga: Saga[Order]) -> House:
        shipping = Shipping(fresh_database(database.name).url)
        made.append(House(database.url, shipping, saga))
        return made[-1]

    yield make
    for each in made:
        await each.close()


def told(house: House) -> list[tuple[str, str | None, str]]:
    """What has left, in its order."""
    events = [Sagas.model_validate_json(e.body) for e in house.carried if e.topic == "sagas"]
    assert len({e.key for e in house.carried if e.topic == "sagas"}) <= 1
    return [(event.transition, event.step, event.state) for event in events]


def ordering(**options: Any) -> Saga[Order]:
    return (
        Saga("ordering", data=Order, events=Sagas, **options)
        .step("pay", pay, compensation=unpay)
        .step("ship", ShipOrder, compensation=CancelShipment, timeout=60.0)
    )


async def test_a_life_is_told_from_its_start_to_its_end(house: Any) -> None:
    here = house(ordering())
    id_ = await here.start()

    await here.to_and_fro()

    assert told(here) == [("STARTED", None, "running"), ("COMPLETED", None, "completed")]
    event = next(e for e in here.carried if e.topic == "sagas")
    assert (event.key, event.correlation_id, event.source) == (str(id_), str(id_), "orders")


async def test_with_its_steps_everything_that_happens_is_told_once_and_in_order(
    house: Any,
) -> None:
    here = house(ordering(step_events=True).step("after", no, compensation=nothing_to_undo))
    id_ = await here.start()

    await here.to_and_fro()

    assert [(t, s) for t, s, _ in told(here)] == [
        ("STARTED", None),
        ("STEP_COMPLETED", "pay"),
        ("RUNNING", "ship"),
        ("STEP_COMPLETED", "ship"),
        ("STEP_FAILED", "after"),
        ("COMPENSATION_STARTED", None),
        ("COMPENSATING_STEP", "ship"),
        ("STEP_COMPENSATED", "ship"),
        ("STEP_COMPENSATED", "pay"),
        ("COMPENSATED", None),
    ]
    lines = await here.history(id_)
    assert len(told(here)) == len(lines)


async def test_a_stuck_saga_is_told_with_its_reason(house: Any) -> None:
    saga = (
        Saga("ordering", data=Order, events=Sagas)
        .step("pay", pay, compensation=nothing_to_undo, pivot=True)
        .step("ship", ShipOrder, timeout=60.0, retry=Retry(max_attempts=2))
    )
    here = house(saga)
    await here.start()
    for later in (0.0, 61.0, 122.0):
        await here.orchestrate(later)
        await here.carry(lose=True)

    assert told(here)[-1] == ("FAILED", None, "stuck")
    last = next(e for e in reversed(here.carried) if e.topic == "sagas")
    assert b"no answer within 60 s to any of 2 commands" in last.body


async def test_a_saga_that_was_started_before_tells_nothing_again(house: Any) -> None:
    here = house(ordering())
    for _ in range(2):
        async with here.orders.unit_of_work() as uow:
            here.saga.start(uow, Order(order_id=7), business_key="order:7")

    await here.to_and_fro()

    assert [t for t, _, _ in told(here)] == ["STARTED", "COMPLETED"]


async def test_one_that_was_parked_before_anything_else_is_told_to_have_started(
    house: Any,
) -> None:
    here = house(ordering())
    await here.start()
    for later in (OVERDUE + 1, 2 * OVERDUE + 2):  # nobody knows it, twice
        empty = Service("orders", database=here.url, clock=Clock(later))
        orchestrator = empty.orchestrator()
        await orchestrator.run_once()
        orchestrator.close()
        await empty.close()

    await here.orchestrate(later=3 * OVERDUE)
    await here.to_and_fro(later=3 * OVERDUE)

    assert [t for t, _, _ in told(here)] == ["STARTED", "UNPARKED", "COMPLETED"]


async def test_without_events_nothing_is_told(house: Any) -> None:
    here = house(Saga("ordering", data=Order).step("pay", pay, compensation=unpay))
    await here.start()
    await here.orchestrate()

    outbox = here.orders.database.tables.outbox
    with here.orders.database.engine.connect() as connection:
        assert connection.execute(sa.select(outbox)).all() == []


def test_events_that_would_go_nowhere_are_refused() -> None:
    class Homeless(SagaEvent):
        pass

    with pytest.raises(DefinitionError, match="Homeless has no topic, so it goes nowhere"):
        Saga("s", data=Order, events=Homeless)

    class Demanding(SagaEvent, topic="sagas"):
        colour: str

    with pytest.raises(DefinitionError, match="Demanding needs 'colour', which nobody gives it"):
        Saga("s", data=Order, events=Demanding)
    with pytest.raises(DefinitionError, match="step_events without events"):
        Saga("s", data=Order, step_events=True)
