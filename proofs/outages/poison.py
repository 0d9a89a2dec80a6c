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
import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.messages import Event
from outbox_saga.unit_of_work import UnitOfWork
from proofs.outages.relaying import NAME, create_stream, relay

POISON = 1000
TIMEOUT = 2.0  # seconds of the publisher
LARGEST = 16 * 1024  # bytes a message of the stream may have
KEYS = 2000
BACKLOG = 250_000  # messages of other keys behind the poison, for the throughput
CHUNK = 10_000  # of them in one transaction, when they are made
RATE, SECONDS = 300, 12  # messages a second of other keys, for so long, for the latency
PATIENCE = 120.0
MADE = "outages_made"  # the table of the backlog
WORKLOAD = {
    "poison": {
        "messages, each of its own key": POISON,
        "refused for good: too large": POISON // 4,
        "refused each time: nobody listens": POISON // 4,
        "hang until the timeout": POISON // 2,
    },
    "publish_timeout_seconds": TIMEOUT,
    "throughput": {
        "backlog of other keys": BACKLOG,
        "keys": KEYS,
        "why so many": "the run is long enough for the poison to be tried again and again beside "
        "the others, and short of them it would be the poison's own work that is measured",
    },
    "p99": {"messages a second": RATE, "seconds": SECONDS, "keys": KEYS},
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


@dataclass(frozen=True)
class Sample:
    """One run.

    Args:
        figure: Messages of other keys a second, or the p99 of their seconds from commit to
            subscriber.
        attempts: Of the poison, as far as they are stored.
    """

    figure: float
    attempts: int


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


def make_backlog(database: Database) -> None:
    """The poison and what is behind it, once, in a table from which each run has its outbox."""
    with database.begin() as connection:
        publish_poison(UnitOfWork(connection))
    for first in range(0, BACKLOG, CHUNK):
        with database.begin() as connection:
            uow = UnitOfWork(connection)
            for number in range(first, first + CHUNK):
                uow.publish(Good(number=number), key=f"key {number % KEYS}")
    outbox = database.tables.outbox.name
    with database.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE {MADE} AS SELECT * FROM {outbox}")
    empty(database)


async def throughput(database: Database, server: str, *, poison: bool) -> Sample:
    """All of it is committed at one moment, the poison first; then it drains."""
    return await _run(database, server, _drained, poison=poison)


async def p99(database: Database, server: str, *, poison: bool) -> Sample:
    """They come one by one, at a rate the relay can well keep up with."""
    return await _run(database, server, _steady, poison=poison)


async def _run(database: Database, server: str, measure: Any, *, poison: bool) -> Sample:
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
            return Sample(figure, attempts(database))
    finally:
        await client.close()


async def _drained(database: Database, watch: Watch, poison: bool) -> float:  # noqa: FBT001
    made = sa.table(MADE, *(sa.column(column.name) for column in database.tables.outbox.c))
    names = [column.name for column in made.c if column.name != "position"]
    wanted = sa.select(*(made.c[name] for name in names)).order_by(made.c.position)
    if not poison:
        wanted = wanted.where(made.c.topic == "good")

    def commit() -> float:
        with database.begin() as connection:
            connection.execute(sa.insert(database.tables.outbox).from_select(names, wanted))
        return time.perf_counter()

    began = await asyncio.to_thread(commit)
    await watch.until(BACKLOG)
    return BACKLOG / (max(watch.seen.values()) - began)


async def _steady(database: Database, watch: Watch, poison: bool) -> float:  # noqa: FBT001
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


def attempts(database: Database) -> int:
    """Failed ones that are stored."""
    blocked = database.tables.blocked_key.c
    with database.engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.sum(blocked.attempts))).scalar() or 0)


def empty(database: Database) -> None:
    """Nothing of an earlier run is left, nor what the server keeps of removed rows."""
    tables = database.tables
    with database.begin() as connection:
        for table in (tables.outbox, tables.blocked_key, tables.dead_letter, tables.process):
            connection.exec_driver_sql(f"TRUNCATE {table.name}")
        connection.execute(
            tables.partition_lease.update().values(owner=None, until=None, epoch=0, revisit=None)
        )
