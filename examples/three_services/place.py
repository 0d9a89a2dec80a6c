"""Places orders and waits until all of them have ended; then it looks at the books of all three.

python place.py 20            by commands
python place.py 20 --by-events
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

import inventory
import orders
import payments
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

STOCK, MONEY = 30, 30_000
CUSTOMERS, SKUS = ("ada", "grace", "mary"), ("tea", "coffee")
PATIENCE = 120.0  # seconds


async def prepare() -> None:
    """The tables of the three, and something in them; real services have migrations."""
    for module in (inventory, payments, orders):
        async with module.service.database.async_begin() as connection:
            await connection.run_sync(module.Base.metadata.create_all)
    async with AsyncSession(inventory.service.database.async_engine) as session, session.begin():
        if (await session.scalars(select(inventory.Shelf.sku))).first() is None:
            session.add_all(inventory.Shelf(sku=sku, free=STOCK, reserved=0) for sku in SKUS)
    async with AsyncSession(payments.service.database.async_engine) as session, session.begin():
        if (await session.scalars(select(payments.Account.customer))).first() is None:
            session.add_all(payments.Account(customer=c, cents=MONEY) for c in CUSTOMERS)


async def place(count: int, *, by_events: bool) -> range:
    """The ids of the orders, whose sagas have started."""
    saga = orders.by_events if by_events else orders.by_commands
    chance = random.Random()  # noqa: S311 - whatever is ordered
    async with AsyncSession(orders.service.database.async_engine) as session:
        last = await session.scalar(select(func.max(orders.Order.id))) or 0
    ids = range(last + 1, last + 1 + count)
    for id_ in ids:
        quantity = chance.randint(1, 9)
        data = orders.OrderData(
            order_id=id_,
            sku=chance.choice(SKUS),
            quantity=quantity,
            customer=chance.choice(CUSTOMERS),
            cents=450 * quantity,
        )
        async with orders.service.unit_of_work() as uow:  # the order and its saga, or neither
            uow.session.add(orders.Order(id=id_, state="new"))
            saga.start(uow, data, business_key=f"order:{id_}")
    return ids


async def ended(ids: range) -> dict[str, int]:
    """How many orders ended how, once all have."""
    state = orders.Order.state
    async with asyncio.timeout(PATIENCE):
        while True:
            async with AsyncSession(orders.service.database.async_engine) as session:
                found = await session.execute(
                    select(state, func.count()).where(orders.Order.id.in_(ids)).group_by(state)
                )
                counts = {row[0]: row[1] for row in found}
            if set(counts) <= {"confirmed", "cancelled"}:
                return counts
            await asyncio.sleep(0.1)


async def books() -> list[str]:
    """What does not agree between the three."""
    wrong = []
    async with AsyncSession(orders.service.database.async_engine) as session:
        confirmed = set(
            await session.scalars(select(orders.Order.id).where(orders.Order.state == "confirmed"))
        )
    async with AsyncSession(inventory.service.database.async_engine) as session:
        some = inventory.Reservation.quantity > 0
        reserved = set(await session.scalars(select(inventory.Reservation.order_id).where(some)))
        wrong += [
            f"{shelf.sku}: {shelf.free} free and {shelf.reserved} reserved"
            for shelf in await session.scalars(select(inventory.Shelf))
            if shelf.free + shelf.reserved != STOCK
        ]
    async with AsyncSession(payments.service.database.async_engine) as session:
        taken = payments.Payment.state == "taken"
        paid = set(await session.scalars(select(payments.Payment.order_id).where(taken)))
        left = await session.scalar(select(func.sum(payments.Account.cents))) or 0
        cents = await session.scalar(select(func.sum(payments.Payment.cents)).where(taken)) or 0
        if left + cents != MONEY * len(CUSTOMERS):
            wrong.append(f"{left} cents are left, and {cents} were taken")
    if not confirmed == reserved == paid:
        wrong.append(f"confirmed {confirmed}, reserved {reserved}, paid {paid}")
    return wrong


async def main(words: list[str]) -> int:
    """Exit code 0 when the books agree."""
    await prepare()
    counts = await ended(await place(int(words[0]), by_events="--by-events" in words))
    print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    wrong: Any = None
    for _ in range(100):  # what a cancelled order has to give back may be on its way
        if not (wrong := await books()):
            break
        await asyncio.sleep(0.1)
    print("\n".join(wrong) if wrong else "the books of the three services agree")
    for module in (inventory, payments, orders):
        await module.service.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main(sys.argv[1:])))
