"""A saga that ended long ago, and is started again under its business key.

Were it pruned, it would begin anew under the keys of the first one: a provider would answer with
the charge that was given back, and nobody would have paid.
"""

from __future__ import annotations

from uuid import UUID

import pytest
import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.queries import sagas
from outbox_saga.queries.clock import Clock
from outbox_saga.tables import Tables
from outbox_saga_relay.housekeeping import DAY, Housekeeping
from tests.fixtures.databases import Database as EmptyDatabase
from tests.saga.shop import Shop, refuse

pytestmark = pytest.mark.databases("sqlite")


async def prune(url: str) -> int:
    """Two days later."""
    database = Database(url, clock=Clock(2 * DAY))
    pruned = await Housekeeping(database, saga_window=DAY, pause=0.0).run_once()
    await database.close()
    return pruned.sagas


async def test_a_saga_that_was_undone_long_ago_is_the_same_when_it_is_started_again(
    database: EmptyDatabase,
) -> None:
    shop = Shop(database.url, threads=False)
    shop.hooks["book"] = refuse("sold out")
    first = await shop.start()
    await shop.to_the_end()
    assert (await shop.instance(first)).state.status == "compensated"
    assert await prune(database.url) == 0

    del shop.hooks["book"]
    second = await shop.start()
    await shop.to_the_end()
    assert (second, (await shop.instance(second)).state.status) == (first, "compensated")
    charged, refunded = shop.provider.count("charge"), shop.provider.count("refund")
    await shop.service.close()
    assert (charged, refunded) == (1, 1)


async def test_a_saga_that_is_pruned_while_it_is_started_again_is_no_conflict(
    database: EmptyDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(database.url, threads=False)
    reading, gone = sagas.input_hash, [None]

    def pruned_first(connection: sa.Connection, tables: Tables, id_: UUID) -> bytes | None:
        return gone.pop() if gone else reading(connection, tables, id_)

    await shop.start()
    monkeypatch.setattr(sagas, "input_hash", pruned_first)
    await shop.start()
    await shop.service.close()
    assert not gone
