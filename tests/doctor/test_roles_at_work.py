"""Each program does its work as a user with its role, and rights on the service's own tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError

from outbox_saga import (
    Database,
    Failure,
    HandlerContext,
    Saga,
    Service,
    StepContext,
    nothing_to_undo,
)
from outbox_saga.brokers.contract import ACCEPTED, Refused
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.errors import BrokerUnavailable, SagaStartConflict, Unpublishable
from outbox_saga.queries import sagas
from outbox_saga.queries.overview import Count, overview
from outbox_saga_relay.relay import Relay
from tests.doctor.logins import Logins
from tests.fixtures.databases import Database as EmptyDatabase
from tests.relay.house import RETRY, House, Recorder, Said, till, word_of

pytestmark = [pytest.mark.anyio, pytest.mark.databases("postgres18", "postgres15", "mariadb")]

TILL = {"postgresql": "all on till, till_id_seq", "mariadb": "all on till"}


class Order(BaseModel):
    sku: str


async def reserve(step: StepContext[Order]) -> None:
    await step.session.execute(sa.insert(till).values(note=f"reserved {step.data.sku}"))
    step.publish(Said(word=f"reserved {step.data.sku}"), key=step.data.sku)


async def release(step: StepContext[Order]) -> None:
    await step.session.execute(sa.insert(till).values(note=f"released {step.data.sku}"))


async def pay(step: StepContext[Order]) -> Failure[str] | None:
    return Failure("no money") if step.data.sku == "gold" else None


fulfil = (
    Saga("fulfil", data=Order)
    .step("reserve", reserve, compensation=release)
    .step("pay", pay, compensation=nothing_to_undo)
)


def a_service(url: str) -> Service:
    service = Service("shop", database=url, sagas=[fulfil], poll=0.01)

    @service.on(Said, consumer="shop.listener")
    async def heard(handle: HandlerContext[Said]) -> None:
        await handle.session.execute(sa.insert(till).values(note=handle.message.word))
        if handle.message.word == "hello":
            handle.publish(Said(word="heard"), key="k")

    return service


@pytest.fixture
async def house(prepared: EmptyDatabase) -> AsyncIterator[House]:
    """The owner's eyes on the database."""
    made = House(prepared)
    yield made
    await made.close()


@pytest.fixture
async def service_as(logins: Logins, house: House) -> AsyncIterator[Callable[..., Service]]:
    """The service in a process whose user has these roles; the till is its own table."""
    made: list[Service] = []

    def make(*roles: str) -> Service:
        made.append(a_service(logins.url(*roles, also=TILL[logins.dialect])))
        return made[-1]

    yield make
    for service in made:
        await service.close()


async def test_business_code_publishes_and_starts_sagas_as_service(
    house: House, service_as: Callable[..., Service]
) -> None:
    service = service_as("service")

    for quantity in ("first", "again"):
        async with service.unit_of_work() as uow:
            await uow.session.execute(sa.insert(till).values(note=quantity))
            uow.publish(Said(word="with a key"), key="k")
            uow.publish(Said(word="without"))
            fulfil.start(uow, Order(sku="tea"), business_key="order:1")
    with pytest.raises(SagaStartConflict), service.unit_of_work() as uow:
        fulfil.start(uow, Order(sku="coffee"), business_key="order:1")

    assert sorted(house.waiting()) == ["with a key"] * 2 + ["without"] * 2
    assert house.notes() == ["first", "again"]
    assert len(house.rows(house.tables.saga)) == 1
    assert len(house.rows(house.tables.saga_history)) == 1


async def test_business_code_cannot_read_what_it_published_nor_take_it_back(
    house: House, service_as: Callable[..., Service]
) -> None:
    house.say("secret")
    engine = service_as("service").database.engine

    for statement in (
        "select body from outbox_saga_outbox",
        "delete from outbox_saga_outbox where id is null",
        "update outbox_saga_saga set state = 'completed'",
        "delete from outbox_saga_dead_letter",
    ):
        with engine.connect() as connection, pytest.raises(DBAPIError):
            connection.exec_driver_sql(statement)

    assert house.waiting() == ["secret"]


