"""Proof 2.4: how long after its commit a message is handled, and what an idle relay asks for."""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import nats
import sqlalchemy as sa
from nats.js.errors import NotFoundError
from sqlalchemy import event

from outbox_saga.brokers import open_publisher
from outbox_saga.database import Database
from outbox_saga.testing.servers import Nats, Postgres18, choose
from outbox_saga_migrations import upgrade
from outbox_saga_relay.relay import Relay
from proofs.registry import Outcome, proof, say
from tests.relay.test_running import running

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 180
WARM = 10  # the first ones, which are not counted
# seconds between two commits: the relay's pauses have grown to the poll interval in between
PAUSE = (0.3, 0.6)
POLL, LEASE = 0.25, 10.0  # seconds: the relay's own defaults
IDLE = 20.0  # seconds an idle relay is watched
P50, P99 = 0.005, 0.030  # seconds: the bars with the hint
ALLOWED_CONNECTIONS = 2
SUBJECT = "outbox.ticks"
RENEWS = "SET LOCAL transaction_timeout"  # how a transaction that writes begins (PostgreSQL 17)


@proof("2.4")
def latency() -> Outcome:
    """Commit to handler, with the hint and without; then the idle relay."""
    with choose(Postgres18, durable=True) as server, choose(Nats) as broker:
        url = server.create_database()
        database = Database(url)
        with database.begin() as connection:
            upgrade(connection)
        database.engine.dispose()
        # first: it counts all connections there are, and those of others that publish are theirs
        idle = asyncio.run(_idle(url, broker.url))
        say(f"idle: {idle}")
        hinted = asyncio.run(_measured(url, broker.url, hints=True))
        say(f"with the hint: {_shown(hinted)}")
        polled = asyncio.run(_measured(url, broker.url, hints=False))
        say(f"without: {_shown(polled)}")
    looks = idle["looks"] / (idle["seconds"] / POLL)
    good = (
        statistics.median(hinted) <= P50
        and _p99(hinted) <= P99
        and max(polled) <= POLL
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

    The publisher is a process of its own, so that the hint is a NOTIFY and no call. Relay and
    subscriber share one event loop: what is measured is more than it would be apart, never less.
    """
    handled: dict[UUID, int] = {}
    arrived = asyncio.Event()
    relayed = Database(url)
    chance = random.Random(5)  # a schedule, not a secret
    client = await nats.connect(broker_url)
    seconds: list[float] = []

    async def handle(message: Any) -> None:
        handled.setdefault(UUID(message.headers["ce-id"]), time.monotonic_ns())
        arrived.set()
        await message.ack()

    publisher = open_publisher(f"{broker_url}?create=1")
    async with (
        running(Relay(relayed, publisher, poll=POLL, lease=LEASE, listen=hints)),
        _writing(url, hints=hints) as publish,
    ):
        await _stream_is_there(client)
        await client.jetstream().subscribe(SUBJECT, cb=handle, manual_ack=True)
        for number in range(SAMPLES + WARM):
            await asyncio.sleep(chance.uniform(*PAUSE))
            arrived.clear()
            id_, committed = await publish(number)
            while id_ not in handled:
                await asyncio.wait_for(arrived.wait(), 30.0)
                arrived.clear()
            seconds.append(max(0, handled[id_] - committed) / 1e9)
    await client.close()
    await relayed.close()
    return seconds[WARM:]


@asynccontextmanager
async def _writing(
    url: str, *, hints: bool
) -> AsyncIterator[Callable[[int], Awaitable[tuple[UUID, int]]]]:
    """Commits a message in a process of its own; its id, and when the commit returned."""
    command = [sys.executable, "-m", "proofs.latency.writer", url, "hints" if hints else "none"]
    writer = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    to, told = writer.stdin, writer.stdout

    async def publish(number: int) -> tuple[UUID, int]:
        to.write(f"{number}\n".encode())
        id_, at = (await told.readline()).split()
        return UUID(id_.decode()), int(at)

    try:
        yield publish
    finally:
        to.close()
        await writer.wait()


async def _idle(url: str, broker_url: str) -> dict[str, Any]:
    database, eyes = Database(url), sa.create_engine(url, poolclass=sa.NullPool)
    told: list[tuple[str, bool]] = []  # statements, and whether they are a renewal's
    renewing: list[Any] = [None]  # the connection of the last renewal: each has one of its own

    def count(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(RENEWS):
            renewing[0] = connection
        told.append((statement, connection is renewing[0]))

    publisher = open_publisher(f"{broker_url}?create=1")
    async with running(Relay(database, publisher, poll=POLL, lease=LEASE)):
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
    apart = [statement for statement, of_renewal in told if not of_renewal]
    of_renewals = [statement for statement, of_renewal in told if of_renewal]
    looks = sum(map(_looks, apart))
    return {
        "seconds": round(seconds, 1),
        "looks": looks,
        "renewals": sum(s.startswith(RENEWS) for s in of_renewals),
        "statements_of_renewals": len(of_renewals),
        "looks_within_renewals": sum(map(_looks, of_renewals)),
        "other_statements": len(apart) - looks,
        "connections": connections,
    }


def _looks(statement: str) -> bool:
    return "outbox_saga_delayed" in statement


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
