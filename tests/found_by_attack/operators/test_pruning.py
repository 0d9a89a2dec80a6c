"""Housekeeping of sagas and of notes of commands."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from outbox_saga.ids import new_id
from outbox_saga_relay.housekeeping import DAY, Housekeeping
from tests.relay.house import House

BATCH = 22_000  # rows; --batch takes 1 to 100,000


def notes(house: House, count: int) -> None:
    """So many of commands, of long ago."""
    values = [
        {
            "saga_id": new_id(),
            "step": "ship",
            "generation": 0,
            "state": "done",
            "answer": "{}",
        }
        for _ in range(count)
    ]
    with house.eyes.begin() as connection:
        statement = sa.insert(house.tables.barrier).values(updated_at=house.clock.now(-91 * DAY))
        connection.execute(statement, values)


@pytest.mark.databases("postgres18")
async def test_notes_of_commands_go_by_any_batch_that_housekeeping_takes(house: House) -> None:
    """Each is three parameters of one statement; the protocol has room for 65,535."""
    notes(house, BATCH)
    keeping = Housekeeping(
        house.another_database(), pause=0.0, barrier_window=90 * DAY, batch=BATCH
    )
    assert (await keeping.run_once()).barriers == BATCH
