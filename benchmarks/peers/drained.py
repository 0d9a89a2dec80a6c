"""What every peer's script does around its peer: told what to do, it fills, drains and reports.

A script runs in its peer's own environment, which knows nothing of ours: this module uses the
standard library and asyncpg, which all peers bring. What is timed begins when everything is
imported and the rows are there, and ends when the last row is gone or marked as done and the
connections are closed, as it does for the relay they are compared with.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import asyncpg  # pyright: ignore[reportMissingImports] - of the peer's environment


@dataclass
class Order:
    """What is asked of a peer.

    Args:
        dsn: A libpq URL; `bench_backlog` is there, with number, topic, key and body.
        rows: The first so many of them, in order of their numbers.
        sleep: Seconds that publishing one message takes; 0: nothing is waited for.
        settings: The peer's own.
    """

    dsn: str
    rows: int
    sleep: float
    settings: dict[str, Any]
    seen: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def sqlalchemy_url(self) -> str:
        """For peers on SQLAlchemy."""
        return self.dsn.replace("postgresql://", "postgresql+asyncpg://", 1)

    async def publish(self) -> None:
        """The broker, as far as any peer can tell: each message costs the same."""
        self.seen += 1
        if self.sleep:
            await asyncio.sleep(self.sleep)
        if self.all_seen:
            self.done.set()

    @property
    def all_seen(self) -> bool:
        """Whether every row has been handed to the broker."""
        return self.seen >= self.rows


def run(
    *,
    table: str,
    pending: str,
    create: Callable[[Order], Coroutine[Any, Any, None]],
    fill: str,
    drain: Callable[[Order], Coroutine[Any, Any, None]],
) -> None:
    """One measurement, as the one who started this process orders it.

    Args:
        table: The peer's own.
        pending: SQL condition of a row that was not published.
        create: Creates the table, as the peer wants it.
        fill: INSERT with `{rows}`, which writes what the peer's own insert would.
        drain: Returns when all rows are published and nothing is open any more.
    """
    logging.disable(logging.INFO)  # some say something of every message
    order = Order(**json.loads(sys.argv[1]))
    asyncio.run(_prepare(order, table, create, fill))
    gc.collect()
    print("ready", flush=True)
    sys.stdin.readline()
    cpu, began = time.process_time(), time.monotonic()
    asyncio.run(drain(order))
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    left = asyncio.run(_left(order, table, pending))
    print(json.dumps({"seconds": seconds, "cpu": cpu, "left": left, "seen": order.seen}))


async def _prepare(
    order: Order, table: str, create: Callable[[Order], Coroutine[Any, Any, None]], fill: str
) -> None:
    connection = await asyncpg.connect(order.dsn)
    await connection.execute(f"DROP TABLE IF EXISTS {table}")
    await create(order)
    await connection.execute(fill.format(rows=order.rows))
    await connection.execute(f"VACUUM ANALYZE {table}")
    await connection.execute("CHECKPOINT")
    await connection.close()


async def _left(order: Order, table: str, pending: str) -> int:
    connection = await asyncpg.connect(order.dsn)
    left: int = await connection.fetchval(f"SELECT count(*) FROM {table} WHERE {pending}")
    await connection.execute(f"DROP TABLE {table}")
    await connection.close()
    return left
