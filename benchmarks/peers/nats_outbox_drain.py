"""nats-outbox: its polling relays, with a publisher that takes the place of NATS."""

from __future__ import annotations

import asyncio

import drained  # pyright: ignore[reportMissingImports] - beside this script
from nats_outbox.core.models import (  # pyright: ignore[reportMissingImports]
    OutboxEvent,
    create_tables,
)
from nats_outbox.relay.polling import PollingRelay  # pyright: ignore[reportMissingImports]
from nats_outbox.settings import OutboxSettings  # pyright: ignore[reportMissingImports]
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

TABLE: str = OutboxEvent.__tablename__
FILL = f"""
INSERT INTO {TABLE} (event_id, subject, headers, payload, status, retry_count,
                     aggregate_id, aggregate_type)
SELECT id, topic, jsonb_build_object('Nats-Msg-Id', id::text),
       convert_from(body, 'UTF8')::jsonb, 'pending', 0, key, 'account'
FROM bench_backlog WHERE number <= {{rows}} ORDER BY number
"""


class Broker:
    """In place of its NatsPublisher: the same work but the network's."""

    def __init__(self, order: drained.Order) -> None:
        self.order = order

    async def publish(self, _event: object) -> None:
        """Returns when the broker would have."""
        await self.order.publish()


async def create(order: drained.Order) -> None:
    """Its table."""
    engine = create_async_engine(order.sqlalchemy_url)
    await create_tables(engine)
    await engine.dispose()


async def drain(order: drained.Order) -> None:
    """All rows, as fast as it can."""
    relays = order.settings.get("relays", 1)
    engine = create_async_engine(order.sqlalchemy_url, pool_size=relays, max_overflow=0)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    settings = OutboxSettings(
        database_url=order.sqlalchemy_url,
        batch_size=order.settings["batch_size"],
        polling_interval=0.01,
    )
    running = [PollingRelay(sessions, Broker(order), settings) for _ in range(relays)]
    tasks = [asyncio.create_task(relay.start()) for relay in running]
    await order.done.wait()
    for relay in running:
        await relay.stop()
    await asyncio.gather(*tasks)
    await engine.dispose()


drained.run(table=TABLE, pending="status <> 'published'", create=create, fill=FILL, drain=drain)
