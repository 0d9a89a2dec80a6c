"""Processes of one service that share a house, each with its own connections, leases, threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import sqlalchemy as sa

from outbox_saga import HandlerContext, Retry, Service, SyncHandlerContext
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.waiting import WaitingRoom
from tests.relay.house import House, Said, till

LISTENER = "listener"
FEW = Retry(max_attempts=3, initial=10.0, max_delay=60.0)  # seconds of `house.advance`
LATER = 61.0  # seconds: every pause of FEW is over


def said(word: str, key: str | None = None) -> Envelope:
    """A message as a broker delivers it."""
    return seal(Said(word=word), key=key, correlation_id="the talk")


async def note(handle: HandlerContext[Said]) -> None:
    await handle.session.execute(sa.insert(till).values(note=handle.message.word))


def note_in_thread(handle: SyncHandlerContext[Said]) -> None:
    handle.session.execute(sa.insert(till).values(note=handle.message.word))


class Moods:
    """Handlers that note what they get, and then fail on the words that are poison now."""

    def __init__(self, *poison: str) -> None:
        self.poison = set(poison)
        self.asked: list[str] = []
        self.error: Callable[[str], Exception] = lambda word: LookupError(f"cannot {word}")

    async def asynchronous(self, handle: HandlerContext[Said]) -> None:
        self.asked.append(handle.message.word)
        await note(handle)
        handle.publish(Said(word=f"after {handle.message.word}"))
        if handle.message.word in self.poison:
            raise self.error(handle.message.word)

    def plain(self, handle: SyncHandlerContext[Said]) -> None:
        self.asked.append(handle.message.word)
        note_in_thread(handle)
        handle.publish(Said(word=f"after {handle.message.word}"))
        if handle.message.word in self.poison:
            raise self.error(handle.message.word)


class Process:
    """One process of the service: it gets deliveries, and tries what waits."""

    def __init__(self, house: House, handler: Any, **options: Any) -> None:
        self.house = house
        self.service = Service("shop", database=house.another_database(), poll=0.01)
        options = {"consumer": LISTENER, "retry": FEW, **options}
        self.service.on(Said, **options)(handler)
        self.room: WaitingRoom = self.service.waiting_room(lease=30.0)

    async def deliver(self, *envelopes: Envelope) -> None:
        """As a broker hands them over: the next when the one before is acknowledged."""
        for envelope in envelopes:
            await self.service.deliver(envelope)

    async def later(self, times: int = 1) -> None:
        """Every pause is over, and what is due is tried; so often."""
        for _ in range(times):
            self.house.advance(LATER)
            await self.to_rest()

    async def to_rest(self) -> None:
        """What is due is tried until nothing is."""
        while await self.room.run_once():
            pass


MakeProcess = Callable[..., Process]


@asynccontextmanager
async def processes(house: House) -> AsyncIterator[MakeProcess]:
    """Makes processes of this house; their threads are given back at the end."""
    async with AsyncExitStack() as stack:

        def make(handler: Any, **options: Any) -> Process:
            process = Process(house, handler, **options)
            stack.push_async_callback(process.service.close)
            return process

        yield make
