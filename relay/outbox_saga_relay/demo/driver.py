"""The run: customers, then orders in sequence, while processes are killed; what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from outbox_saga_relay.demo.checks import Check, check_all
from outbox_saga_relay.demo.events import OrderPlaced
from outbox_saga_relay.demo.facts import Facts, gather
from outbox_saga_relay.demo.kills import Kill, Killer, Victim
from outbox_saga_relay.demo.onboarding import UserData
from outbox_saga_relay.demo.ordering import OrderData
from outbox_saga_relay.demo.orders import Customer, OrderBook, OrderIn
from outbox_saga_relay.demo.processes import stop_all
from outbox_saga_relay.demo.tables import OrderRequest
from outbox_saga_relay.demo.world import World, world

_LOOK_EVERY = 0.01  # seconds between two looks at what has ended
_CHECK_EVERY = 1.0  # seconds between two looks at the processes
# seconds without any saga ending, after which the run gives up and says which are unfinished
_PATIENCE = 60.0


class Observer(Protocol):
    """Whoever shows how far it is."""

    def phase(self, name: str, total: int) -> None:
        """Something begins that has so many parts."""

    def progress(self, started: int, ended: int) -> None:
        """So many of them."""

    def killed(self, kill: Kill) -> None:
        """A process was killed and started again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does.

    Args:
        book: Products, customers and orders.
        concurrency: Unfinished sagas at most; 1 is strictly one after the other.
        kills: How often a process is killed.
        seed: Of the moments at which they are.
        faults: The seed of what goes wrong; None: nothing.
        postgres, nats: A server of each instead of SQLite and the local broker.
    """

    book: OrderBook
    concurrency: int = 8
    kills: int = 0
    seed: int = 1
    faults: int | None = 1
    postgres: bool = False
    nats: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    facts: Facts
    checks: list[Check]
    kills: list[Kill]
    seconds: float

    @property
    def ok(self) -> bool:
        """Every check holds."""
        return all(check.ok for check in self.checks)


def carry_out(plan: Plan, observer: Observer) -> Outcome:
    """Run all of it and look at the result; nothing is left running.

    Raises:
        ConfigurationError: A server that was asked for is not to be had here.
        ProcessEnded: A process ended that nobody had killed.
    """
    started = time.monotonic()
    observer.phase("starting", 0)
    with world(
        supplied=plan.book.products, faults=plan.faults, postgres=plan.postgres, nats=plan.nats
    ) as running:
        run = _Run(running, plan, observer)
        run.onboard(plan.book.customers)
        run.order(plan.book.orders)
        run.come_to_rest()
        stop_all(running.workers)
        facts = gather(
            running.watch,
            provider_url=running.settings.provider_url,
            logs=[process.log for process in running.workers],
            stored_by_broker=None if running.nats is None else running.nats.count().stored,
        )
    return Outcome(
        facts=facts,
        checks=check_all(facts, run.killer.kills, kills_wanted=plan.kills),
        kills=run.killer.kills,
        seconds=round(time.monotonic() - started, 1),
    )


class _Run:
    """One run, between its start and its rest."""

    def __init__(self, running: World, plan: Plan, observer: Observer) -> None:
        self._world = running
        self._concurrency = plan.concurrency
        self._observer = observer
        self._ended = 0
        self._checked = time.monotonic()
        self.killer = Killer(
            _victims(running),
            kills=plan.kills,
            sagas=len(plan.book.customers) + len(plan.book.orders),
            seed=plan.seed,
        )

    def onboard(self, customers: Sequence[Customer]) -> None:
        """One saga per customer."""
        shop = self._world.shop

        def start(customer: Customer) -> UUID:
            with shop.service.unit_of_work() as uow:
                return shop.onboarding.start(
                    uow,
                    UserData(user_id=customer.id, name=customer.name, email=customer.email),
                    business_key=f"user:{customer.id}",
                )

        self._observer.phase("customers", len(customers))
        self._carry([lambda c=c: start(c) for c in customers])  # type: ignore[misc]

    def order(self, orders: Sequence[OrderIn]) -> None:
        """One saga per order, in their sequence, started in the transaction that takes it in."""
        shop = self._world.shop

        def start(order: OrderIn) -> UUID:
            data = OrderData(
                order_id=order.id,
                customer_id=order.customer_id,
                lines=list(order.lines),
                freight_cents=order.freight_cents,
            )
            with shop.service.unit_of_work() as uow:
                uow.session.add(OrderRequest(id=order.id, customer_id=order.customer_id))
                uow.publish(
                    OrderPlaced(order_id=order.id, customer_id=order.customer_id), key=data.key
                )
                return shop.ordering.start(uow, data, business_key=data.key)

        self._observer.phase("orders", len(orders))
        self._carry([lambda o=o: start(o) for o in orders])  # type: ignore[misc]

    def _carry(self, starts: Sequence[Callable[[], UUID]]) -> None:
        """Start them in sequence, with so many unfinished at most, until all have ended."""
        unfinished: set[UUID] = set()
        waiting = iter(starts)
        started = ended = 0
        for _ in self._looks():
            gone = self._world.watch.ended(unfinished) if unfinished else []
            unfinished.difference_update(gone)
            ended += len(gone)
            self._ended += len(gone)
            while len(unfinished) < self._concurrency and started < len(starts):
                unfinished.add(next(waiting)())
                started += 1
            self._observer.progress(started, ended)
            if ended == len(starts):
                return

    def come_to_rest(self) -> None:
        """The kills that are left, and then until every message is published and handled."""
        self._observer.phase("coming to rest", 0)
        for _ in self._looks():
            if self.killer.planned:
                self._tick(last=True)
            elif not self._world.watch.waiting_rows():
                count = None if self._world.nats is None else self._world.nats.count()
                if count is None or not count.delivered + count.waiting:
                    return

    def _looks(self) -> Iterator[None]:
        """Time goes by, processes are killed; ends when nothing has ended for too long."""
        before, since = self._ended, time.monotonic()
        while True:
            yield
            if self._ended != before:
                before, since = self._ended, time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                return
            self._tick(last=False)
            if time.monotonic() - self._checked > _CHECK_EVERY:
                self._world.check()
                self._checked = time.monotonic()
            time.sleep(_LOOK_EVERY)

    def _tick(self, *, last: bool) -> None:
        kill = self.killer.tick(self._ended, last=last)
        if kill is not None:
            self._observer.killed(kill)


def _victims(running: World) -> list[Victim]:
    watch = running.watch
    victims = [
        Victim(
            running.orchestrator,
            "instances under its lease",
            watch.leased_instances,
            watch.bury_owners,
        ),
        Victim(running.relay, "messages in the outbox", watch.waiting_rows),
    ]
    if running.consumer is not None and running.nats is not None:
        victims.append(
            Victim(running.consumer, "messages not acknowledged", running.nats.delivered)
        )
    return victims
