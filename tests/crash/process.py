"""One start of the service.

Everything that is in memory, watched by crash points, and gone when it dies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Protocol
from uuid import UUID

import sqlalchemy as sa

from outbox_saga import DeadLetters, Decision, Service
from outbox_saga.brokers.contract import Publisher
from outbox_saga.brokers.local import LocalPublisher
from outbox_saga.consuming import answer
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import BrokerUnavailable, CommitUnknown
from outbox_saga.queries.clock import Clock
from outbox_saga.saga.definition import Saga
from outbox_saga.saga.orchestrator import Orchestrator
from outbox_saga.testing.crash_points import CrashPoints
from outbox_saga.waiting_messages import WaitingMessages
from outbox_saga_relay.housekeeping import Housekeeping
from outbox_saga_relay.relay import Relay
from tests.crash.deliveries import Delivery, arrived
from tests.crash.planted import SOUND, Code
from tests.crash.provider import Provider
from tests.crash.recording import RecordingPublisher
from tests.crash.shop import CONSUMERS, Shop
from tests.crash.world import World, connect_without_certificates

A_WHILE = 120.0  # seconds: every lease has run out, and most backoffs
ROUNDS = 60  # a run that has not come to rest by then never will
PAGE = 2  # rows: so that a few messages are several pages


class Business(Protocol):
    """Whose service it is: its sagas, its handlers, and what its local broker does."""

    sagas: dict[str, Saga[Any]]

    def register(self, service: Service) -> None:
        """The handlers."""

    def delivers(self, process: Process) -> Callable[[Envelope], Awaitable[object]]:
        """What the local broker hands messages to."""
        ...


MakeShop = Callable[[Provider, Collection[str], World], Business]


def _shop(provider: Provider, sagas: Collection[str], world: World) -> Business:
    return Shop(provider, sagas, world.mended.read)


class Process:
    """What a start of the service has in memory.

    Args:
        world: What it finds.
        points: Where it dies.
        later: Seconds that the database's clock is ahead for it: leases of those before it have
            run out.
        code: The code it runs; another one than ours when a bug is planted.
        broker: "recording", or "local": this service's own handlers.
        sagas: Names of those it can carry on.
        archive: Its relays keep what they published.
        consumes: Each consumer gets what the broker brings by itself, through `consuming`.
        shop: Whose service it is; None: the shop's.
    """

    def __init__(
        self,
        world: World,
        points: CrashPoints,
        *,
        later: float = 0.0,
        code: Code = SOUND,
        broker: str = "recording",
        sagas: Collection[str] = (),
        archive: bool = False,
        consumes: bool = False,
        shop: MakeShop | None = None,
    ) -> None:
        self.world = world
        self.points = points
        self.code = code
        self.broker = broker
        self.database = world.database(later)
        points.watch(self.database)
        provider = Provider(world.ledger, points, world.questions)
        self.shop = (shop or _shop)(provider, sagas, world)
        self.service = Service("crash", database=self.database, sagas=self.shop.sagas.values())
        self.shop.register(self.service)
        self._archive = archive
        self._consumes = consumes
        self._orchestrators: list[Orchestrator] = []
        self._relays: list[Relay] = []
        self._others: list[Database] = []
        self._houses: list[Housekeeping] = []

    def let_time_pass(self, seconds: float = A_WHILE) -> None:
        """Leases run out and backoffs end, without anybody waiting."""
        self.database.clock = Clock(self.database.clock.shift + seconds)

    def keep_house(self, housekeeping: Housekeeping) -> None:
        """It ends with this process."""
        self._houses.append(housekeeping)

    def report(self, ids: Iterable[UUID], told: str, unknown: CommitUnknown | None) -> None:
        """What the caller of the transaction that publishes these was told."""
        transaction = None if unknown is None else unknown.transaction
        about = [str(id_) for id_ in ids]
        self.world.reports.append(ids=about, told=told, transaction=transaction)

    def adopt(self, database: Database) -> Database:
        """Another database's engines, or others of the same, die with this process."""
        database.clock = self.database.clock
        connect_without_certificates(database.engine, database.program_engine)
        self.points.watch(database)
        self._others.append(database)
        return database

    def new_relay(self, publisher: Publisher | None = None, **options: Any) -> Relay:
        """A relay of this process, as its operation needs it."""
        settings = {
            "page_rows": PAGE,
            "archive": self._archive,
            "skip_poison": ["crash.stray"],
            "listen": False,
            **options,
        }
        relay = self.code.relay(self.database, publisher or self.publisher(), **settings)
        self.keep(relay)
        return relay

    def keep(self, relay: Relay) -> None:
        """It ends with this process."""
        self._relays.append(relay)

    def new_orchestrator(self, *sagas: Saga[Any]) -> Orchestrator:
        """An orchestrator of these sagas, or of all; it ends with this process."""
        orchestrator = self.code.orchestrator(self.database, sagas or self.shop.sagas.values())
        self._orchestrators.append(orchestrator)
        return orchestrator

    async def carry_on(self) -> None:
        """Every saga ends."""
        orchestrator = self.new_orchestrator()
        for _ in range(ROUNDS):
            if not self.world.unfinished():
                return
            if not await orchestrator.run_once():
                self.let_time_pass()
        raise TimeoutError("the sagas did not come to an end")

    async def relay(self) -> None:
        """Every message leaves that may."""
        for _ in range(ROUNDS):
            relay = self.new_relay()
            try:
                while await relay.run_once():
                    pass
            except BrokerUnavailable:
                pass  # it is asked again, as a relay's own loop would
            await relay.store.lease.release()
            if not self.world.pending():
                return
            self.let_time_pass()
        raise TimeoutError("the messages did not all leave")

    async def handle(self) -> None:
        """What the broker has for our handlers is handled and acknowledged, one after another."""
        acknowledged = {line["id"] for line in self.world.acknowledged.read()}
        for number, line in enumerate(self.world.arrivals.read()):
            for consumer in CONSUMERS[line["type"]] if self._consumes else (None,):
                name = f"{number} {line['id']} {consumer}"
                if name in acknowledged:
                    continue
                if consumer is not None:
                    await answer(
                        self.service.handling,
                        consumer,
                        Delivery(self.world, self.points, line, name),
                    )
                    continue
                await self.service.deliver(arrived(line))
                with self.points.effect("broker: acknowledge"):
                    self.world.acknowledged.append(id=name)

    async def wait_out(self) -> None:
        """What handlers failed on is tried again until nothing waits."""
        room = self.service.waiting_room(concurrency=1)
        for _ in range(ROUNDS):
            if not self.world.waiting():
                return
            if not await room.run_once():
                self.let_time_pass()
        raise TimeoutError("messages wait for ever")

    async def handle_again(self) -> None:
        """Brokers deliver twice: nothing may come of it."""
        for line in self.world.arrivals.read():
            if not line.get("odd"):  # it would be a dead letter once more, each time
                await self.service.deliver(arrived(line))
        await self.relay()

    async def people_decide(self) -> None:
        """Somebody mends what did not work, and replays; what cannot be read is given up."""
        if not self.world.undecided():
            return
        self.world.mended.append(mended=True)
        decision = Decision("grace", "it is mended")
        letters = DeadLetters(self.database)
        await letters.replay_all(decision).run_async()
        for key in self.world.parked():
            seen = await self.database.look(letters.parked, key)
            await self.database.run(letters.unpark, key, seen, decision)
        messages = WaitingMessages(self.database)
        for message in await messages.list(state="dead"):
            if message.error_code in ("unreadable", "altered"):
                await messages.discard(message, decision)
            else:
                await messages.retry(message, decision)

    async def come_to_rest(self) -> None:
        """All that is left is done."""
        for _ in range(ROUNDS):
            await self.handle()
            await self.wait_out()
            await self.carry_on()
            await self.relay()
            await self.people_decide()
            if not (
                self.world.unfinished()
                or self.world.pending()
                or self.world.waiting()
                or self.world.undecided()
            ):
                return
        raise TimeoutError("the service did not come to rest")

    def publisher(self) -> Publisher:
        """To its broker."""
        if self.broker == "local":
            return LocalPublisher(self.shop.delivers(self), concurrency=1)
        return RecordingPublisher(self.world, self.points)

    def stop_programs(self) -> None:
        """Relays and housekeeping give back their threads and connections."""
        for relay in self._relays:
            relay.store.connection.close()
        for housekeeping in self._houses:
            housekeeping._thread.close(lambda: None)

    def held(self) -> dict[str, int]:
        """Connections that are checked out, by driver."""
        counts: Counter[str] = Counter()
        for engine in self.engines():
            counts[engine.dialect.driver] += engine.pool.checkedout()  # type: ignore[attr-defined]
        return {driver: count for driver, count in counts.items() if count}

    def in_threads(self) -> int:
        """Handlers that are in threads: nobody can cancel those."""
        return len(self.service.handling._attempts.watch._inside)

    def engines(self) -> list[sa.Engine]:
        """All it connects by."""
        databases = (self.database, *self._others)
        return [
            engine
            for d in databases
            for engine in (
                d.engine,
                d.program_engine,
                d.async_engine.sync_engine,
                d.lease_engine.sync_engine,
            )
        ]

    async def end(self) -> None:
        """Gives back what it holds, dead or alive; inside its event loop.

        No thread of it goes on.
        """
        for orchestrator in self._orchestrators:
            orchestrator._threads.shutdown()
        self.stop_programs()
        self.service._threads.shutdown()
        if self.points.dead:
            self.points.bury(self.world.observer)
        else:
            for other in self._others:
                await other.close()
            await self.database.async_engine.dispose()
            await self.database.lease_engine.dispose()
            self.database.engine.dispose()
            self.database.program_engine.dispose()
