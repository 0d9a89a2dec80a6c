"""What is true at the end, from every side: the shop's tables, ours, the provider, the logs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import sqlalchemy as sa

from outbox_saga.tables import Tables
from outbox_saga_relay.demo.tables import (
    Noted,
    Order,
    OrderLine,
    OrderRequest,
    Product,
    Reservation,
    User,
)
from outbox_saga_relay.demo.watch import DatabaseWatch

# what the inbox logs when a message comes that was handled before
DUPLICATE_RECORD = " outbox_saga.inbox duplicate dropped: "


@dataclass(frozen=True, slots=True)
class SagaEnd:
    """How an instance ended, or how far it got."""

    id: str
    state: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class OutboxEnd:
    """What our tables hold at the end.

    Args:
        waiting: Messages not yet published.
        blocked: Keys that wait or are parked.
        dead: Dead letters.
        handled: Inbox rows: messages handled, once for each consumer.
    """

    waiting: int
    blocked: tuple[str, ...]
    dead: tuple[str, ...]
    handled: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the checks look at; rows are dictionaries of columns.

    Args:
        products, users, orders, reservations: The shop's tables.
        requests: Ids of the orders that came in.
        order_lines: Quantity and amount by (order, product).
        noted: What the handlers noted.
        onboardings: The sagas of customers, by customer.
        orderings: The sagas of orders, by order.
        outbox: What our tables hold.
        ledger: What the provider did.
        duplicates: Deliveries that the inbox dropped.
        stored_by_broker: Distinct messages the broker keeps; None for the local one, which keeps
            none: there a message is published when it is handled.
    """

    products: tuple[Mapping[str, Any], ...]
    users: tuple[Mapping[str, Any], ...]
    orders: tuple[Mapping[str, Any], ...]
    reservations: tuple[Mapping[str, Any], ...]
    requests: tuple[int, ...]
    order_lines: tuple[Mapping[str, Any], ...]
    noted: tuple[Mapping[str, Any], ...]
    onboardings: Mapping[str, SagaEnd]
    orderings: Mapping[int, SagaEnd]
    outbox: OutboxEnd
    ledger: Mapping[str, list[dict[str, Any]]]
    duplicates: int
    stored_by_broker: int | None

    @property
    def published(self) -> int:
        """Distinct messages that reached the broker."""
        if self.stored_by_broker is not None:
            return self.stored_by_broker
        return self.outbox.handled

    def orders_that(self, state: str) -> list[int]:
        """The orders whose saga is in this state."""
        return [order for order, saga in self.orderings.items() if saga.state == state]


def gather(
    watch: DatabaseWatch, *, provider_url: str, logs: Iterable[Path], stored_by_broker: int | None
) -> Facts:
    """The facts as they are now, when every process but the provider has ended."""
    tables = watch.database.tables
    ledger = httpx2.get(f"{provider_url}/ledger", timeout=30.0, trust_env=False)
    ledger.raise_for_status()
    with watch.reading() as connection:

        def rows(model: type[Any]) -> tuple[Mapping[str, Any], ...]:
            found = connection.execute(sa.select(model.__table__))
            return tuple(dict(zip(found.keys(), row, strict=True)) for row in found)

        sagas = connection.execute(
            sa.select(
                tables.saga.c.id,
                tables.saga.c.name,
                tables.saga.c.business_key,
                tables.saga.c.state,
                tables.saga.c.reason,
            ).order_by(tables.saga.c.id)
        ).all()
        ends = {
            (row.name, str(row.business_key).partition(":")[2]): SagaEnd(
                str(row.id), row.state, row.reason
            )
            for row in sagas
        }
        return Facts(
            products=rows(Product),
            users=rows(User),
            orders=rows(Order),
            reservations=rows(Reservation),
            requests=tuple(connection.scalars(sa.select(OrderRequest.id))),
            order_lines=rows(OrderLine),
            noted=rows(Noted),
            onboardings={
                key: end for (name, key), end in ends.items() if name == "user_onboarding"
            },
            orderings={
                int(key): end for (name, key), end in ends.items() if name == "order_processing"
            },
            outbox=_outbox_end(connection, tables),
            ledger=ledger.json(),
            duplicates=count_duplicates(logs),
            stored_by_broker=stored_by_broker,
        )


def _outbox_end(connection: sa.Connection, tables: Tables) -> OutboxEnd:
    def count(table: sa.Table) -> int:
        return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0

    return OutboxEnd(
        waiting=count(tables.outbox),
        blocked=tuple(connection.scalars(sa.select(tables.blocked_key.c.key))),
        dead=tuple(map(str, connection.scalars(sa.select(tables.dead_letter.c.id)))),
        handled=count(tables.inbox),
    )


def count_duplicates(logs: Iterable[Path]) -> int:
    """How often the inbox said in these logs that it dropped a duplicate."""
    count = 0
    for log in logs:
        with log.open(encoding="utf-8", errors="replace") as lines:
            count += sum(DUPLICATE_RECORD in line for line in lines)
    return count
