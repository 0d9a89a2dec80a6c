"""The shop on each database, with `async def` and with plain `def` steps; and two services."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from outbox_saga import Saga
from tests.fixtures.databases import Database
from tests.saga.shipping import House, Order, Shipping, ordering
from tests.saga.shop import Shop


@pytest.fixture
def fresh_database(prepared_database: Callable[[str], Database]) -> Callable[[str], Database]:
    """A thousand tests need our tables: they are copied."""
    return prepared_database


@pytest.fixture(params=["async", "threads"])
async def shop(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[Shop]:
    made = Shop(database.url, threads=request.param == "threads")
    yield made
    await made.service.close()


@pytest.fixture
async def house(database: Database, fresh_database: Any) -> Any:
    made: list[House] = []

    def make(saga: Saga[Order] | None = None, **options: Any) -> House:
        shipping = Shipping(fresh_database(database.name).url, **options)
        made.append(House(database.url, shipping, saga or ordering()))
        return made[-1]

    yield make
    for each in made:
        await each.close()
