"""Proof 3.3: whatever comes to a participant for one step, in every order and two at a time."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from outbox_saga.participants import Participants
from outbox_saga.testing.servers import DatabaseServer, MariaDB, Postgres18, choose
from proofs.registry import Outcome, proof, say
from tests.saga.every_order import in_every_order, in_pairs
from tests.saga.shipping import Shipping

ORDERS, PAIRS = 120, 20
ROUNDS = 5  # of the pairs: which of two comes first is the database's affair
SERVERS: tuple[type[DatabaseServer], ...] = (Postgres18, MariaDB)


@proof("3.3")
def participants() -> Outcome:
    """On three databases, with `async def` and with `def` handlers, and without the barrier."""
    measured: dict[str, Any] = {}
    good = True
    for name, url in _databases():
        for threads in (False, True):
            what = f"{name}, {'def' if threads else 'async def'}"
            found = asyncio.run(_tried(url, threads=threads))
            found["without the barrier"] = asyncio.run(_without(url, threads=threads))
            say(f"{what}: {found}")
            measured[what] = found
            good &= (
                found["orders"] == ORDERS
                and found["pairs"] == PAIRS * ROUNDS
                and not found["violations"]
                and found["without the barrier"] == "found"
            )
    return Outcome(good, measured)


def _databases() -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory(prefix="outbox-saga-") as folder:
        yield "SQLite", f"sqlite:///{Path(folder, 'shipping.db')}"
    for server in SERVERS:
        with choose(server) as running:
            yield server.name, running.create_database()


async def _tried(url: str, *, threads: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"orders": 0, "pairs": 0, "violations": []}
    async with _shipping(url, threads=threads) as shipping:
        try:
            found["orders"] = await in_every_order(shipping)
            for _ in range(ROUNDS):
                found["pairs"] += await in_pairs(shipping)
        except AssertionError as error:
            found["violations"].append(str(error).splitlines()[0])
    return found


async def _without(url: str, *, threads: bool) -> str:
    """The rule taken out: an order must be found that comes to something wrong."""
    with patch.object(Participants, "_enter", lambda *_: None):
        async with _shipping(url, threads=threads) as shipping:
            try:
                await in_every_order(shipping)
            except AssertionError:
                return "found"
    return "not found"


@asynccontextmanager
async def _shipping(url: str, *, threads: bool) -> AsyncIterator[Shipping]:
    shipping = Shipping(url, threads=threads)
    try:
        yield shipping
    finally:
        await shipping.service.close()
