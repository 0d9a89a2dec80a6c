"""Amounts of something by name, money or goods, and a line for each change of them.

It does what it is told and looks at nothing: that it happens once is the library's affair. But
for events that come in no order: whoever was cancelled gets nothing any more.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

metadata = sa.MetaData()
amount = sa.Table(
    "amounts",
    metadata,
    sa.Column("name", sa.String(50), primary_key=True),
    sa.Column("left", sa.Integer, nullable=False),
)
# no unique key on purpose: what happens twice must show
line = sa.Table(
    "lines",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("order_id", sa.Integer, nullable=False),
    sa.Column("name", sa.String(50), nullable=False),
    sa.Column("taken", sa.Integer, nullable=False),  # below 0: given back
)
cancelled = sa.Table(
    "cancelled",
    metadata,
    sa.Column("order_id", sa.Integer, primary_key=True, autoincrement=False),
)


async def take(session: AsyncSession, order_id: int, name: str, much: int) -> bool:
    """So much is taken for this order (below 0: given back); False: there is not so much."""
    taken = await session.execute(
        sa.update(amount)
        .where(amount.c.name == name, amount.c.left >= much)
        .values(left=amount.c.left - much)
        .returning(amount.c.left)
    )
    if taken.first() is None:
        return False
    values = {"order_id": order_id, "name": name, "taken": much}
    await session.execute(sa.insert(line).values(values))
    return True


async def take_unless_cancelled(
    session: AsyncSession, order_id: int, name: str, much: int
) -> bool:
    """As `take`, for events."""
    await _alone(session, order_id)
    found = await session.execute(sa.select(cancelled).where(cancelled.c.order_id == order_id))
    return found.first() is None and await take(session, order_id, name, much)


async def cancel(session: AsyncSession, order_id: int) -> None:
    """What was taken for this order is given back, and nothing is taken any more."""
    await _alone(session, order_id)
    await session.execute(sa.insert(cancelled).values(order_id=order_id))
    found = await session.execute(sa.select(line).where(line.c.order_id == order_id))
    for row in found.all():
        await take(session, order_id, row.name, -row.taken)


async def _alone(session: AsyncSession, order_id: int) -> None:
    """Nobody else handles an event of this order until the end of the transaction."""
    await session.execute(sa.select(sa.func.pg_advisory_xact_lock(order_id)))
