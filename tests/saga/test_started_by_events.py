"""A saga that an event starts, others move on, and one ends: in their own transactions, once."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import Event, HandlerContext, Saga, Service, SyncHandlerContext, nothing_to_undo
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.saga.operating import SagaOperations
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database

pytestmark = pytest.mark.databases("sqlite", "postgres18", "mariadb")


class OrderPlaced(Event, topic="orders"):
    order_id: int


class Paid(Event, topic="payments"):
    cents: int


class PaymentFailed(Event, topic="payments"):
    reason: str


class Data(BaseModel):
    order_id: int
    cents: int = 0


def saga() -> Saga[Data]:
    return Saga("fulfil", data=Data).wait_for(
        "payment",
        Paid,
        timeout=3600.0,
        take=lambda paid: {"cents": paid.cents},
        fails_on=PaymentFailed,
        compensation=nothing_to_undo,
    )


class Shop:
    """A service whose sagas are started by events."""

    def __init__(self, url: str, *, threads: bool) -> None:
        self.saga = saga()
        self.service = Service("shop", database=url, sagas=[self.saga])
        self.fails = False
        if threads:

            @self.service.on(OrderPlaced)
            def begin(handle: SyncHandlerContext[OrderPlaced]) -> None:
                self._begin(handle)

        else:

            @self.service.on(OrderPlaced)
            async def begin_async(handle: HandlerContext[OrderPlaced]) -> None:
                self._begin(handle)

        with self.service.database.begin() as connection:
            upgrade(connection)

    def _begin(self, handle: Any) -> None:
        order_id = handle.message.order_id
        self.saga.start(handle.uow, Data(order_id=order_id), business_key=f"order:{order_id}")
        if self.fails:
            raise OSError

    async def carry_on(self) -> None:
        orchestrator = self.service.orchestrator()
        while await orchestrator.run_once():
            pass
        orchestrator.close()

    async def sagas(self) -> list[tuple[UUID, str, str, int]]:
        found = await SagaOperations(self.service.database).list()
        return [
            (each.id, each.correlation_id, each.state.status, each.state.data["cents"])
            for each in found
        ]


@pytest.fixture(params=["async", "threads"])
async def shop(request: pytest.FixtureRequest, database: Database) -> Any:
    made = Shop(database.url, threads=request.param == "threads")
    yield made
    await made.service.close()


def placed(order_id: int = 7) -> Envelope:
    return seal(OrderPlaced(order_id=order_id), source="web", correlation_id=f"talk-{order_id}")


@pytest.mark.parametrize(
    ("next_", "ends"),
    [(Paid(cents=42), ("completed", 42)), (PaymentFailed(reason="no"), ("compensated", 0))],
    ids=["moves on", "fails"],
)
async def test_events_start_a_saga_once_and_those_of_its_conversation_move_it(
    shop: Shop, next_: Event, ends: tuple[str, int]
) -> None:
    start = placed()
    for envelope in (start, start, placed(8)):  # brokers deliver twice
        await shop.service.deliver(envelope)
    # another message that tells of the same order: the business key is one instance
    again = seal(OrderPlaced(order_id=7), source="web", correlation_id="talk-7")
    await shop.service.deliver(again)
    await shop.carry_on()

    event = seal(next_, source="bank", correlation_id="talk-7")
    await shop.service.deliver(event)
    await shop.service.deliver(event)
    await shop.carry_on()

    states = {correlation: (state, cents) for _, correlation, state, cents in await shop.sagas()}
    assert states == {"talk-7": ends, "talk-8": ("running", 0)}


async def test_a_handler_that_fails_after_the_start_has_started_nothing(shop: Shop) -> None:
    shop.fails = True
    await shop.service.deliver(placed())

    assert await shop.sagas() == []
    tables = shop.service.database.tables
    with shop.service.database.begin() as connection:
        count = sa.select(sa.func.count()).select_from(tables.inbox_waiting)
        assert connection.execute(count).scalar_one() == 1, "it waits for its next attempt"
