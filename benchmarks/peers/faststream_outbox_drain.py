"""faststream-outbox: one subscriber with its workers; the handler is the broker."""

from __future__ import annotations

import drained  # pyright: ignore[reportMissingImports] - beside this script
from faststream_outbox import (  # pyright: ignore[reportMissingImports]
    OutboxBroker,
    make_outbox_table,
)
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine

TABLE = "faststream_outbox_rows"
FILL = f"""
INSERT INTO {TABLE} (queue, payload, headers)
SELECT topic, body,
       jsonb_build_object('content-type', 'application/json', 'correlation_id', id::text)
FROM bench_backlog WHERE number <= {{rows}} ORDER BY number
"""


async def create(order: drained.Order) -> None:
    """Its table."""
    metadata = MetaData()
    make_outbox_table(metadata, table_name=TABLE)
    engine = create_async_engine(order.sqlalchemy_url)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await engine.dispose()


async def drain(order: drained.Order) -> None:
    """All rows, as fast as it can."""
    settings = order.settings
    workers = settings["max_workers"]
    engine = create_async_engine(
        order.sqlalchemy_url, pool_size=min(workers + 2, 80), max_overflow=0
    )
    broker = OutboxBroker(
        engine, outbox_table=make_outbox_table(MetaData(), table_name=TABLE), logger=None
    )

    async def untouched(message: object) -> bytes:
        return message.body  # type: ignore[attr-defined,no-any-return]  # StreamMessage

    @broker.subscriber(  # type: ignore[untyped-decorator,unused-ignore]
        "orders",
        max_workers=workers,
        fetch_batch_size=settings["fetch_batch_size"],
        terminal_flush_batch_size=settings["terminal_flush_batch_size"],
        min_fetch_interval=0.01,
        max_fetch_interval=0.05,
        decoder=untouched,
    )
    async def relay(_body: bytes) -> None:
        await order.publish()

    await broker.start()
    await order.done.wait()
    await broker.stop()
    await engine.dispose()


drained.run(table=TABLE, pending="true", create=create, fill=FILL, drain=drain)
