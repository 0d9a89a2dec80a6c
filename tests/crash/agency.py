"""The travel agency whose process dies: what its sagas do, and what it does for other's sagas.

It takes part in its own sagas: the commands go by its outbox and its own broker to its handlers.
Sagas that are made of this: `journey_sagas`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import (
    Command,
    Event,
    Failure,
    Saga,
    Service,
    StepContext,
    Success,
    SyncStepContext,
)
from outbox_saga.commanding import Asked
from outbox_saga.envelopes import Envelope
from outbox_saga.saga.events import SagaEvent
from tests.crash.provider import Provider
from tests.crash.shop import PIECES, PRICE, did
from tests.crash.tables import effect, move
from tests.crash.world import World

if TYPE_CHECKING:
    from tests.crash.process import Process

TAKEN_PART = ("car", "bike")  # steps that the agency's handlers carry out, by command
DOWN = 3  # requests that find the provider down, before it is up


class RentCar(Command, topic="crash.cars"):
    """Done by an `async def` handler."""

    trip: int
    car: str


class ReturnCar(Command, topic="crash.cars"):
    """Undoes it."""

    trip: int


class RentBike(Command, topic="crash.bikes"):
    """Done by a plain `def` handler."""

    trip: int


class ReturnBike(Command, topic="crash.bikes"):
    """Undoes it."""

    trip: int


class PayBack(Command, topic="crash.cars"):
    """Undoes what no command has done."""

    trip: int


class Paid(Event, topic="crash.payments"):
    """What sagas wait for."""

    trip: int
    cents: int


class Declined(Event, topic="crash.payments"):
    """It will not come."""

    trip: int


class Travels(SagaEvent, topic="crash.travels"):
    """What is told of the sagas."""


class Trip(BaseModel):
    """What the sagas carry."""

    trip: int
    car: str = "red"
    rented: str | None = None
    deposit: int | None = None
    paid: int | None = None
    charged: bool = False
    booked: bool = False


class Agency:
    """The service in one process.

    Args:
        provider: The outside world.
        wanted: The sagas it defines.
        world: Where it is written whether the provider is up, and whether somebody has mended
            what was broken.
    """

    def __init__(self, provider: Provider, wanted: Collection[str], world: World) -> None:
        from tests.crash.journey_sagas import DEFINED

        self._provider = provider
        self._world = world
        self.sagas: dict[str, Saga[Any]] = {name: DEFINED[name](self) for name in wanted}
        self.overtake: Callable[[], Awaitable[None]] | None = None

    def register(self, service: Service) -> None:
        """The handlers of the commands."""
        service.handles(RentCar, undo=ReturnCar)(self.rent)
        service.handles(ReturnCar)(self.give_back)
        service.handles(RentBike, undo=ReturnBike)(self.rent_in_thread)
        service.handles(ReturnBike)(self.give_back_in_thread)
        service.handles(PayBack)(self.pay_back)

    def delivers(self, process: Process) -> Callable[[Envelope], Awaitable[object]]:
        """As any local broker; on a journey nobody asks: see `journeys.carry`."""
        return process.service.deliver

    # --- local steps -----------------------------------------------------------------------------

    async def book(self, step: StepContext[Trip]) -> dict[str, bool]:
        for statement in _local(step):
            await step.session.execute(statement)
        return {"booked": True}

    async def unbook(self, step: StepContext[Trip]) -> None:
        for statement in _local(step):
            await step.session.execute(statement)

    def settle(self, step: SyncStepContext[Trip]) -> None:
        for statement in _local(step):
            step.session.execute(statement)

    async def refuse(self, step: StepContext[Trip]) -> Failure[str]:
        await self.book(step)  # half a step that must not stay
        return Failure("not today")

    async def book_when_mended(self, step: StepContext[Trip]) -> None:
        await self.book(step)
        self._must_be_mended()

    async def unbook_when_mended(self, step: StepContext[Trip]) -> None:
        await self.unbook(step)
        self._must_be_mended()

    async def book_at_last(self, step: StepContext[Trip]) -> None:
        await self.book(step)
        if step.attempt < 3:
            raise RuntimeError("the desk fell over")

    def _must_be_mended(self) -> None:
        if not self._world.mended.read():
            raise RuntimeError("broken")

    # --- external steps --------------------------------------------------------------------------

    async def charge(self, step: StepContext[Trip]) -> dict[str, bool]:
        self._provider.act(step, PRICE)
        return {"charged": True}

    async def refund(self, step: StepContext[Trip]) -> None:
        self._provider.act(step, -PRICE)

    def charge_in_thread(self, step: SyncStepContext[Trip]) -> None:
        self._provider.act(step, PRICE)

    def refund_in_thread(self, step: SyncStepContext[Trip]) -> None:
        self._provider.act(step, -PRICE)

    async def charge_unless_down(self, step: StepContext[Trip]) -> dict[str, bool]:
        if len(self._world.refused.read()) < DOWN:
            self._world.refused.append(step=step.step)
            raise ConnectionError("nobody there")
        return await self.charge(step)

    async def charge_slowly(self, step: StepContext[Trip]) -> dict[str, bool]:
        """At its first attempt somebody else takes the instance over meanwhile."""
        answer = await self.charge(step)
        if self.overtake is not None and step.attempt == 1:
            overtake, self.overtake = self.overtake, None
            await overtake()
        return answer

    async def charge_too_late(self, step: StepContext[Trip]) -> dict[str, bool]:
        """As `charge_slowly`, but the other side acts only when the one who took over is done."""
        if step.attempt > 1:
            raise ConnectionError("nobody there")
        if self.overtake is not None:
            overtake, self.overtake = self.overtake, None
            await overtake()
        self._provider.act(step, PRICE)
        return {"charged": True}

    async def was_charged(self, step: StepContext[Trip]) -> dict[str, bool] | None:
        return {"charged": True} if self._provider.knows(step) else None

    # --- as a participant ------------------------------------------------------------------------

    async def rent(self, handle: Any) -> Any:
        for statement in _taken_part(handle):
            await handle.session.execute(statement)
        if handle.message.car == "none":
            return Failure("no such car")
        return Success({"rented": handle.message.car})

    async def give_back(self, handle: Any) -> None:
        for statement in _taken_part(handle):
            await handle.session.execute(statement)

    def rent_in_thread(self, handle: Any) -> None:
        for statement in _taken_part(handle):
            handle.session.execute(statement)

    def give_back_in_thread(self, handle: Any) -> None:
        for statement in _taken_part(handle):
            handle.session.execute(statement)

    async def pay_back(self, handle: Any) -> None:
        await asyncio.sleep(0)
        for statement in _taken_part(handle):
            await handle.session.execute(statement)


def _local(step: StepContext[Trip] | SyncStepContext[Trip]) -> list[sa.UpdateBase]:
    return [*_moved(step.step, step.direction), did(step)]


def _taken_part(handle: Any) -> list[sa.UpdateBase]:
    asked = Asked.of(handle.envelope)
    assert asked is not None
    noted = sa.insert(effect).values(
        saga_id=str(asked.saga), step=asked.step, direction=asked.direction
    )
    return [*_moved(asked.step, asked.direction), noted]


def _moved(step: str, direction: str) -> list[sa.Update]:
    """What a step moves in our database, or moves back, whoever does it."""
    goods = step in TAKEN_PART
    source, target = ("stock", "reserved") if goods else ("buyer", "shop")
    accounts = (source, target) if direction == "do" else (target, source)
    return move(*accounts, PIECES if goods else PRICE)
