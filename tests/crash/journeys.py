"""A saga of the agency on its way: whoever carries it on finds by itself what is to be done next.

So the process that comes after a death does the very same: starts what was not started, delivers
what was not delivered, and decides what nobody has decided.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga import Decision
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.errors import ActionRefused, SeenChanged
from outbox_saga.instances import OVER_FOR_GOOD, Instance
from outbox_saga.messages import Message
from outbox_saga.queries import sagas_seen
from outbox_saga.queries.clock import Clock
from outbox_saga.saga.operating import SagaOperations
from outbox_saga.unit_of_work import unit_of_work
from tests.crash import agency as ours
from tests.crash.agency import Agency, Trip
from tests.crash.journey_post import lost, posted, read
from tests.crash.journey_sagas import other_shape
from tests.crash.process import A_WHILE, Process
from tests.crash.tables import OURS, order

ADA = Decision("ada", "it is mended")
TRIP = 7
KEY = f"trip:{TRIP}"
LONGER = 5  # times a while that somebody waits, when nothing happens again and again
TURNS = 60  # a journey that has not ended by then never will

# something that somebody outside does: whether there was anything to do
Move = Callable[[Process, Instance], Awaitable[bool]]
Act = Callable[[SagaOperations, Instance], Awaitable[None]]


# --- how it begins -------------------------------------------------------------------------------


async def start(process: Process, car: str) -> None:
    """The order and its saga, in one transaction of the caller's; once."""
    (definition,) = process.shop.sagas.values()
    make = sessionmaker(process.database.engine, class_=Session)
    with unit_of_work(make, source="crash") as uow:
        if uow.session.execute(sa.select(order)).first() is None:
            id_ = definition.start(uow, Trip(trip=TRIP, car=car), business_key=KEY)
            uow.session.execute(sa.insert(order).values(saga_id=str(id_)))


async def start_async(process: Process, car: str) -> None:
    """As `start`, with an AsyncSession."""
    (definition,) = process.shop.sagas.values()
    make = async_sessionmaker(process.database.async_engine, class_=AsyncSession)
    async with unit_of_work(make, source="crash") as uow:
        if (await uow.session.execute(sa.select(order))).first() is None:
            id_ = definition.start(uow, Trip(trip=TRIP, car=car), business_key=KEY)
            await uow.session.execute(sa.insert(order).values(saga_id=str(id_)))


# --- what others do ------------------------------------------------------------------------------


def brings(message: Message, *, when: Callable[[Process, Instance], bool]) -> Move:
    """The event comes; again, until it has been acknowledged."""

    async def move(process: Process, seen: Instance) -> bool:
        envelope = _event(message, seen.id)
        told = {line["id"] for line in process.world.acknowledged.read()}
        brought = {line["id"] for line in process.world.arrivals.read()}  # or was about to be
        if str(envelope.id) in told or not (str(envelope.id) in brought or when(process, seen)):
            return False
        with process.points.effect("broker: bring an event"):
            process.world.arrivals.append(**posted(envelope))
        await process.service.deliver(envelope)
        with process.points.effect("broker: acknowledge"):
            process.world.acknowledged.append(id=str(envelope.id))
        return True

    return move


def _event(message: Message, saga: UUID) -> Envelope:
    sealed = seal(message, key=KEY, source="bank", correlation_id=str(saga))
    return Envelope(
        id=uuid5(saga, f"{message.type_name} {message.to_body()!r}"),
        topic=sealed.topic,
        key=sealed.key,
        type=sealed.type,
        body=sealed.body,
        source=sealed.source,
        correlation_id=sealed.correlation_id,
    )


def listening(process: Process, seen: Instance) -> bool:
    """The saga waits for its event."""
    del process
    return any(step.phase == "listening" for step in seen.state.steps.values())


def for_the(step: str) -> Callable[[Process, Instance], bool]:
    """That step of the saga waits for it."""
    return lambda process, seen: seen.state.steps[step].phase == "listening"


def late(process: Process, seen: Instance) -> bool:
    """It waits, and its deadline has passed."""
    return listening(process, seen) and process.database.clock.shift > 1_500.0


def at_once(process: Process, seen: Instance) -> bool:
    """Before anybody has taken the saga up."""
    del process, seen
    return True


