"""Steps that another service carries out, and what may go wrong between both."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga import Command, Failure, Retry, Saga, nothing_to_undo
from outbox_saga.commanding import Answer, Asked
from outbox_saga.envelopes import seal
from outbox_saga.errors import DefinitionError
from tests.saga.shipping import (
    REFUSED,
    CancelShipment,
    Order,
    ShipOrder,
    ordering,
    pay,
    unpay,
)


async def test_a_command_is_carried_out_and_its_answer_goes_into_the_data(house: Any) -> None:
    here = house()
    id_ = await here.start()

    await here.to_and_fro()

    state = await here.state(id_)
    assert (state.status, state.data["parcel"]) == ("completed", "P7")
    assert here.shipping.facts() == ([7], ["do"])
    assert await here.history(id_) == [
        "STARTED ordering",
        "STEP_COMPLETED pay",
        "RUNNING ship its command leaves",
        "STEP_COMPLETED ship",
        "COMPLETED",
    ]
    command, *_ = here.carried
    assert (command.type, command.kind, command.key) == ("ShipOrder", "command", str(id_))
    assert command.correlation_id == str(id_)


async def test_a_participant_that_says_no_undoes_the_saga_and_is_not_asked_to_undo(
    house: Any,
) -> None:
    here = house()
    here.shipping.hook = lambda _: REFUSED
    id_ = await here.start()

    await here.to_and_fro()

    state = await here.state(id_)
    assert (state.status, state.reason) == ("compensated", "ship: nobody ships there")
    assert here.shipping.facts() == ([], [])
    assert [each.type for each in here.carried if each.kind == "command"] == ["ShipOrder"]


async def test_what_was_commanded_is_undone_when_a_later_step_says_no(house: Any) -> None:
    async def no(step: Any) -> Failure[str]:
        return Failure("not today")

    here = house(ordering(after=no))
    id_ = await here.start()

    await here.to_and_fro()

    assert (await here.state(id_)).status == "compensated"
    assert here.shipping.facts() == ([], ["do", "undo"])
    undo = next(each for each in here.carried if each.type == "CancelShipment")
    assert b'"parcel":"P7"' in undo.body  # what the answer brought


async def test_a_command_that_is_lost_leaves_again_and_is_carried_out_once(house: Any) -> None:
    here = house()
    id_ = await here.start()
    await here.orchestrate()
    assert [each.type for each in await here.carry(lose=True)] == ["ShipOrder"]

    await here.to_and_fro(later=61.0)

    assert (await here.state(id_)).status == "completed"
    assert here.shipping.facts() == ([7], ["do"])


async def test_an_answer_that_is_lost_is_given_again(house: Any) -> None:
    here = house()
    id_ = await here.start()
    await here.orchestrate()
    await here.carry(here.orders)
    await here.carry(here.shipping.service, lose=True)
    assert here.shipping.facts() == ([7], ["do"])

    await here.to_and_fro(later=61.0)

    state = await here.state(id_)
    assert (state.status, state.data["parcel"]) == ("completed", "P7")
    assert here.shipping.facts() == ([7], ["do"])


async def test_a_command_that_nobody_answers_is_undone_whatever_came_of_it(house: Any) -> None:
    here = house()
    id_ = await here.start()
    await here.orchestrate()
    await here.carry(here.orders)
    await here.carry(here.shipping.service, lose=True)  # it was done, and nobody knows
    await here.orchestrate(later=61.0)
    await here.carry(here.orders, lose=True)

    await here.to_and_fro(later=130.0)

    state = await here.state(id_)
    assert state.status == "compensated"
    assert state.reason == "ship: no answer within 60 s to any of 2 commands"
    assert here.shipping.facts() == ([], ["do", "undo"])


async def test_a_command_that_comes_after_its_undoing_is_refused(house: Any) -> None:
    here = house()
    id_ = await here.start()
    await here.orchestrate()
    (held,) = await here.carry(here.orders, lose=True)  # it is on its way for very long
    await here.orchestrate(later=61.0)
    await here.carry(here.orders, lose=True)
    await here.to_and_fro(later=130.0)
    assert (await here.state(id_)).status == "compensated"

    await here.shipping.service.deliver(held)
    await here.carry()

    assert here.shipping.facts() == ([], [])
    assert (await here.state(id_)).status == "compensated"


async def test_what_a_saga_undoes_while_it_waits_for_an_answer_waits_for_it_first(
    house: Any,
) -> None:
    async def no(step: Any) -> Failure[str]:
        return Failure("not today")

    saga = (
        Saga("ordering", data=Order)
        .step("ship", ShipOrder, compensation=CancelShipment, timeout=60.0, after=())
        .step("beside", no, compensation=nothing_to_undo, after=())
    )
    here = house(saga)
    id_ = await here.start()

    await here.orchestrate()
    assert (await here.state(id_)).status == "compensating"
    await here.to_and_fro()

    assert (await here.state(id_)).status == "compensated"
    assert here.shipping.facts() == ([], ["do", "undo"])


async def test_an_undoing_that_is_never_answered_ends_stuck_with_the_reason(house: Any) -> None:
    async def no(step: Any) -> Failure[str]:
        return Failure("not today")

    here = house(ordering(after=no, compensation_retry=Retry(max_attempts=2)))
    id_ = await here.start()
    await here.orchestrate()
    await here.carry()
    await here.orchestrate()  # the undoing leaves
    for later in (61.0, 122.0, 183.0):
        await here.carry(lose=True)
        await here.orchestrate(later)

    state = await here.state(id_)
    assert state.status == "stuck"
    assert state.steps["ship"].error == "outcome unknown after 2 attempts: no answer came"


async def test_an_answer_that_comes_twice_late_or_for_something_else_changes_only_the_history(
    house: Any,
) -> None:
    async def waits(step: Any) -> None:
        raise OSError

    here = house(ordering(after=waits))
    id_ = await here.start()
    await here.orchestrate()
    await here.carry()
    before = await here.state(id_)

    for step, generation in (("ship", 0), ("ship", 5), ("nothing", 0), ("pay", 0)):
        asked = Asked(id_, step, "do", generation, 1, "orders.replies")
        answer = Answer.to(asked, done=False, reason="no")
        await here.orders.deliver(seal(answer, topic="orders.replies", source="shipping"))

    after = await here.state(id_)
    assert (after.status, after.data, after.steps) == (before.status, before.data, before.steps)
    assert sum(line.startswith("IGNORED") for line in await here.history(id_)) == 4


async def test_an_answer_for_a_saga_that_is_not_here_waits_for_somebody_to_look(
    house: Any,
) -> None:
    here = house()
    asked = Asked(await here.start(), "ship", "do", 0, 1, "orders.replies")
    stranger = Asked(asked.saga.__class__(int=5), "ship", "do", 0, 1, "orders.replies")

    answer = Answer.to(stranger, done=True)
    await here.orders.deliver(seal(answer, topic="orders.replies", source="shipping"))

    waiting = here.orders.database.tables.inbox_waiting
    with here.orders.database.engine.connect() as connection:
        (error,) = connection.scalars(sa.select(waiting.c.error))
    assert f"an answer came for saga {stranger.saga}, which is not here" in error


async def test_an_answer_that_does_not_fit_the_data_undoes_what_was_done(house: Any) -> None:
    here = house()
    here.shipping.hook = lambda _: {"colour": "blue"}
    id_ = await here.start()

    await here.to_and_fro()

    state = await here.state(id_)
    assert (state.status, state.reason) == (
        "compensated",
        "ship: its answer does not fit the saga's data ($.colour)",
    )
    assert here.shipping.facts() == ([], ["do", "undo"])


async def test_a_command_that_is_too_large_to_travel_is_a_failed_step(house: Any) -> None:
    here = house()
    async with here.orders.unit_of_work() as uow:
        id_ = here.saga.start(uow, Order(order_id=7, address="x" * 300_000))

    await here.to_and_fro()

    state = await here.state(id_)
    assert (state.status, state.reason) == (
        "compensated",
        "ship: its command does not take the saga's data (MessageRefused)",
    )


async def test_a_pivot_that_nobody_answers_needs_a_person(house: Any) -> None:
    saga = (
        Saga("ordering", data=Order)
        .step("pay", pay, compensation=unpay)
        .step("ship", ShipOrder, pivot=True, timeout=60.0, retry=Retry(max_attempts=2))
    )
    here = house(saga)
    id_ = await here.start()
    for later in (0.0, 61.0, 122.0):
        await here.orchestrate(later)
        await here.carry(lose=True)

    state = await here.state(id_)
    assert state.status == "stuck"
    assert "no answer within 60 s to any of 2 commands" in str(state.reason)


# --- definitions ---------------------------------------------------------------------------------


class Homeless(Command):
    order_id: int


class Needy(Command, topic="x"):
    colour: str


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"compensation": CancelShipment, "external": True, "idempotent": True}, "external= is"),
        ({"compensation": CancelShipment, "timeout": 0.0}, "timeout is 0.0"),
    ],
)
def test_a_command_step_that_cannot_work_is_refused(options: Any, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        Saga("s", data=Order).step("ship", ShipOrder, **options)


def test_a_command_without_a_topic_or_with_fields_that_the_data_has_not_is_refused() -> None:
    with pytest.raises(DefinitionError, match="Homeless has no topic, so it goes nowhere"):
        Saga("s", data=Order).step("ship", Homeless, compensation=nothing_to_undo)
    with pytest.raises(DefinitionError, match="Needy needs 'colour', which is no field"):
        Saga("s", data=Order).step("ship", Needy, compensation=nothing_to_undo)
    with pytest.raises(DefinitionError, match="Needy needs 'colour', which is no field"):
        Saga("s", data=Order).step("pay", pay, compensation=Needy)


def test_a_command_may_take_its_time_and_leases_stay_as_short_as_they_were() -> None:
    saga = Saga("s", data=Order).step(
        "ship", ShipOrder, compensation=CancelShipment, timeout=7200.0
    )
    step = saga.check().steps["ship"]
    assert (step.seconds, step.timeout) == (7200.0, 30.0)
