"""One start of the service.

Everything that is in memory, watched by crash points, and gone when it dies.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from uuid import UUID

from outbox_saga import Service
from outbox_saga.brokers.contract import ACCEPTED, Outcome, Publisher, Settled
from outbox_saga.brokers.local import LocalPublisher
from outbox_saga.envelopes import Envelope
from outbox_saga.queries.clock import Clock
from outbox_saga.saga.orchestrator import Orchestrator
from outbox_saga.testing.crash_points import CrashPoints
from outbox_saga_relay.relay import Relay
from tests.crash.planted import SOUND, Code
from tests.crash.provider import Provider
from tests.crash.shop import Shop
from tests.crash.world import World

A_WHILE = 120.0  # seconds: every lease has run out, and most backoffs
ROUNDS = 60  # a run that has not come to rest by then never will
PAGE = 2  # rows: so that a few messages are several pages


class RecordingPublisher:
    """A broker that keeps everything, in a log that outlives us.

    Each message is an effect of its own.
    """

    def __init__(self, world: World, points: CrashPoints) -> None:
        self._world = world
        self._points = points

    async def open(self) -> None:
        pass

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        for envelope in envelopes:
            with self._points.effect("broker: store a message"):
                self._world.broker.append(
                    id=str(envelope.id),
                    key=envelope.key,
                    body=base64.b64encode(envelope.body).decode(),
                )
        return [ACCEPTED] * len(envelopes)

    async def close(self) -> None:
        pass


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
    ) -> None:
        self.world = world
        self.points = points
        self.code = code
        self.broker = broker
        self.database = world.database(later)
        points.watch(self.database)
        self.shop = Shop(Provider(world.ledger, points, world.questions), sagas)
        self.service = Service("crash", database=self.database, sagas=self.shop.sagas.values())
        self.shop.register(self.service)
        self._orchestrators: list[Orchestrator] = []
        self._relays: list[Relay] = []

    def let_time_pass(self) -> None:
        """Leases run out and backoffs end, without anybody waiting."""
        self.database.clock = Clock(self.database.clock.shift + A_WHILE)

    async def carry_on(self) -> None:
        """Every saga ends."""
        orchestrator = self.code.orchestrator(self.database, self.shop.sagas.values())
        self._orchestrators.append(orchestrator)
        for _ in range(ROUNDS):
            if not self.world.unfinished():
                return
            if not await orchestrator.run_once():
                self.let_time_pass()
        raise TimeoutError("the sagas did not come to an end")

    async def relay(self) -> None:
        """Every message leaves."""
        for _ in range(ROUNDS):
            relay = self.code.relay(self.database, self._publisher(), page_rows=PAGE)
            self._relays.append(relay)
            while await relay.run_once():
                pass
            await relay.store.release_lease()
            if not self.world.pending():
                return
            self.let_time_pass()
        raise TimeoutError("the messages did not all leave")

    async def handle(self) -> None:
        """What the broker has for our handlers is handled and acknowledged, one after another."""
        acknowledged = {line["id"] for line in self.world.acknowledged.read()}
        for line in self.world.arrivals.read():
            if line["id"] not in acknowledged:
                await self.service.deliver(_arrived(line))
                with self.points.effect("broker: acknowledge"):
                    self.world.acknowledged.append(id=line["id"])

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
            await self.service.deliver(_arrived(line))
        await self.relay()

    async def come_to_rest(self) -> None:
        """All that is left is done."""
        for _ in range(ROUNDS):
            await self.handle()
            await self.wait_out()
            await self.carry_on()
            await self.relay()
            if not (self.world.unfinished() or self.world.pending() or self.world.waiting()):
                return
        raise TimeoutError("the service did not come to rest")

    def _publisher(self) -> Publisher:
        if self.broker == "local":
            return LocalPublisher(self.service.deliver, concurrency=1)
        return RecordingPublisher(self.world, self.points)

    async def end(self) -> None:
        """Gives back what it holds, dead or alive; inside its event loop.

        No thread of it goes on.
        """
        for orchestrator in self._orchestrators:
            orchestrator._threads.shutdown()
        for relay in self._relays:
            relay.store.close()
        self.service._threads.shutdown()
        if self.points.dead:
            self.points.bury(self.world.observer)
        else:
            await self.database.async_engine.dispose()
            self.database.engine.dispose()
            self.database.program_engine.dispose()


def arriving(envelope: Envelope) -> dict[str, str | None]:
    """An envelope as a line of the arrivals' log."""
    return {
        "id": str(envelope.id),
        "topic": envelope.topic,
        "key": envelope.key,
        "type": envelope.type,
        "body": base64.b64encode(envelope.body).decode(),
    }


def _arrived(line: dict[str, str]) -> Envelope:
    return Envelope(
        id=UUID(line["id"]),
        topic=line["topic"],
        key=line["key"],
        type=line["type"],
        body=base64.b64decode(line["body"]),
        correlation_id=line["id"],
    )