def decides(act: Act, *, when: str = "stuck", mends: bool = True) -> Move:
    """A person does this once, when the saga is in that state.

    Args:
        mends: What was broken is mended before.
    """

    async def move(process: Process, seen: Instance) -> bool:
        if seen.state.status != when or (when == "running" and not listening(process, seen)):
            return False
        if mends and not process.world.mended.read():
            process.world.mended.append(mended=True)
        sagas = SagaOperations(process.database, process.shop.sagas.values())
        try:
            await act(sagas, seen)
        except (SeenChanged, ActionRefused):
            return False  # somebody was faster
        return True

    return move


async def parks(process: Process, seen: Instance) -> bool:
    """A process without its definition finds it, when nobody has taken it up for long."""
    assert isinstance(process.shop, Agency)
    if seen.revision or seen.state.status != "running":
        return False
    process.let_time_pass()
    orchestrator = process.new_orchestrator(other_shape(process.shop))
    await orchestrator.run_once()
    return True


async def is_overtaken(process: Process, seen: Instance) -> bool:
    """While a call of the one who has it is under way, its lease ends and another one goes on."""
    assert isinstance(process.shop, Agency)

    async def overtake() -> None:
        shift = process.database.clock.shift
        other = process.new_orchestrator()
        for _ in range(4):
            process.let_time_pass()
            while await other.run_once():
                pass
        # the one that was overtaken knows nothing of all that time
        process.database.clock = Clock(max(shift, process.database.clock.shift))

    if process.shop.overtake is None and seen.revision == 0:
        process.shop.overtake = overtake
    return False


# --- how it goes on ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Journey:
    """How a saga goes: who starts it, and what others do meanwhile.

    Args:
        moves: Tried in each turn, before the orchestrator goes on.
        car: What is to be rented.
        starts: Its start.
    """

    moves: Sequence[Move] = ()
    car: str = "red"
    starts: Callable[[Process, str], Awaitable[None]] = start

    async def go(self, process: Process) -> None:
        """From wherever it is to its end."""
        await self.starts(process, self.car)
        orchestrator, idle = process.new_orchestrator(), 0
        for _ in range(TURNS):
            seen = await _instance(process)
            moved = False
            for move in self.moves:
                moved = await move(process, seen) or moved
            while await orchestrator.run_once():
                moved = True
            moved = await carry(process) or moved
            if process.world.waiting():
                await process.wait_out()
                moved = True
            idle = 0 if moved else idle + 1
            if not moved:
                if seen.state.status in OVER_FOR_GOOD:
                    return
                process.let_time_pass(A_WHILE * min(idle, LONGER))
        raise TimeoutError(f"the saga did not come to an end: {await _instance(process)}")


async def _instance(process: Process) -> Instance:
    tables = process.database.tables
    (found,) = await process.database.look(sagas_seen.list_sagas, tables)
    return found


async def carry(process: Process) -> bool:
    """A relay, in a process of its own which does not die, hands our messages to our handlers.

    How relays die is another proof's affair (2.8); here it would hide what is looked for.
    """
    outbox, observer = OURS.outbox, process.world.observer
    with observer.connect() as connection:
        rows = list(connection.execute(sa.select(outbox).order_by(outbox.c.position)))
    for row in rows:
        envelope = Envelope.from_row(row.id, row.topic, row.key, row.headers, row.body)
        with process.points.effect("broker: carry a message"):
            process.world.broker.append(**posted(envelope))
        if not lost(envelope, process.shop.sagas):
            await process.service.deliver(envelope)
        with observer.begin() as connection:
            connection.execute(sa.delete(outbox).where(outbox.c.position == row.position))
    return bool(rows)


async def everything_comes_again(process: Process) -> None:
    """What was lost comes now, and all that was ever on its way comes once more."""
    lines = [*process.world.broker.read(), *process.world.arrivals.read()]
    for line in {line["id"]: line for line in lines}.values():
        await process.service.deliver(read(line))
    await process.wait_out()
    await carry(process)
    orchestrator = process.new_orchestrator()
    while await orchestrator.run_once():
        pass
    await carry(process)


def paid(cents: int = 1) -> Message:
    """The money is there."""
    return ours.Paid(trip=TRIP, cents=cents)


def declined() -> Message:
    """It will not come."""
    return ours.Declined(trip=TRIP)
