"""A step of any kind, undone by any kind: in this database, outside it, or by another service."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga import (
    Command,
    Event,
    Failure,
    Retry,
    Saga,
    Success,
    external,
    local,
    nothing_to_undo,
)
from outbox_saga.envelopes import seal
from outbox_saga.errors import DefinitionError
from outbox_saga.ids import idempotency_key
from outbox_saga.saga.orchestrator import Orchestrator
from tests.saga.shipping import (
    CancelShipment,
    House,
    Order,
    ShipOrder,
    metadata,
    ordering,
    parcel,
    pay,
    unpay,
)


class PayBack(Command, topic="shipping"):
    order_id: int


class Delivered(Event, topic="delivered"):
    order_id: int


NEVER = threading.Event()


async def no(step: Any) -> Failure[str]:
    return Failure("not today")


async def forget_parcel(step: Any) -> None:
    """In orders' own database."""
    await step.session.execute(sa.delete(parcel).where(parcel.c.order_id == step.data.order_id))


@pytest.fixture
def books(house: Any) -> Callable[[Saga[Order]], House]:
    """Both services, and a table of parcels in the database of orders, too."""

    def make(saga: Saga[Order]) -> House:
        here: House = house(saga)
        with here.orders.database.begin() as connection:
            metadata.create_all(connection)
            connection.execute(sa.insert(parcel).values(order_id=7, number="ours"))
        return here

    return make


def ours(here: House) -> list[str]:
    with here.orders.database.engine.connect() as connection:
        return list(connection.scalars(sa.select(parcel.c.number)))


# --- undone by a command -------------------------------------------------------------------------


async def test_another_service_undoes_what_was_done_here_once_however_often_it_is_told(
    house: Any,
) -> None:
    saga = (
        Saga("ordering", data=Order)
        .step("pay", pay, compensation=CancelShipment)
        .step("after", no, compensation=nothing_to_undo)
    )
    here = house(saga)
    id_ = await here.start()

    await here.orchestrate()
    (told,) = await here.carry(here.orders)
    await here.shipping.service.deliver(told)
    await here.to_and_fro()

    state = await here.state(id_)
    assert (state.status, state.steps["pay"].phase) == ("compensated", "undone")
    assert here.shipping.facts() == ([], ["undo"])
    assert (await here.history(id_))[3:5] == [
        "COMPENSATION_STARTED after: not today",
        "COMPENSATING_STEP pay its command leaves",
    ]


async def test_who_would_not_undo_it_is_asked_again_and_may(house: Any) -> None:
    saga = (
        Saga("ordering", data=Order)
        .step("pay", pay, compensation=PayBack, compensation_timeout=60.0)
        .step("after", no, compensation=nothing_to_undo)
    )
    here = house(saga)
    keys = []

    @here.shipping.service.handles(PayBack)  # type: ignore[untyped-decorator]
    async def pay_back(handle: Any) -> Any:
        keys.append(handle.key)
        return Failure("the bank is closed") if len(keys) < 3 else Success({})

    id_ = await here.start()
    for later in (0.0, 61.0, 122.0):
        await here.to_and_fro(later)

    assert (await here.state(id_)).status == "compensated"
    # never the key of what is undone: a provider would take it for the same request
    assert set(keys) == {str(idempotency_key(id_, "pay", "undo", 0))}
    assert len(keys) == 3


async def test_an_undoing_that_is_answered_after_a_person_was_waited_for_ends_the_saga(
    house: Any,
) -> None:
    here = house(ordering(after=no, compensation_retry=Retry(max_attempts=1)))
    id_ = await here.start()
    await here.orchestrate()
    await here.carry()
    await here.orchestrate()  # the undoing leaves
    (held,) = await here.carry(here.orders, lose=True)  # and is on its way for very long
    await here.orchestrate(61.0)
    assert (await here.state(id_)).status == "stuck"

    await here.shipping.service.deliver(held)
    await here.to_and_fro()

    assert (await here.state(id_)).status == "compensated"
    assert here.shipping.facts() == ([], ["do", "undo"])


# --- what a command has done ---------------------------------------------------------------------


async def test_what_a_command_did_is_undone_here(books: Any) -> None:
    saga = (
        Saga("ordering", data=Order)
        .step("ship", ShipOrder, compensation=forget_parcel, timeout=60.0)
        .step("after", no, compensation=nothing_to_undo)
    )
    here = books(saga)
    id_ = await here.start()

    await here.to_and_fro()

    assert (await here.state(id_)).status == "compensated"
    assert here.shipping.facts() == ([7], ["do"])
    assert ours(here) == []