async def test_a_relay_publishes_parks_retries_and_buries_as_relay(
    house: House, logins: Logins
) -> None:
    house.say("goes", "waits", "goes later", key="k")
    house.say("never", key="dead")
    refusals = {
        "waits": Refused(BrokerUnavailable("not now", code="full")),
        "never": Refused(Unpublishable("too large", code="too_large")),
    }
    recorder = Recorder(lambda envelope: refusals.get(word_of(envelope), ACCEPTED))
    database = Database(logins.url("relay"), clock=house.clock)
    relay = Relay(database, recorder, lease=10_000.0, retry=RETRY)

    while await relay.run_once():
        pass
    assert [letter.error_code for letter in house.dead()] == ["too_large"]
    assert len(house.blocked()) == 2
    refusals.clear()
    house.advance(61)
    while await relay.run_once() or house.waiting():
        pass
    assert (await relay.store.renew_lease()).held
    await relay.store.lease.release()
    relay.store.connection.close()
    await database.close()

    assert recorder.words.index("goes") < recorder.words.index("waits")
    assert recorder.words[-1] == "goes later"
    assert house.owners() == {None}


async def test_an_inbox_handles_once_as_consumer(
    house: House, service_as: Callable[..., Service]
) -> None:
    service = service_as("consumer")
    envelope = seal(Said(word="hello"), key="k")
    altered = Envelope(
        envelope.id, envelope.topic, envelope.key, envelope.type, b'{"word":"other"}'
    )

    await service.deliver(envelope)
    await service.deliver(envelope)
    await service.deliver(altered)  # kept as a dead letter of its own, and never handled

    assert [row.error_code for row in house.rows(house.tables.inbox_waiting)] == ["altered"]
    assert house.notes() == ["hello"]
    assert house.waiting() == ["heard"]
    assert len(house.inbox()) == 1


async def test_an_orchestrator_completes_and_compensates_as_orchestrator(
    house: House, service_as: Callable[..., Service]
) -> None:
    starter, service = service_as("service"), service_as("orchestrator")
    with starter.unit_of_work() as uow:
        fulfil.start(uow, Order(sku="tea"), business_key="1")
        fulfil.start(uow, Order(sku="gold"), business_key="2")

    orchestrator = service.orchestrator()
    async with asyncio.timeout(20):
        while await service.database.look(sagas.unfinished, service.database.tables):
            await orchestrator.run_once()
    orchestrator.close()

    states = {row.business_key: row.state for row in house.rows(house.tables.saga)}
    assert states == {"1": "completed", "2": "compensated"}
    assert sorted(house.notes()) == ["released gold", "reserved gold", "reserved tea"]
    assert sorted(house.waiting()) == ["reserved gold", "reserved tea"]


async def test_all_programs_run_in_one_process_whose_user_has_their_roles(
    house: House, service_as: Callable[..., Service]
) -> None:
    service = service_as("service", "consumer", "orchestrator", "relay")
    with service.unit_of_work() as uow:
        uow.publish(Said(word="hello"), key="k")
        fulfil.start(uow, Order(sku="tea"))

    stop = asyncio.Event()
    running = asyncio.create_task(service.run(stop))
    wanted = ["heard", "hello", "reserved tea", "reserved tea"]  # by the saga, and by its event
    await asyncio.to_thread(house.until, lambda: sorted(house.notes()) == wanted, "all notes")
    stop.set()
    await running

    assert house.waiting() == []


async def test_a_program_with_a_role_that_is_not_its_own_changes_nothing(
    house: House, logins: Logins
) -> None:
    house.say("stays", key="k")
    recorder: Any = Recorder()
    database = Database(logins.url("observer"))
    relay = Relay(database, recorder)

    with pytest.raises(DBAPIError):
        await relay.run_once()
    relay.store.connection.close()
    await database.close()

    assert house.waiting() == ["stays"]
    assert recorder.attempts == []


async def test_an_observer_may_look_at_what_waits_and_who_is_at_work(
    house: House, logins: Logins
) -> None:
    house.say("secret", key="k")
    database = Database(logins.url("observer"))
    with database.begin() as connection:
        found = overview(connection, database.tables, database.clock)
    await database.close()

    assert found.outbox == Count(1)
