"""Everything that may come to a participant for one step, in every order and two at a time."""

from __future__ import annotations

import asyncio
from itertools import permutations

import sqlalchemy as sa

from outbox_saga.commanding import Answer
from outbox_saga.participants import CANCELLED
from tests.saga.shipping import Shipping, commands

NAMES = ("do", "do again", "undo", "undo again", "late do")
SHIPPED = ({"parcel": "P7"}, "")
REFUSED: tuple[dict[str, str], str] = ({}, CANCELLED)


async def in_every_order(shipping: Shipping) -> int:
    """How many orders were tried; AssertionError names the first that came to something wrong."""
    orders = list(permutations(NAMES))
    for order in orders:
        before = _empty(shipping)
        sent = commands()
        for name in order:
            await shipping.service.deliver(sent[name])
        _check(shipping, order, before, undone_first="undo" in order[0])
    return len(orders)


async def in_pairs(shipping: Shipping) -> int:
    """Each ordered pair at one moment, then the others; how many pairs were tried."""
    pairs = list(permutations(NAMES, 2))
    for pair in pairs:
        before = _empty(shipping)
        sent = commands()
        await asyncio.gather(*(shipping.service.deliver(sent[name]) for name in pair))
        for name in NAMES:
            if name not in pair:
                await shipping.service.deliver(sent[name])
        _, did = shipping.facts()
        _check(shipping, pair, before, undone_first=did[before:] == [])
    return len(pairs)


def answers(shipping: Shipping) -> list[Answer]:
    """In the order in which they were committed."""
    outbox = shipping.service.database.tables.outbox
    with shipping.service.database.engine.connect() as connection:
        bodies = connection.scalars(
            sa.select(outbox.c.body)
            .where(outbox.c.topic == "orders.replies")
            .order_by(outbox.c.position)
        )
        return [Answer.model_validate_json(body) for body in bodies]


def _check(shipping: Shipping, order: tuple[str, ...], before: int, *, undone_first: bool) -> None:
    left, did = shipping.facts()
    told = answers(shipping)
    assert left == [], order
    assert did[before:] == ([] if undone_first else ["do", "undo"]), order
    assert len(told) == len(NAMES), order
    for answer in told:
        said = (answer.data, answer.reason)
        if answer.direction == "undo":
            assert answer.done, order
        else:
            assert answer.done != undone_first, order
            assert said == (REFUSED if undone_first else SHIPPED), order


def _empty(shipping: Shipping) -> int:
    """No answers of before; how much the handlers did before."""
    database = shipping.service.database
    with database.begin() as connection:
        connection.execute(sa.delete(database.tables.outbox))
    return len(shipping.facts()[1])