async def test_what_a_command_did_is_undone_outside_under_one_key(house: Any) -> None:
    called: list[tuple[str, str]] = []

    async def call_off(step: Any) -> None:
        called.append((step.key, step.data.parcel))
        if len(called) == 1:
            raise ConnectionError

    saga = (
        Saga("ordering", data=Order)
        .step("ship", ShipOrder, compensation=external(call_off), timeout=60.0)
        .step("after", no, compensation=nothing_to_undo)
    )
    here = house(saga)
    id_ = await here.start()

    await here.to_and_fro()
    await here.to_and_fro(later=10.0)

    assert (await here.state(id_)).status == "compensated"
    assert called == [(str(idempotency_key(id_, "ship", "undo", 0)), "P7")] * 2


async def test_what_nobody_answers_needs_a_person_where_no_command_could_undo_it(
    books: Any,
) -> None:
    saga = Saga("ordering", data=Order).step(
        "ship", ShipOrder, compensation=forget_parcel, timeout=60.0, retry=Retry(max_attempts=2)
    )
    here = books(saga)
    id_ = await here.start()
    await here.orchestrate()
    (held,) = await here.carry(here.orders, lose=True)
    await here.orchestrate(61.0)
    await here.carry(here.orders, lose=True)
    await here.orchestrate(122.0)
    state = await here.state(id_)
    assert (state.status, state.steps["ship"].unknown) == ("stuck", True)
    assert ours(here) == ["ours"]

    # the answer comes after all: it was what the person was waited for about
    await here.shipping.service.deliver(held)
    await here.to_and_fro()

    state = await here.state(id_)
    assert (state.status, state.data["parcel"]) == ("completed", "P7")
    assert here.shipping.facts() == ([7], ["do"])


async def test_a_no_that_comes_after_a_person_was_waited_for_undoes_the_saga(books: Any) -> None:
    saga = Saga("ordering", data=Order).step(
        "ship", ShipOrder, compensation=forget_parcel, timeout=60.0, retry=Retry(max_attempts=1)
    )
    here = books(saga)
    here.shipping.hook = lambda _: Failure("nobody ships there")
    id_ = await here.start()
    await here.orchestrate()
    (held,) = await here.carry(here.orders, lose=True)
    await here.orchestrate(61.0)
    assert (await here.state(id_)).status == "stuck"

    await here.shipping.service.deliver(held)
    await here.to_and_fro()

    assert (await here.state(id_)).status == "compensated"
    assert ours(here) == ["ours"]


async def test_a_command_is_sent_again_while_the_saga_is_undone_until_it_is_known_what_came_of_it(
    books: Any,
) -> None:
    saga = (
        Saga("ordering", data=Order)
        .step("ship", ShipOrder, compensation=forget_parcel, timeout=60.0, after=())
        .step("beside", no, compensation=nothing_to_undo, after=())
    )
    here = books(saga)
    id_ = await here.start()
    await here.orchestrate()
    await here.carry(here.orders)
    await here.carry(here.shipping.service, lose=True)  # it was done, and nobody knows
    assert (await here.state(id_)).status == "compensating"

    await here.to_and_fro(later=61.0)

    assert (await here.state(id_)).status == "compensated"
    assert here.shipping.facts() == ([7], ["do"])
    assert ours(here) == []


# --- the other pairs of kinds --------------------------------------------------------------------


async def test_what_was_done_outside_is_undone_here(books: Any) -> None:
    async def charge(step: Any) -> dict[str, bool]:
        return {"paid": True}

    saga = (
        Saga("ordering", data=Order)
        .step("charge", charge, external=True, idempotent=True, compensation=local(forget_parcel))
        .step("after", no, compensation=nothing_to_undo)
    )
    here = books(saga)
    id_ = await here.start()

    await here.to_and_fro()

    assert (await here.state(id_)).status == "compensated"
    assert ours(here) == []


@pytest.mark.parametrize("threads", [False, True], ids=["async", "threads"])
async def test_what_was_done_here_is_undone_outside_by_an_intent_and_a_call(
    house: Any, *, threads: bool
) -> None:
    keys: list[str] = []

    def call_off_in_thread(step: Any) -> None:
        with pytest.raises(Exception, match="is external and runs outside any transaction"):
            _ = step.session
        keys.append(step.key)
        if len(keys) == 1:
            raise ConnectionError

    async def call_off(step: Any) -> None:
        call_off_in_thread(step)

    undo = call_off_in_thread if threads else call_off
    saga = (
        Saga("ordering", data=Order)
        .step("pay", pay, compensation=external(undo))
        .step("after", no, compensation=nothing_to_undo)
    )
    here = house(saga)
    id_ = await here.start()

    await here.to_and_fro()
    await here.to_and_fro(later=10.0)

    assert (await here.state(id_)).status == "compensated"
    assert keys == [str(idempotency_key(id_, "pay", "undo", 0))] * 2
    history = await here.history(id_)
    assert sum(line.startswith("COMPENSATING_STEP pay") for line in history) == 2


