"""pactix: its runner, pass after pass, in as many workers as it is told."""

from __future__ import annotations

import asyncio

import drained  # pyright: ignore[reportMissingImports] - beside this script
from pactix.config import PactixConfig  # pyright: ignore[reportMissingImports]
from pactix.db.tables import metadata, outbox_message  # pyright: ignore[reportMissingImports]
from pactix.outbox import (  # pyright: ignore[reportMissingImports]
    OutboxRunner,
    OutboxStore,
    PublisherRegistry,
    PublishOutcome,
    outbox_publisher,
)
from sqlalchemy.ext.asyncio import create_async_engine

TABLE: str = outbox_message.name
FILL = f"""
INSERT INTO {TABLE} (id, message_id, event_type, message_key, ordering_key, payload, headers,
                     status, attempts, max_attempts, available_at, created_at, updated_at)
SELECT id, id::text, 'orders', key, key, convert_from(body, 'UTF8')::jsonb, '{{{{}}}}'::jsonb,
       'pending', 0, 10, now() - interval '1 minute',
       now() - interval '1 hour' + number * interval '1 microsecond', now()
FROM bench_backlog WHERE number <= {{rows}} ORDER BY number
"""


async def create(order: drained.Order) -> None:
    """Its table."""
    engine = create_async_engine(order.sqlalchemy_url)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await engine.dispose()


async def drain(order: drained.Order) -> None:
    """All rows, as fast as it can."""
    workers = order.settings.get("workers", 1)
    engine = create_async_engine(order.sqlalchemy_url, pool_size=workers, max_overflow=0)

    async def publish(_record: object) -> object:
        await order.publish()
        return PublishOutcome.published()

    registry = PublisherRegistry()
    await registry.register_all(outbox_publisher(publish))
    config = PactixConfig(outbox_batch_size=order.settings["batch_size"])
    runner = OutboxRunner(OutboxStore(config), registry)

    async def work() -> None:
        while not order.all_seen:
            summary = await runner.run_once(engine)
            if not summary.published:
                await asyncio.sleep(0.01)

    await asyncio.gather(*(work() for _ in range(workers)))
    await engine.dispose()


drained.run(table=TABLE, pending="status <> 'published'", create=create, fill=FILL, drain=drain)
