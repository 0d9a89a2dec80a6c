"""The shelf: each line of an order is taken from it, sold or put back by its own statements.

`stock + reserved + sold` of a product never changes. Lines go in the order of their product
numbers, so that two orders of the same products do not wait for each other in a circle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from outbox_saga.results import Failure, Result, Success
from outbox_saga_relay.demo.tables import Product, Reservation


async def reserve(
    session: AsyncSession, order_id: int, wanted: Mapping[int, int]
) -> Result[None, str]:
    """Every line reserved, or the reason why the first one of them could not be.

    Args:
        session: Of the step. After a Failure its transaction is rolled back, and the lines that
            had been reserved before are on the shelf again.
        order_id: For whom.
        wanted: The quantity of each product.
    """
    for done, (product_id, quantity) in enumerate(sorted(wanted.items())):
        match await _reserve_line(session, order_id, product_id, quantity):
            case Failure(reason):
                undone = f"; {done} of {len(wanted)} lines go back" if done else ""
                return Failure(f"{reason}{undone}")
            case Success():
                continue
    return Success()


async def _reserve_line(
    session: AsyncSession, order_id: int, product_id: int, quantity: int
) -> Result[None, str]:
    # the condition stands in the UPDATE: what a SELECT has seen may be gone when it is acted on
    enough = (Product.id == product_id) & (Product.stock >= quantity)
    if not await _move(session, enough, stock=-quantity, reserved=quantity):
        left = await session.scalar(select(Product.stock).where(Product.id == product_id))
        return Failure(f"product {product_id}: {left} left, {quantity} wanted")
    session.add(Reservation(order_id=order_id, product_id=product_id, quantity=quantity))
    return Success()


async def sell(session: AsyncSession, order_id: int) -> None:
    """What is reserved for the order is sold."""
    for line in await _lines(session, order_id, "held"):
        moved = {"reserved": -line.quantity, "sold": line.quantity}
        await _move(session, Product.id == line.product_id, **moved)
        line.state = "sold"


async def take_back(session: AsyncSession, order_id: int) -> None:
    """What was sold with the order is merely reserved again."""
    for line in await _lines(session, order_id, "sold"):
        moved = {"sold": -line.quantity, "reserved": line.quantity}
        await _move(session, Product.id == line.product_id, **moved)
        line.state = "held"


async def release(session: AsyncSession, order_id: int) -> int:
    """What is reserved for the order is on the shelf again; gives the number of its lines."""
    lines = await _lines(session, order_id, "held")
    for line in lines:
        moved = {"reserved": -line.quantity, "stock": line.quantity}
        await _move(session, Product.id == line.product_id, **moved)
        line.state = "released"
    return len(lines)


async def _move(session: AsyncSession, which: ColumnElement[bool], **by: int) -> bool:
    """Whether the product was there and its columns have changed by these numbers."""
    columns = {name: getattr(Product, name) + number for name, number in by.items()}
    changed = await session.execute(
        update(Product).where(which).values(columns).execution_options(synchronize_session=False)
    )
    return cast("CursorResult[Any]", changed).rowcount == 1


async def _lines(session: AsyncSession, order_id: int, state: str) -> Sequence[Reservation]:
    """The order's lines in that state; one that was moved on already is not moved twice."""
    found = await session.scalars(
        select(Reservation)
        .where(Reservation.order_id == order_id, Reservation.state == state)
        .order_by(Reservation.product_id)
        .with_for_update()
    )
    return found.all()
