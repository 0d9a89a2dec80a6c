"""omni-box: its documented loop, a transaction a batch, in as many workers as it is told."""

from __future__ import annotations

import asyncio

import drained  # pyright: ignore[reportMissingImports] - beside this script
from omni_box.application.services.publish import (  # pyright: ignore[reportMissingImports]
    OutboxPublisher,
)
from omni_box.core.protocols.publishers import (  # pyright: ignore[reportMissingImports]
    EventPublisher,
)
from omni_box.infra.storage.postgres import (  # pyright: ignore[reportMissingImports]
    OutboxEventDBBase,
    PostgresOutboxRepository,
)
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

TABLE = "omni_box_rows"
FILL = f"""
INSERT INTO {TABLE} (id, event_type, payload, headers, status, attempts_made, max_attempts,
                     scheduled_at, created_at, aggregate_type, aggregate_id, topic, partition_key)
SELECT id, 'OrderPlaced', convert_from(body, 'UTF8')::jsonb, '{{{{}}}}'::jsonb, 'pending', 0, 5,
       now() - interval '1 minute', now() - interval '1 hour' + number * interval '1 microsecond',
       'account', id, topic, key
FROM bench_backlog WHERE number <= {{rows}} ORDER BY number
"""


class Base(DeclarativeBase):
    """A service's own."""


class Row(OutboxEventDBBase, Base):  # type: ignore[misc]  # its types are in the environment
    """Its outbox table."""

    __tablename__ = TABLE


class Broker(EventPublisher):  # type: ignore[misc]  # its types are in the environment
    """In place of its Kafka."""

    def __init__(self, order: drained.Order) -> None:
        self.order = order

    async def publish(self, _event: object, _repo: object) -> None:
        """Returns when the broker would have."""
        await self.order.publish()


async def create(order: drained.Order) -> None:
    """Its table."""
    engine = create_async_engine(order.sqlalchemy_url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


async def drain(order: drained.Order) -> None:
    """All rows, as fast as it can."""
    workers = order.settings.get("workers", 1)
    engine = create_async_engine(order.sqlalchemy_url, pool_size=workers, max_overflow=0)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    broker = Broker(order)

    async def work(name: str) -> None:
        while not order.all_seen:
            async with sessions() as session, session.begin():
                repository = PostgresOutboxRepository(session, model_class=Row)
                done = await OutboxPublisher(repository, broker).publish_batch(
                    worker_id=name, batch_size=order.settings["batch_size"]
                )
            if not done.processed_event_ids:
                await asyncio.sleep(0.01)

    await asyncio.gather(*(work(f"worker-{number}") for number in range(workers)))
    await engine.dispose()


drained.run(table=TABLE, pending="status <> 'completed'", create=create, fill=FILL, drain=drain)
