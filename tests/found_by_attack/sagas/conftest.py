"""The shop on each database, with `async def` and with plain `def` steps."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fixtures.databases import Database
from tests.saga.shop import Shop


@pytest.fixture(params=["async", "threads"])
async def carried(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[Shop]:
    made = Shop(database.url, threads=request.param == "threads")
    yield made
    await made.service.close()
