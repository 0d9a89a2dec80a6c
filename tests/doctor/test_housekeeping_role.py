"""Housekeeping with the role of a relay."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from outbox_saga import Database
from outbox_saga_relay.housekeeping import DAY, Housekeeping
from tests.doctor.logins import Logins
from tests.fixtures.databases import Database as EmptyDatabase
from tests.operating.test_housekeeping import barrier, handle, process, saga
from tests.relay.house import House

pytestmark = pytest.mark.databases("postgres18", "postgres15", "mariadb")


@pytest.fixture
async def house(prepared: EmptyDatabase) -> AsyncIterator[House]:
    made = House(prepared)
    yield made
    await made.close()


async def test_a_relay_keeps_house_with_every_window_as_relay(
    house: House, logins: Logins
) -> None:
    for state in ("completed", "compensated", "stuck"):
        saga(house, state, 31 * DAY)
    barrier(house, 91 * DAY)
    handle(house, 2, 40 * DAY)
    process(house, -8 * DAY)
    database = Database(logins.url("relay"))
    keeping = Housekeeping(
        database,
        pause=0.0,
        saga_window=30 * DAY,
        barrier_window=90 * DAY,
        batch=1,
    )
    plan = keeping.plan()
    pruned = await keeping.run_once()
    await database.close()
    assert (plan.sagas, plan.barriers, plan.inbox) == (2, 1, 2)
    assert (pruned.sagas, pruned.barriers, pruned.inbox) == (2, 1, 2)
    assert len(house.rows(house.tables.saga_history)) == 2
