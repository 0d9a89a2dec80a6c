"""Two services with a database each.

Orders, whose saga commands, and shipping, which takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import Command, Event, Failure, Retry, Saga, Service, Success, nothing_to_undo
from outbox_saga.brokers.local import LocalPublisher
from outbox_saga.commanding import Asked
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.ids import new_id
from outbox_saga.queries.clock import Clock
from outbox_saga.saga.operating import SagaOperations
from outbox_saga_migrations import upgrade
from outbox_saga_relay.relay import Relay

metadata = sa.MetaData()
parcel = sa.Table(
    "parcel",
    metadata,
    sa.Column("order_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.String(20), nullable=False),
)
log = sa.Table(  # of what the handlers did and committed
    "handler_log",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("what", sa.String(20), nullable=False),
)


class ShipOrder(Command, topic="shipping"):
    order_id: int
    address: str


class CancelShipment(Command, topic="shipping"):
    order_id: int
    parcel: str | None = None


class Shipped(Event, topic="shipped"):
    order_id: int


class Order(BaseModel):
    order_id: int
    address: str = "Lovelace Road 1"
    parcel: str | None = None
    paid: bool = False


async def pay(step: Any) -> dict[str, bool]:
    return {"paid": True}


async def unpay(step: Any) -> None: ...


def ordering(*, after: Callable[[Any], Any] | None = None, **options: Any) -> Saga[Order]:
    settings: dict[str, Any] = {
        "timeout": 60.0, "retry": Retry(max_attempts=2), "compensation": CancelShipment, **options,
    }  # fmt: skip
    saga = Saga("ordering", data=Order)
    saga.step("pay", pay, compensation=unpay).step("ship", ShipOrder, **settings)
    return saga if after is None else saga.step("after", after, compensation=nothing_to_undo)


class Shipping:
    """The participant. `hook` is called inside the handler of the command.

    Args:
        watch: Is shown its database, before anything connects to it.
        later: Seconds that its clock is ahead.
        broker: As of its Service.
    """

    def __init__(
        self,
        url: str,
        *,
        threads: bool = False,
        watch: Callable[[Database], None] | None = None,
        later: float = 0.0,
        broker: str = "local",
    ) -> None:
        self.hook: Callable[[Any], Any] = lambda _: None
        self.keys: list[str] = []
        self.service = Service("shipping", database=url, broker=broker, clock=Clock(later))
        self._take_part(threads=threads)
        if watch is not None:
            watch(self.service.database)
            return  # its tables are there
        with self.service.database.begin() as connection:
            upgrade(connection)
        with self.service.database.begin() as connection:
            metadata.create_all(connection)

    def _take_part(self, *, threads: bool) -> None:
        service = self.service

        def shipped(handle: Any) -> list[sa.Insert]:
            order_id = handle.message.order_id
            self.keys.append(handle.key)
            handle.publish(Shipped(order_id=order_id))
            return [
                sa.insert(parcel).values(order_id=order_id, number=f"P{order_id}"),
                sa.insert(log).values(what="do"),
            ]

        def cancelled(handle: Any) -> list[Any]:
            return [
                sa.delete(parcel).where(parcel.c.order_id == handle.message.order_id),
                sa.insert(log).values(what="undo"),
            ]

        def answer(handle: Any) -> Any:
            hooked = self.hook(handle)
            return Success({"parcel": f"P{handle.message.order_id}"}) if hooked is None else hooked

        if threads:

            @service.handles(ShipOrder, undo=CancelShipment)
            def ship(handle: Any) -> Any:
                for statement in shipped(handle):
                    handle.session.execute(statement)
                return answer(handle)

            @service.handles(CancelShipment)
            def cancel(handle: Any) -> None:
                for statement in cancelled(handle):
                    handle.session.execute(statement)

        else:

            @service.handles(ShipOrder, undo=CancelShipment)
            async def ship_async(handle: Any) -> Any:
                for statement in shipped(handle):
                    await handle.session.execute(statement)
                return answer(handle)

            @service.handles(CancelShipment)
            async def cancel_async(handle: Any) -> None:
                for statement in cancelled(handle):
                    await handle.session.execute(statement)

    def facts(self) -> tuple[list[int], list[str]]:
        """The orders that are shipped, and what the handlers did, in their order."""
        with self.service.database.engine.connect() as connection:
            orders = list(connection.scalars(sa.select(parcel.c.order_id)))
            return orders, list(connection.scalars(sa.select(log.c.what).order_by(log.c.id)))


class House:
    """Both services. What one publishes is handed to both when `carry` is called.

    Args:
        watch: Is shown each database of orders, before anything connects to it.
        later: Seconds that orders' clock is ahead.
    """

    def __init__(
        self,
        orders_url: str,
        shipping: Shipping,
        saga: Saga[Order],
        *,
        watch: Callable[[Database], None] | None = None,
        later: float = 0.0,
    ) -> None:
        self.saga = saga
        self.shipping = shipping
        self.url = orders_url
        self._watch = watch
        self._later = later
        self.services: list[Service] = []
        self.orders = self._orders()
        self.carried: list[Envelope] = []
        if watch is not None:
            return  # its tables are there
        with self.orders.database.begin() as connection:
            upgrade(connection)

    def _orders(self, later: float = 0.0) -> Service:
        clock = Clock(self._later + later)
        service = Service("orders", database=self.url, sagas=[self.saga], clock=clock, poll=0.02)
        if self._watch is not None:
            self._watch(service.database)
        self.services.append(service)
        return service

    async def start(self, order_id: int = 7) -> UUID:
        async with self.orders.unit_of_work() as uow:
            return self.saga.start(uow, Order(order_id=order_id))

    async def orchestrate(self, later: float = 0.0) -> None:
        """As far as the sagas go now, or so many seconds later."""
        service = self._orders(later)
        orchestrator = service.orchestrator()
        try:
            while await orchestrator.run_once():
                pass
        finally:
            orchestrator.close()
            await service.close()

    async def carry(self, *services: Service, lose: bool = False) -> list[Envelope]:
        """What these services (both) have committed is delivered to both, or lost on the way."""
        begun = len(self.carried)

        async def deliver(envelope: Envelope) -> int:
            self.carried.append(envelope)
            if lose:
                return 1  # for the broker it is gone
            counts = [await s.deliver(envelope) for s in (self.orders, self.shipping.service)]
            return sum(counts)

        for service in services or (self.orders, self.shipping.service):
            publisher = LocalPublisher(deliver, concurrency=4, timeout=30.0)
            await Relay(service.database, publisher, listen=False).run_until_empty()
        return self.carried[begun:]

    async def state(self, id_: UUID) -> Any:
        instance, _ = await SagaOperations(self.orders.database).show(id_)
        return instance.state

    async def history(self, id_: UUID) -> list[str]:
        _, history = await SagaOperations(self.orders.database).show(id_)
        return [
            " ".join(filter(None, (h.entry.transition, h.entry.step, h.entry.detail)))
            for h in history
        ]

    async def to_and_fro(self, later: float = 0.0) -> None:
        """Until nothing moves any more."""
        while True:
            await self.orchestrate(later)
            if not await self.carry():
                return

    async def close(self) -> None:
        await self.orders.close()
        await self.shipping.service.close()


def commands(saga: UUID | None = None) -> dict[str, Envelope]:
    """Everything that may come for one step: the command, sent three times, and its undoing."""
    id_ = saga or new_id()

    def command(direction: Any, attempt: int) -> Envelope:
        asked = Asked(id_, "ship", direction, 0, attempt, "orders.replies")
        message: Command = (
            ShipOrder(order_id=7, address="x") if direction == "do" else CancelShipment(order_id=7)
        )
        return seal(message, key=str(id_), headers=asked.headers(), source="orders")

    return {
        "do": command("do", 1),
        "do again": command("do", 2),
        "undo": command("undo", 1),
        "undo again": command("undo", 2),
        "late do": command("do", 3),
    }


REFUSED = Failure("nobody ships there")
