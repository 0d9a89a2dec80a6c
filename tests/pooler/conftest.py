"""A house whose programs come through a PgBouncer with fewer server connections than clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from outbox_saga.database import Database
from outbox_saga.testing.servers import PgBouncer, Postgres18, ServerUnavailable
from tests.fixtures.services import Services
from tests.relay.fixtures import house, prepared_houses, pytest_generate_tests
from tests.relay.house import House

__all__ = ["house", "prepared_houses", "pytest_generate_tests"]

SHARED = 3  # server connections for each database


@pytest.fixture(
    scope="session", params=[0, 200], ids=["knows_no_statement", "knows_statements_again"]
)
def pooler(request: pytest.FixtureRequest, services: Services) -> Iterator[PgBouncer]:
    """Before the PostgreSQL that all tests share; once for each `max_prepared_statements`."""
    server = services.get(Postgres18)
    try:
        made = PgBouncer.before(server, pool_size=SHARED)
    except ServerUnavailable as reason:
        services.miss(reason)
    if request.param:
        try:
            made = PgBouncer.before(server, pool_size=SHARED, prepared=request.param)
        except ServerUnavailable as reason:  # it is there, as the tests with 0 show; and too old
            pytest.skip(str(reason))
    with made:
        yield made


@pytest.fixture
async def pooled(house: House, pooler: PgBouncer) -> AsyncIterator[Database]:
    """The house's database as its programs reach it; LISTEN goes past the pooler."""
    made = Database(
        pooler.through(house.url) + "?pooler=true", clock=house.clock, listen_url=house.url
    )
    yield made
    await made.close()
