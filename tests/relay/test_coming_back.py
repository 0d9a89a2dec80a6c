"""After an outage of the database: nobody comes back all the time, and no two in step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import sqlalchemy as sa

from outbox_saga import hints
from outbox_saga.database import Database
from outbox_saga.retries import Retry
from outbox_saga_relay import listening
from outbox_saga_relay.listening import Listener
from outbox_saga_relay.relay import Relay
from tests.relay.house import PATIENCE, House
from tests.relay.test_running import Broker, running

PAUSES = Retry(max_attempts=1_000_000, initial=0.1, max_delay=0.4)
TRIES = 5


class Down:
    """A database that ends every connection at once, and notes when each came."""

    def __init__(self) -> None:
        self.came: list[float] = []
        self.news = asyncio.Condition()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came.append(asyncio.get_running_loop().time())
        writer.close()
        async with self.news:
            self.news.notify_all()

    @asynccontextmanager
    async def listens(self) -> AsyncIterator[sa.URL]:
        server = await asyncio.start_server(self, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        # otherwise each attempt is two connections
        once = "sslmode=disable&gssencmode=disable"
        async with server:
            yield sa.make_url(f"postgresql://x@127.0.0.1:{port}/x?{once}")

    async def tried(self, times: int) -> list[float]:
        """The pauses between that many attempts."""
        async with self.news:
            await asyncio.wait_for(self.news.wait_for(lambda: len(self.came) >= times), PATIENCE)
        return [later - earlier for earlier, later in pairwise(self.came[:times])]


def check(pauses: list[float], seed: str) -> list[float]:
    """Each as long as the policy says, at least; returns what it says."""
    said = [PAUSES.delay(attempt, seed=seed) for attempt in range(1, TRIES)]
    # a timer may be a little early by another clock
    assert all(pause > wanted - 0.02 for pause, wanted in zip(pauses, said, strict=True)), pauses
    assert max(said) <= PAUSES.max_delay
    return said


def apart(one: list[float], other: list[float]) -> bool:
    return all(abs(a - b) > 1e-6 for a, b in zip(one, other, strict=True))


async def test_two_relays_ask_for_a_lost_database_ever_less_often_and_never_in_step() -> None:
    said = []
    for _ in range(2):
        down = Down()
        async with down.listens() as url:
            relay = Relay(Database(url), Broker(), outage=PAUSES, listen=False)
            async with running(relay):
                said.append(check(await down.tried(TRIES), str(relay.store.lease.owner)))
    assert apart(*said)


async def test_two_listeners_come_back_ever_less_often_and_never_in_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listening, "AGAIN", PAUSES)
    said = []
    for _ in range(2):
        down = Down()
        async with down.listens() as url:
            listener = Listener(url, None, lambda: None)
            task = asyncio.create_task(listener.run())
            said.append(check(await down.tried(TRIES), listener.seed))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert apart(*said)


async def test_two_processes_that_publish_come_back_ever_less_often_and_never_in_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hints, "AGAIN", PAUSES)
    monkeypatch.setattr(hints, "EVERY", 0.001)
    said = []
    for _ in range(2):
        down = Down()
        async with down.listens() as url:
            sender = hints.Sender(url)

            async def commits(sender: hints.Sender) -> None:
                while True:  # somebody commits all the time
                    await asyncio.to_thread(sender.committed, None)

            task = asyncio.create_task(commits(sender))
            said.append(check(await down.tried(TRIES), sender.seed))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert apart(*said)


@pytest.mark.databases("postgres18")
async def test_where_pages_can_be_read_and_nothing_removed_the_same_is_sent_ever_less_often(
    house: House,
) -> None:
    """A page that is read is no sign that the trouble is over."""
    with house.eyes.begin() as connection:
        connection.exec_driver_sql(
            "create or replace function no() returns trigger language plpgsql as "
            "$$ begin raise exception 'not now' using errcode = '40001'; end $$"
        )
        connection.exec_driver_sql(
            "create trigger no before delete on outbox_saga_outbox "
            "for each statement execute function no()"
        )
    broker = Broker()
    relay = Relay(house.another_database(), broker, outage=PAUSES, poll=0.02, listen=False)
    try:
        house.say("again and again")
        async with running(relay):
            await asyncio.to_thread(
                house.until, lambda: relay._turns.troubles >= 5, "it slows down"
            )
            with house.eyes.begin() as connection:
                connection.exec_driver_sql("drop trigger no on outbox_saga_outbox")
            await asyncio.to_thread(house.until, lambda: house.waiting() == [], "removed")
            await asyncio.to_thread(house.until, lambda: relay._turns.troubles == 0, "it is over")
    finally:
        with house.eyes.begin() as connection:
            connection.exec_driver_sql("drop trigger if exists no on outbox_saga_outbox")
    assert 5 <= len(broker.attempts) <= 7
