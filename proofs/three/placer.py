"""Places orders until there are enough, at most eight that have not ended at a time.

Any number of them may run. What one has placed it knows from the database and from nowhere else:
whoever was killed during a commit cannot know, and its successor asks only once that transaction
has ended, one way or the other.
"""

from __future__ import annotations

import asyncio
import random
import sys

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from outbox_saga.errors import CommitUnknown
from outbox_saga.testing.invariants import GOOD_ENDS
from proofs.three.orders import SAGAS, OrderData, change, order, service

IN_FLIGHT = 8
LOOKS = 0.15  # seconds between two looks
WAITS = 0.3  # after trouble with the database
ONE_AT_A_TIME = 3005  # the number of a lock

CUSTOMERS = ("ada", "grace", "mary")
SKUS = ("tea", "coffee", "salt")
POOR, SOLD_OUT = "charles", "sugar"
KINDS = {"by_commands": 0.4, "by_events": 0.35, "in_haste": 0.25}
REFUSED = 0.08  # of all, for each reason there is
PRICE = 450


def drawn(seed: str, number: int) -> tuple[str, OrderData]:
    """The saga that sees this order through, and what it is told: the same at each time."""
    chance = random.Random(f"{seed} {number}")
    quantity = chance.randint(1, 9)
    return chance.choices(list(KINDS), list(KINDS.values()))[0], OrderData(
        order_id=number,
        sku=SOLD_OUT if chance.random() < REFUSED else chance.choice(SKUS),
        quantity=quantity,
        customer=POOR if chance.random() < REFUSED else chance.choice(CUSTOMERS),
        cents=PRICE * quantity,
        withdrawn=chance.random() < REFUSED,
    )


async def place(count: int, seed: str) -> bool | None:
    """One order and its saga, in one transaction; False: eight are on their way. None: enough."""
    saga = service.database.tables.saga
    alive = sa.select(sa.func.count()).where(saga.c.state.not_in(GOOD_ENDS))
    async with service.unit_of_work() as uow:
        session = uow.session
        await session.execute(sa.select(sa.func.pg_advisory_xact_lock(ONE_AT_A_TIME)))
        number = 1 + (await session.scalar(sa.select(sa.func.max(order.c.id))) or 0)
        if number > count:
            return None
        if (await session.scalar(alive) or 0) >= IN_FLIGHT:
            return False
        name, data = drawn(seed, number)
        values = data.model_dump(exclude={"order_id", "withdrawn"})
        row = {"id": number, "saga": name, "state": "new", **values}
        await session.execute(sa.insert(order).values(row))
        await session.execute(sa.insert(change).values(order_id=number, state="new"))
        SAGAS[name].start(uow, data, business_key=f"order:{number}")
    return True


async def main(count: int, seed: str) -> None:
    """Until there are enough."""
    while True:
        try:
            placed = await place(count, seed)
        except (DBAPIError, CommitUnknown) as error:
            print(f"placer: {type(error).__name__}", file=sys.stderr)
            await asyncio.sleep(WAITS)
            continue
        if placed is None:
            break
        if not placed:
            await asyncio.sleep(LOOKS)
    await service.close()
