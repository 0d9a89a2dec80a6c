"""What would keep a saga from being carried on each time: it ends, or a person is told."""

from __future__ import annotations

from typing import Any, Self

import pytest
from pydantic import (
    BaseModel,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from outbox_saga import Decision, Failure, Saga, SagaEvent, Service, nothing_to_undo
from outbox_saga.saga import carrying, recording
from outbox_saga.saga.operating import SagaOperations
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database


class Order(BaseModel):
    n: int = 0


class Picky(SagaEvent, topic="told"):
    """At its definition nobody can tell what it will not take."""

    @model_validator(mode="after")
    def _no_numbers_of_cards(self) -> Self:
        if "4111" in (self.reason or ""):
            raise ValueError(self.reason)
        return self


class Strange(SagaEvent, topic="told"):
    """What its validator raises is no error of a value."""

    @model_validator(mode="after")
    def _no_numbers_of_cards(self) -> Self:
        if "4111" in (self.reason or ""):
            raise LookupError(self.reason)
        return self


class Unwritable(SagaEvent, topic="told"):
    """It takes everything, and then cannot be written."""

    @model_serializer(mode="wrap")
    def _no_numbers_of_cards(self, usual: SerializerFunctionWrapHandler) -> Any:
        if "4111" in (self.reason or ""):
            raise LookupError(self.reason)
        return usual(self)


async def act(_: Any) -> None: ...


async def refuse(_: Any) -> Any:
    return Failure("a reason with 4111 in it")


def started(database: Database, saga: Saga[Order]) -> Service:
    service = Service("s", database=database.url, sagas=[saga], poll=0.02)
    with service.database.begin() as connection:
        upgrade(connection)
    return service


async def carried_on(service: Service) -> None:
    orchestrator = service.orchestrator()
    while await orchestrator.run_once():
        pass
    orchestrator.close()


@pytest.mark.databases("sqlite")
async def test_an_event_class_that_does_not_take_what_happened_holds_no_saga_up(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    saga = Saga("s", data=Order, events=Picky).step("x", refuse, compensation=nothing_to_undo)
    service = started(database, saga)
    async with service.unit_of_work() as uow:
        id_ = saga.start(uow, Order())
    await carried_on(service)
    seen, _ = await SagaOperations(service.database).show(id_)
    await service.close()
    assert seen.state.status == "compensated"
    assert "its event of COMPENSATED cannot be told: Picky" in caplog.text
    assert "4111" not in caplog.text


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("events", [Picky, Strange, Unwritable])
async def test_whatever_an_event_class_raises_a_saga_that_cannot_be_undone_is_stuck(
    database: Database, caplog: pytest.LogCaptureFixture, events: type[SagaEvent]
) -> None:
    saga = Saga("s", data=Order, events=events).step("x", act, compensation=refuse)
    saga.step("y", refuse, compensation=nothing_to_undo)
    service = started(database, saga)
    async with service.unit_of_work() as uow:
        id_ = saga.start(uow, Order())
    await carried_on(service)
    seen, _ = await SagaOperations(service.database).show(id_)
    await service.close()
    assert seen.state.status == "stuck"
    assert f"its event of FAILED cannot be told: {events.__name__}" in caplog.text
    assert "4111" not in caplog.text


@pytest.mark.databases("sqlite", "postgres18")
async def test_a_saga_that_can_never_be_carried_on_is_stuck_and_can_be_resumed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "TROUBLE_PAUSE", 0.0)
    saga = Saga("s", data=Order).step("x", act, compensation=nothing_to_undo)
    service = started(database, saga)
    async with service.unit_of_work() as uow:
        id_ = saga.start(uow, Order())
    with monkeypatch.context() as broken:

        def decide(*_: Any) -> Any:
            raise OverflowError("4111")

        broken.setattr(recording, "decide", decide)
        await carried_on(service)
    operations = SagaOperations(service.database, service.sagas)
    seen, history = await operations.show(id_)
    assert (seen.state.status, history[-1].entry.transition) == ("stuck", "FAILED")
    assert "could not be carried on: OverflowError" in str(seen.state.reason)
    assert "4111" not in str(seen.state.reason)

    await operations.resume(seen, Decision("ada", "it is mended"))
    await carried_on(service)
    seen, _ = await operations.show(id_)
    await service.close()
    assert seen.state.status == "completed"
