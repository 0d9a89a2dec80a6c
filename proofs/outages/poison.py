"""Poison in front: what it does to the messages of other keys, by the clock of a subscriber.

Of the poison a quarter is too large for the stream (a definite no), a quarter goes to a subject
that nobody listens to, and half goes to one whose listener never answers: those hang until the
publisher's timeout, and are tried again and again.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from dataclasses import dataclass
from typing import Any

import nats

from outbox_saga.database import Database
from outbox_saga.messages import Event
from outbox_saga.unit_of_work import UnitOfWork
from proofs.outages.relaying import NAME, create_stream, relay

POISON = 1000
TIMEOUT = 2.0  # seconds of the publisher
LARGEST = 16 * 1024  # bytes a message of the stream may have
KEYS = 2000
BACKLOG = 40_000  # messages of other keys behind the poison, for the throughput
RATE, SECONDS = 300, 12  # messages a second of other keys, for so long, for the latency
PATIENCE = 120.0
WORKLOAD = {
    "poison": POISON,
    "publish_timeout_seconds": TIMEOUT,
    "backlog_for_throughput": BACKLOG,
    "steady_for_p99": {"a_second": RATE, "seconds": SECONDS},
    "keys": KEYS,
}


class Good(Event, topic="good"):
    """What is to go its way."""

    number: int


class TooLarge(Event, topic="good.large"):
    """What the stream refuses for good."""

    text: str


class Unrouted(Event, topic="nowhere"):
    """What nobody listens to."""

    number: int


class Unanswered(Event, topic="deaf"):
    """What somebody listens to, who never answers."""

    number: int


@dataclass(frozen=True)
class Sample:
    """One run."""

    throughput: float  # messages of other keys a second
    p99: float  # seconds, of those that came at a steady rate

    def shown(self) -> dict[str, float]:
        """Rounded."""
        return {"per_second": round(self.throughput), "p99_ms": round(self.p99 * 1000, 2)}


def publish_poison(uow: UnitOfWork[Any]) -> None:
    """Each of a key of its own."""
    for number in range(POISON):
        key = f"poison {number}"
        if number % 2:
            uow.publish(Unanswered(number=number), key=key)
        elif number % 4:
            uow.publish(Unrouted(number=number), key=key)
        else:
            uow.publish(TooLarge(text="x" * LARGEST), key=key)


class Watch:
    """When each good message was seen at the broker."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}
        self._news = asyncio.Event()

    async def see(self, message: Any) -> None:
        """A subscriber's callback."""
        number = int(message.data[len(b'{"number":') : -1])
        self.seen.setdefault(number, time.perf_counter())
        self._news.set()

    async def until(self, count: int) -> None:
        """So many have come."""
        async with asyncio.timeout(PATIENCE):
            while len(self.seen) < count:
                self._news.clear()
                await self._news.wait()


async def sample(database: Database, server: str, *, poison: bool) -> Sample:
    """One run of both, each with a relay of its own."""
    throughput = await _run(database, server, _drained, poison=poison)
    return Sample(throughput, await _run(database, server, _steady, poison=poison))


async def _run(database: Database, server: str, measure: Any, *, poison: bool) -> float:
    empty(database)
    await create_stream(server, [f"{NAME}.good.>", f"{NAME}.good"], max_msg_size=LARGEST)
    client = await nats.connect(server)
    watch = Watch()
    await client.subscribe(f"{NAME}.good", cb=watch.see, pending_msgs_limit=-1)
    await client.subscribe(f"{NAME}.deaf")
    await client.flush()
    broker = f"{server}?stream={NAME}&prefix={NAME}&timeout={TIMEOUT}"
    try:
        with relay(database, broker):
            figure: float = await measure(database, watch, poison)
            return figure
    finally:
        await client.close()


async def _drained(database: Database, watch: Watch, poison: bool) -> float:  # noqa: FBT001
    """All of it is committed at one moment, the poison first."""

    def publish() -> float:
        with database.begin() as connection:
            uow = UnitOfWork(connection)
            if poison:
                publish_poison(uow)
            for number in range(BACKLOG):
                uow.publish(Good(number=number), key=f"key {number % KEYS}")
        return time.perf_counter()

    began = await asyncio.to_thread(publish)
    await watch.until(BACKLOG)
    return BACKLOG / (max(watch.seen.values()) - began)


async def _steady(database: Database, watch: Watch, poison: bool) -> float:  # noqa: FBT001
    """They come one by one, at a rate the relay can well keep up with."""
    committed: dict[int, float] = {}
    chance = random.Random(7)  # a schedule, not a secret

    def publish() -> None:
        if poison:
            with database.begin() as connection:
                publish_poison(UnitOfWork(connection))
        due = time.perf_counter()
        for number in range(RATE * SECONDS):
            due += chance.expovariate(RATE)
            time.sleep(max(0.0, due - time.perf_counter()))
            with database.begin() as connection:
                UnitOfWork(connection).publish(Good(number=number), key=f"key {number % KEYS}")
            committed[number] = time.perf_counter()

    await asyncio.to_thread(publish)
    await watch.until(RATE * SECONDS)
    waits = [max(0.0, watch.seen[number] - at) for number, at in committed.items()]
    return statistics.quantiles(waits, n=100)[98]


def empty(database: Database) -> None:
    """Nothing of an earlier run is left."""
    tables = database.tables
    with database.begin() as connection:
        for table in (tables.outbox, tables.blocked_key, tables.dead_letter, tables.process):
            connection.execute(table.delete())
        connection.execute(
            tables.partition_lease.update().values(owner=None, until=None, epoch=0, revisit=None)
        )
