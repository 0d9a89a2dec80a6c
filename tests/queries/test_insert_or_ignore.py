"""The row count of an INSERT that may meet its own key: inbox and saga starts rely on it."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.messages import Event
from outbox_saga.queries.dialects import insert_or_ignore
from outbox_saga.service import Service
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database as Given

# MariaDB says by a warning that it ignored a row, which is what it was asked to do.
pytestmark = pytest.mark.filterwarnings("ignore:.*Duplicate entry")


def a_row() -> dict[str, Any]:
    return {
        "consumer": "ledger",
        "message_id": uuid.uuid4(),
        "body_hash": b"x" * 32,
        "handled_at": sa.func.current_timestamp(),
    }


def test_the_row_count_is_one_the_first_time_and_zero_afterwards(database: Given) -> None:
    ours = Database(database.url)
    row = a_row()
    counts = []
    with ours.begin() as connection:
        upgrade(connection)
    for _ in range(3):
        with ours.begin() as connection:
            statement = insert_or_ignore(connection, ours.tables.inbox).values(**row)
            counts.append(connection.execute(statement).rowcount)
    ours.engine.dispose()
    assert counts == [1, 0, 0]


async def test_it_is_so_on_the_async_engine_too(database: Given) -> None:
    ours = Database(database.url)
    row = a_row()

    def insert(connection: sa.Connection) -> int:
        statement = insert_or_ignore(connection, ours.tables.inbox).values(**row)
        return connection.execute(statement).rowcount

    await ours.run(upgrade)
    assert [await ours.run(insert) for _ in range(3)] == [1, 0, 0]
    await ours.close()


class Paid(Event, topic="payments"):
    order_id: int


async def test_a_message_that_comes_three_times_is_handled_once(database: Given) -> None:
    service = Service("shop", database=database.url)
    handled: list[int] = []

    @service.on(Paid, consumer="ledger")
    async def paid(handle: Any) -> None:
        handled.append(handle.message.order_id)

    await service.database.run(upgrade)
    async with service.unit_of_work() as uow:
        uow.publish(Paid(order_id=7), key="order:7")
    with service.database.begin() as connection:
        outbox = service.database.tables.outbox
        row = connection.execute(sa.select(outbox)).one()
    envelope = Envelope.from_row(row.id, row.topic, row.key, row.headers, row.body)
    for _ in range(3):
        await service.deliver(envelope)
    await service.close()
    assert handled == [7]