@pytest.mark.parametrize("kind", ["local", "external", "command"])
async def test_what_an_event_told_of_is_undone_by_any_kind(books: Any, kind: str) -> None:
    called: list[str] = []

    async def call_off(step: Any) -> None:
        called.append(step.key)

    undo: dict[str, Any] = {
        "local": forget_parcel, "external": external(call_off), "command": CancelShipment,
    }  # fmt: skip
    saga = (
        Saga("ordering", data=Order)
        .wait_for("delivery", Delivered, timeout=600.0, compensation=undo[kind])
        .step("after", no, compensation=nothing_to_undo)
    )
    here = books(saga)
    id_ = await here.start()
    await here.orchestrate()
    event = seal(Delivered(order_id=7), source="shipping", correlation_id=str(id_))
    await here.orders.deliver(event)

    await here.to_and_fro()

    assert (await here.state(id_)).status == "compensated"
    assert ours(here) == ([] if kind == "local" else ["ours"])
    assert len(called) == (kind == "external")
    assert here.shipping.facts()[1] == (["undo"] if kind == "command" else [])


async def hang(step: Any) -> None:
    await asyncio.Event().wait()


def hang_in_thread(step: Any) -> None:
    NEVER.wait(1.0)  # longer than it may; nobody sets it


@pytest.mark.parametrize("undo", [hang, hang_in_thread], ids=["async", "threads"])
@pytest.mark.parametrize("kind", [local, external])
async def test_a_compensation_has_its_own_time(house: Any, kind: Any, undo: Any) -> None:
    saga = (
        Saga("ordering", data=Order)
        .step(
            "pay",
            pay,
            compensation=kind(undo),
            compensation_timeout=0.05,
            compensation_retry=Retry(max_attempts=1),
        )
        .step("after", no, compensation=nothing_to_undo)
    )
    here = house(saga)
    id_ = await here.start()

    await here.to_and_fro()

    state = await here.state(id_)
    assert state.status == "stuck"
    assert "0.05 s" in str(state.reason)


# --- definitions ---------------------------------------------------------------------------------


def test_a_shape_says_how_a_step_is_undone_only_where_its_kind_does_not() -> None:
    def outline(**options: Any) -> list[Any]:
        return Saga("s", data=Order).step("x", pay, **options).check().outline()[0][0]

    outside = {"external": True, "idempotent": True}
    usual = ["x", False, [], False, True]
    assert outline(compensation=unpay) == usual
    assert outline(compensation=local(unpay)) == usual
    assert outline(compensation=external(unpay)) == [*usual, "undone external"]
    assert outline(compensation=CancelShipment) == [
        *usual, None, "CancelShipment", "undone command",
    ]  # fmt: skip
    assert outline(compensation=unpay, **outside) == ["x", True, [], False, True]
    assert outline(compensation=local(unpay), **outside)[-1] == "undone local"
    saga = Saga("s", data=Order).step("ship", ShipOrder, compensation=CancelShipment)
    assert saga.outline()[0][0][5:] == ["ShipOrder", "CancelShipment"]


async def test_a_lease_is_as_long_as_a_compensation_may_take(house: Any) -> None:
    saga = Saga("s", data=Order).step("x", pay, compensation=unpay, compensation_timeout=90.0)
    orchestrator = Orchestrator(house().orders.database, [saga])
    assert orchestrator.lease == 91.0
    orchestrator.close()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"compensation": unpay, "compensation_timeout": 0}, "compensation_timeout is 0"),
        ({"compensation": "undo"}, "must be a function, a Command class or nothing_to_undo"),
        ({"compensation": local("undo")}, "must be a function, a Command class"),  # type: ignore[arg-type]
        ({"compensation": unpay, "breaker": "psp"}, "a breaker guards calls outside"),
        (
            {"compensation": nothing_to_undo, "compensation_timeout": 5.0},
            "are for a compensation, and this step has none",
        ),
        ({"pivot": True, "compensation_retry": Retry(max_attempts=2)}, "this step has none"),
    ],
)
def test_a_compensation_that_cannot_work_is_refused(options: Any, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        Saga("s", data=Order).step("x", pay, **options)


def test_a_wait_that_has_nothing_to_undo_is_not_told_how_to_undo_it() -> None:
    with pytest.raises(DefinitionError, match="this step has none"):
        Saga("s", data=Order).wait_for("paid", Delivered, timeout=1.0, compensation_timeout=1.0)


def test_a_breaker_may_guard_the_undoing_alone() -> None:
    saga = Saga("s", data=Order).step("x", pay, compensation=external(unpay), breaker="psp")
    assert list(saga.breakers) == ["psp"]
