"""Proof 2.4: how long after its commit a message is handled, and what an idle relay asks for."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import nats
import sqlalchemy as sa
from nats.js.errors import NotFoundError
from sqlalchemy import event
from sqlalchemy.orm import sessionmaker

from outbox_saga.brokers import open_publisher
from outbox_saga.database import Database
from outbox_saga.messages import Event
from outbox_saga.testing.servers import Nats, Postgres18, choose
from outbox_saga.unit_of_work import unit_of_work
from outbox_saga_migrations import upgrade
from outbox_saga_relay.relay import Relay
from proofs.registry import Outcome, proof, say

SAMPLES = 400
WARM = 20  # the first ones, which are not counted
PAUSE = (0.03, 0.12)  # seconds between two commits: the system is idle in between
POLL, LEASE = 0.25, 10.0  # seconds: the relay's own defaults
IDLE = 20.0  # seconds an idle relay is watched
P50, P99 = 0.005, 0.030  # seconds: the bars with the hint
ALLOWED_CONNECTIONS = 2
SUBJECT = "outbox.ticks"


class Tick(Event, topic="ticks"):
    """What is published."""

    number: int


@proof("2.4")
def latency() -> Outcome:
    """Commit to handler, with the hint and without; then the idle relay."""
    with choose(Postgres18, durable=True) as server, choose(Nats) as broker:
        url = server.create_database()
        database = Database(url)
        with database.begin() as connection:
            upgrade(connection)
        database.engine.dispose()
        hinted = asyncio.run(_measured(url, broker.url, hints=True))
        say(f"with the hint: {_shown(hinted)}")
        polled = asyncio.run(_measured(url, broker.url, hints=False))
        say(f"without: {_shown(polled)}")
        idle = asyncio.run(_idle(url, broker.url))
        say(f"idle: {idle}")
    looks = idle["looks"] / (idle["seconds"] / POLL)
    good = (
        statistics.median(hinted) <= P50
        and _p99(hinted) <= P99
        and max(polled) <= POLL + P99  # the poll interval, and the way itself
        and looks <= 1.0
        and idle["renewals"] <= idle["seconds"] / (LEASE / 3) + 1
        and idle["other_statements"] == 0
        and idle["connections"] <= ALLOWED_CONNECTIONS
    )
    return Outcome(
        ok=good,
        measured={
            "samples": len(hinted),
            "with_the_hint_ms": _shown(hinted),
            "without_ms": _shown(polled),
            "poll_ms": POLL * 1000,
            "idle_relay": idle | {"looks_per_poll_interval": round(looks, 3)},
        },
    )


async def _measured(url: str, broker_url: str, *, hints: bool) -> list[float]:
    """Seconds from the return of commit to the handler, one message at a time.

    Publisher, relay and subscriber share one process and its event loop: what is measured is
    more than it would be apart, never less.
    """
    committed: dict[UUID, float] = {}
    handled: dict[UUID, float] = {}
    arrived = asyncio.Event()
    relayed, writing = Database(url), Database(url, hints=hints)
    sessions = sessionmaker(writing.engine)
    chance = random.Random(5)  # a schedule, not a secret
    client = await nats.connect(broker_url)

    async def handle(message: Any) -> None:
        handled.setdefault(UUID(message.headers["ce-id"]), time.perf_counter())
        arrived.set()
        await message.ack()

    def publish(number: int) -> UUID:
        with unit_of_work(sessions) as uow:
            id_ = uow.publish(Tick(number=number), key="tick")
        committed[id_] = time.perf_counter()
        return id_

    publisher = open_publisher(f"{broker_url}?create=1")
    async with _running(Relay(relayed, publisher, poll=POLL, lease=LEASE, listen=hints)):
        await _stream_is_there(client)
        await client.jetstream().subscribe(SUBJECT, cb=handle, manual_ack=True)
        loop = asyncio.get_running_loop()
        for number in range(SAMPLES + WARM):
            await asyncio.sleep(chance.uniform(*PAUSE))
            arrived.clear()
            id_ = await loop.run_in_executor(None, publish, number)
            while id_ not in handled:
                await asyncio.wait_for(arrived.wait(), 30.0)
                arrived.clear()
    await client.close()
    await relayed.close()
    await writing.close()
    return [max(0.0, handled[id_] - at) for id_, at in committed.items()][WARM:]


async def _idle(url: str, broker_url: str) -> dict[str, Any]:
    database, eyes = Database(url), sa.create_engine(url, poolclass=sa.NullPool)
    told: list[str] = []

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        told.append(statement)

    publisher = open_publisher(f"{broker_url}?create=1")
    async with _running(Relay(database, publisher, poll=POLL, lease=LEASE)):
        await asyncio.sleep(3.0)  # the pauses have grown
        event.listen(database.program_engine, "before_cursor_execute", count)
        began = time.monotonic()
        await asyncio.sleep(IDLE)
        seconds = time.monotonic() - began
        event.remove(database.program_engine, "before_cursor_execute", count)
        with eyes.connect() as connection:
            connections = connection.scalar(
                sa.text(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid() "
                    "AND backend_type = 'client backend'"
                )
            )
    eyes.dispose()
    await database.close()
    looks = sum("outbox_saga_delayed" in statement for statement in told)
    renewing = [s for s in told if "outbox_saga_delayed" not in s]
    renewals = sum(s.startswith("SET LOCAL idle_in_transaction") for s in renewing)
    return {
        "seconds": round(seconds, 1),
        "looks": looks,
        "renewals": renewals,
        "statements_of_renewals": len(renewing),
        "other_statements": 0 if renewals else len(renewing),
        "connections": connections,
    }


@asynccontextmanager
async def _running(relay: Relay) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(relay.run(stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def _stream_is_there(client: Any) -> None:
    while True:
        try:
            await client.jetstream().find_stream_name_by_subject(SUBJECT)
        except NotFoundError:
            await asyncio.sleep(0.05)
        else:
            return


def _p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def _shown(seconds: list[float]) -> dict[str, float]:
    figures = {"p50": statistics.median(seconds), "p99": _p99(seconds), "max": max(seconds)}
    return {name: round(value * 1000, 2) for name, value in figures.items()}
