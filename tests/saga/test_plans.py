"""A plan shows what the action then does, and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from outbox_saga import Breaker, Decision, NotDone, Retry, Saga, Service
from outbox_saga.errors import ActionRefused, SeenChanged
from outbox_saga.ids import new_id
from outbox_saga.queries import leases
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.leases import Known
from outbox_saga.saga.breakers import Breakers
from outbox_saga.saga.happened import Call
from outbox_saga.saga.interventions import Intervention
from outbox_saga.saga.operating import SagaOperations
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database

pytestmark = pytest.mark.databases("sqlite", "postgres18")

ADA = Decision("ada", "the bank is back")
RETRY = Intervention("retry", "charge", "ada")


class Data(BaseModel):
    n: int = 0


async def pay(_: Any) -> None: ...


async def refused(_: Any) -> None:
    raise NotDone("no connection")


def guarded() -> Saga[Data]:
    policy = Retry(max_attempts=2, initial=0.001, max_delay=0.001)
    psp = Breaker("psp", failures=2, seconds=3600)
    return (
        Saga("pay", data=Data)
        .step("pivot", pay, pivot=True)
        .step("charge", refused, external=True, idempotent=True, retry=policy, breaker=psp)
    )


class Bank:
    """A service at several times, with a saga that is stuck behind an open breaker."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.saga = guarded()
        self.open: list[Service] = []

    def at(self, seconds: float) -> Service:
        clock = Clock(seconds)
        self.open.append(
            Service("bank", database=self.url, sagas=[self.saga], clock=clock, broker="local")
        )
        return self.open[-1]

    async def carry_on(self, seconds: float) -> Service:
        service = self.at(seconds)
        orchestrator = service.orchestrator()
        while await orchestrator.run_once():
            pass
        orchestrator.close()
        return service

    async def close(self) -> None:
        for service in self.open:
            await service.close()


@pytest.fixture
async def bank(database: Database) -> Any:
    made = Bank(database.url)
    yield made
    await made.close()


async def stuck(bank: Bank) -> Any:
    service = bank.at(0)
    with service.database.begin() as connection:
        upgrade(connection)
    async with service.unit_of_work() as uow:
        id_ = bank.saga.start(uow, Data())
    for second in (0, 60):
        await bank.carry_on(second)
    seen, _ = await SagaOperations(service.database).show(id_)
    assert seen.state.status == "stuck"
    return seen


async def test_a_plan_heeds_an_open_breaker(bank: Bank) -> None:
    seen = await stuck(bank)
    now = bank.at(70)
    sagas = SagaOperations(now.database, now.sagas)
    _, before = await sagas.show(seen.id)

    plan = await sagas.plan(seen, RETRY)
    assert [entry.transition for entry in plan.entries][-1] == "HELD_BACK"
    assert (plan.todo, plan.leased) == ((), False)

    await sagas.retry(seen, "charge", ADA)
    await bank.carry_on(70)
    _, after = await sagas.show(seen.id)
    done = [happening.entry.transition for happening in after[len(before) :]]
    assert done == [entry.transition for entry in plan.entries]


async def test_a_plan_takes_no_probe(bank: Bank) -> None:
    seen = await stuck(bank)
    then = bank.at(4000)
    plan = await SagaOperations(then.database, then.sagas).plan(seen, RETRY)
    assert plan.todo == (Call("charge", "do", 3),)
    (stand,) = await Breakers(then.database).list()
    assert (stand.state, stand.probing) == ("half-open", False)


async def test_a_plan_of_what_a_process_has_in_hand_lists_only_what_the_action_writes(
    bank: Bank,
) -> None:
    service = bank.at(0)
    with service.database.begin() as connection:
        upgrade(connection)
    async with service.unit_of_work() as uow:
        id_ = bank.saga.start(uow, Data())
    database = service.database
    sagas = SagaOperations(database, service.sagas)
    known = Known(["pay"])
    await database.run(leases.claim, database.tables, database.clock, new_id(), 60.0, known, 1)
    seen, _ = await sagas.show(id_)

    plan = await sagas.plan(seen, Intervention("cancel", None, "ada"))

    assert [entry.transition for entry in plan.entries] == ["COMPENSATION_STARTED"]
    assert (plan.todo, plan.leased) == ((), True)
    with pytest.raises(ActionRefused):
        await sagas.plan(seen, RETRY)
    await sagas.cancel(seen, ADA)
    with pytest.raises(SeenChanged, match="look again"):
        await sagas.plan(seen, Intervention("cancel", None, "ada"))
