"""txoutbox: its relay, round after round, on its PostgreSQL storage."""

from __future__ import annotations

import asyncpg  # pyright: ignore[reportMissingImports] - of the peer's environment
import drained  # pyright: ignore[reportMissingImports] - beside this script
from txoutbox import Relay, RelayConfig  # pyright: ignore[reportMissingImports]
from txoutbox.adapters.postgres import (  # pyright: ignore[reportMissingImports]
    PostgresStorage,
)

TABLE = "txoutbox_rows"
FILL = f"""
INSERT INTO {TABLE} (topic, key, payload, headers)
SELECT topic, key, body, '{{{{}}}}'::jsonb
FROM bench_backlog WHERE number <= {{rows}} ORDER BY number
"""


async def create(order: drained.Order) -> None:
    """Its table."""
    pool = await asyncpg.create_pool(order.dsn, min_size=1, max_size=1)
    await PostgresStorage(pool, table=TABLE).create_schema()
    await pool.close()


async def drain(order: drained.Order) -> None:
    """All rows, as fast as it can."""

    async def publish(_message: object) -> None:
        await order.publish()

    settings = order.settings
    pool = await asyncpg.create_pool(order.dsn, min_size=2, max_size=4)
    storage = PostgresStorage(
        pool,
        table=TABLE,
        strict_ordering=settings.get("strict_ordering", True),
        delete_on_ack=settings.get("delete_on_ack", True),
    )
    config = RelayConfig(
        batch_size=settings["batch_size"],
        concurrency=settings["concurrency"],
        publish_timeout=settings.get("publish_timeout"),
    )
    relay = Relay(storage, publish, config=config)
    while not order.all_seen:
        await relay.run_once()
    await pool.close()


drained.run(table=TABLE, pending="status <> 'done'", create=create, fill=FILL, drain=drain)
