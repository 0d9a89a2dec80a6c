"""Orders out of a seed, for a demo without files: the same seed gives the same orders."""

from __future__ import annotations

import random

from outbox_saga_relay.demo.ordering import Line
from outbox_saga_relay.demo.orders import Customer, OrderBook, OrderIn, Product

_THINGS = ("lamp", "chair", "desk", "shelf", "clock", "kettle", "bowl", "mirror", "rug", "vase")
_COLOURS = ("red", "blue", "green", "black", "white", "amber", "grey")
_DISCOUNTS = (0, 0, 0, 500, 1_000, 2_500)
_MEAN_QUANTITY = 4  # of a line


def generate_orders(count: int, *, seed: int) -> OrderBook:
    """So many orders, of which about a fifth asks for more than there is left.

    Args:
        count: Of orders.
        seed: Of every choice.
    """
    drawn = random.Random(seed)  # noqa: S311 - choices that have to be the same every time
    kinds = max(3, min(60, count // 8))
    # what is ordered in all is about 2 lines an order; four fifths of that is there
    supply = max(2 * _MEAN_QUANTITY, count * 2 * _MEAN_QUANTITY * 4 // (5 * kinds))
    products = tuple(
        Product(
            id=number,
            name=f"{_COLOURS[number % len(_COLOURS)]} {_THINGS[number % len(_THINGS)]} {number}",
            price_cents=drawn.randrange(300, 30_000),
            stock=drawn.randrange(supply // 2, supply * 3 // 2 + 1),
        )
        for number in range(1, kinds + 1)
    )
    customers = tuple(
        Customer(id=f"C{number:04}", name=f"Customer {number}")
        for number in range(1, max(1, count // 8) + 1)
    )
    return OrderBook(
        products,
        customers,
        tuple(
            OrderIn(
                id=number,
                customer_id=drawn.choice(customers).id,
                freight_cents=drawn.randrange(0, 3_000),
                lines=_lines(drawn, products),
            )
            for number in range(1, count + 1)
        ),
    )


def _lines(drawn: random.Random, products: tuple[Product, ...]) -> tuple[Line, ...]:
    return tuple(
        Line(
            product_id=product.id,
            quantity=drawn.randrange(1, 2 * _MEAN_QUANTITY),
            unit_price_cents=product.price_cents,
            discount=drawn.choice(_DISCOUNTS),
        )
        for product in drawn.sample(products, drawn.randrange(1, min(4, len(products)) + 1))
    )
