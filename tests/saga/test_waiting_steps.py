"""Sagas that wait for events and for moments, on real databases."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import Event, Saga, Service, StepContext
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.queries import leases
from outbox_saga.queries.clock import Clock
from outbox_saga.saga import orchestrator as orchestrators
from outbox_saga.saga.operating import SagaOperations
from tests.fixtures.databases import Database
from tests.saga.shop import Shop


class Ordered(Event, topic="orders"):
    order_id: int


class Paid(Event, topic="payments"):
    order_id: int
    amount: int


class Order(BaseModel):
    order_id: int
    paid: int | None = None


class Seller:
    """Places an order, waits for the money, lets it cool for a minute, and sends."""

    def __init__(self, url: str, *, by_business_key: bool = False) -> None:
        self.url = url
        self.log: list[str] = []
        self.sending = asyncio.Event()

        async def act(step: StepContext[Order]) -> None:
            self.log.append(f"{step.direction} {step.step}")
            if (step.step, step.direction) == ("order", "do"):
                step.publish(Ordered(order_id=step.data.order_id))

        def key(paid: Paid) -> str:
            return f"order:{paid.order_id}"

        self.saga = (
            Saga("sell", data=Order)
            .step("order", act, compensation=act)
            .wait_for(
                "paid",
                Paid,
                timeout=3600,
                take=lambda paid: {"paid": paid.amount},
                business_key=key if by_business_key else None,
            )
            .timer("cool", 60)
            .step("send", act, compensation=act)
            .check()
        )
        self.service = self.later(0)

    def later(self, seconds: float) -> Service:
        return Service(
            "seller", database=self.url, sagas=[self.saga], clock=Clock(seconds), poll=0.02
        )

    async def start(self, order_id: int = 1) -> UUID:
        async with self.service.unit_of_work() as uow:
            return self.saga.start(uow, Order(order_id=order_id), business_key=f"order:{order_id}")

    async def carry_on(self, after: float = 0.0) -> None:
        """As far as it goes by itself."""
        service = self.later(after)
        orchestrator = service.orchestrator()
        while await orchestrator.run_once():
            pass
        orchestrator.close()
        await service.close()

    def paid(self, conversation: object, order_id: int = 1) -> Envelope:
        return seal(
            Paid(order_id=order_id, amount=7),
            key=f"order:{order_id}",
            headers=None,
            topic=None,
            source="bank",
            correlation_id=None if conversation is None else str(conversation),
            causation_id=None,
        )


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[Shop]:
    made = Shop(database.url, threads=False)
    yield made
    await made.service.close()


@pytest.fixture
async def seller(shop: Shop) -> AsyncIterator[Seller]:
    made = Seller(shop.url)
    yield made
    await made.service.close()


async def test_a_saga_goes_on_when_its_event_comes_and_its_time_is_over(
    shop: Shop, seller: Seller
) -> None:
    id_ = await seller.start()
    await seller.carry_on()
    assert seller.log == ["do order"]

    for _ in range(2):  # a repeat changes nothing
        await seller.service.deliver(seller.paid(id_))
    await seller.carry_on()
    await seller.carry_on(after=59)
    assert seller.log == ["do order"]

    await seller.carry_on(after=61)

    assert seller.log == ["do order", "do send"]
    ended = await shop.instance(id_)
    assert (ended.state.status, ended.state.data["paid"]) == ("completed", 7)
    assert await shop.history(id_) == [
        "STARTED",
        "STEP_COMPLETED order",
        "RUNNING paid",
        "STEP_COMPLETED paid",
        "IGNORED paid",
        "RUNNING cool",
        "STEP_COMPLETED cool",
        "STEP_COMPLETED send",
        "COMPLETED",
    ]


async def test_an_event_that_comes_before_anybody_carried_the_saga_on_is_kept(
    shop: Shop, seller: Seller
) -> None:
    id_ = await seller.start()
    await seller.service.deliver(seller.paid(id_))
    await seller.carry_on()
    await seller.carry_on(after=61)
    assert (await shop.instance(id_)).state.status == "completed"


async def test_an_event_of_another_conversation_changes_nothing(
    shop: Shop, seller: Seller
) -> None:
    id_ = await seller.start()
    await seller.carry_on()
    for other in ("somebody else's", None):
        assert await seller.service.deliver(seller.paid(other)) == 1
    assert (await shop.history(id_))[-1] == "RUNNING paid"


async def test_an_event_may_name_its_saga_by_the_business_key(shop: Shop) -> None:
    seller = Seller(shop.url, by_business_key=True)
    ids = [await seller.start(number) for number in (1, 2)]
    await seller.carry_on()
    await seller.service.deliver(seller.paid("whatever", order_id=2))
    await seller.service.close()
    paid = [(await shop.instance(id_)).state.data["paid"] for id_ in ids]
    assert paid == [None, 7]


async def test_a_saga_whose_event_does_not_come_is_undone_and_the_event_comes_too_late(
    shop: Shop, seller: Seller
) -> None:
    id_ = await seller.start()
    await seller.carry_on()
    await seller.carry_on(after=3601)
    ended = await shop.instance(id_)
    assert (ended.state.status, ended.state.reason) == (
        "compensated",
        "paid: no Paid came within 3600 s",
    )
    assert seller.log == ["do order", "undo order"]
    await seller.service.deliver(seller.paid(id_))
    assert (await shop.instance(id_)).state.status == "compensated"


async def test_an_event_that_comes_while_a_step_is_carried_out_is_not_lost_and_nor_is_the_step(
    shop: Shop, seller: Seller
) -> None:
    id_ = await seller.start()
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def order(step: StepContext[Order]) -> None:
        seller.log.append("do order")
        inside.set()
        await go_on.wait()

    object.__setattr__(seller.saga.steps["order"], "action", order)
    carried = asyncio.create_task(seller.carry_on())
    await inside.wait()
    if shop.service.database.url.get_backend_name() == "sqlite":
        go_on.set()  # one writer at a time: the event waits for the step
    await seller.service.deliver(seller.paid(id_))
    go_on.set()
    await carried
    await seller.carry_on()
    await seller.carry_on(after=61)
    ended = await shop.instance(id_)
    assert (ended.state.status, ended.state.data["paid"]) == ("completed", 7)
    assert seller.log == ["do order", "do send"]


async def test_an_event_whose_version_is_gone_waits_and_says_so(
    shop: Shop, seller: Seller
) -> None:
    id_ = await seller.start()
    newer = Seller(shop.url)
    newer.saga.__dict__.update(version=2, _shape=None)
    newer.saga.check()
    await newer.service.close()
    newer.service = newer.later(0)
    await newer.service.deliver(newer.paid(id_))
    await newer.service.close()
    waiting = shop.service.database.tables.inbox_waiting

    def read(connection: sa.Connection) -> Any:
        return connection.execute(sa.select(waiting.c.error)).scalar_one()

    assert "deploy the version it was started with" in await shop.service.database.look(read)


# --- an event that says that the awaited one will not come ---------------------------------------


class Declined(Event, topic="payments"):
    order_id: int


def waiting_for_money(log: list[str]) -> Saga[Order]:
    async def act(step: StepContext[Order]) -> None:
        log.append(f"{step.direction} {step.step}")

    return (
        Saga("collect", data=Order)
        .step("order", act, compensation=act)
        .timer("cool", 60)
        .wait_for("paid", Paid, timeout=3600, fails_on=Declined)
    )


@pytest.mark.parametrize("early", [False, True], ids=["in-time", "early"])
async def test_a_step_fails_when_the_event_comes_that_says_no(shop: Shop, *, early: bool) -> None:
    log: list[str] = []
    saga = waiting_for_money(log)

    async def carry_on(after: float) -> None:
        service = Service("seller", database=shop.url, sagas=[saga], clock=Clock(after))
        orchestrator = service.orchestrator()
        while await orchestrator.run_once():
            pass
        orchestrator.close()
        await service.close()

    service = Service("seller", database=shop.url, sagas=[saga])
    async with service.unit_of_work() as uow:
        id_ = saga.start(uow, Order(order_id=1))
    declined = seal(Declined(order_id=1), source="bank", correlation_id=str(id_))
    paid = seal(Paid(order_id=1, amount=7), source="bank", correlation_id=str(id_))

    await carry_on(0.0)
    if not early:
        await carry_on(61.0)
    await service.deliver(declined)
    await service.deliver(paid)  # too late: it was declined before
    await carry_on(62.0)

    instance = await shop.instance(id_)
    assert (instance.state.status, instance.state.reason) == (
        "compensated",
        "paid: Declined came",
    )
    assert log == ["do order", "undo order"]
    history = await shop.history(id_)
    assert history.count("EVENT_STORED paid") == early
    assert history.count("IGNORED paid") == 1
    await service.close()


def test_what_says_no_is_part_of_the_shape() -> None:
    without = Saga("collect", data=Order).wait_for("paid", Paid, timeout=60)
    with_ = Saga("collect", data=Order).wait_for("paid", Paid, timeout=60, fails_on=Declined)

    assert without.shape != with_.shape


async def test_no_timer_is_early_though_it_takes_long_to_read_the_databases_time(
    shop: Shop, seller: Seller, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = 0.0

    def claim(*told: Any, **options: Any) -> Any:
        nonlocal slow
        found = leases.claim(*told, **options)
        slow = 5.0  # seconds until its answer has come
        return found

    def monotonic() -> float:
        return time.monotonic() + slow

    monkeypatch.setattr(
        orchestrators, "leases", SimpleNamespace(**vars(leases) | {"claim": claim})
    )
    monkeypatch.setattr(orchestrators, "time", SimpleNamespace(monotonic=monotonic))
    id_ = await seller.start()
    service = seller.later(0)
    orchestrator = service.orchestrator()
    while await orchestrator.run_once():
        pass
    orchestrator.close()
    step = (await shop.instance(id_)).state.steps["paid"]
    _, history = await SagaOperations(service.database).show(id_)
    (began,) = [each.at for each in history if each.entry.transition == "RUNNING"]
    await service.close()

    assert step.due is not None
    # the row is written a moment after it was decided, and the answer took five seconds
    assert step.due - began > dt.timedelta(seconds=3599)


def test_what_runs_nothing_does_not_make_leases_longer() -> None:
    async def act(step: StepContext[Order]) -> None: ...

    waiting = (
        Saga("waiting", data=Order)
        .step("quick", act, compensation=act, timeout=2)
        .wait_for("paid", Paid, timeout=3600)
        .timer("cool", 3600)
    )
    undoing = Saga("undoing", data=Order).wait_for("paid", Paid, timeout=3600, compensation=act)
    leases_of = [
        Service("seller", database="sqlite://", sagas=sagas).orchestrator(lease=3.0).lease
        for sagas in ([waiting], [waiting, undoing])
    ]
    assert leases_of == [3.0, 31.0]
