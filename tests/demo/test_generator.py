"""Orders out of a seed."""

from __future__ import annotations

import pytest

from outbox_saga_relay.demo.generator import generate_orders


def test_the_same_seed_gives_the_same_orders_and_another_one_others() -> None:
    assert generate_orders(50, seed=7) == generate_orders(50, seed=7)
    assert generate_orders(50, seed=7) != generate_orders(50, seed=8)


@pytest.mark.parametrize("count", [1, 20, 400])
def test_some_orders_can_be_served_and_from_a_dozen_on_some_cannot(count: int) -> None:
    book = generate_orders(count, seed=1)
    left = {product.id: product.stock for product in book.products}
    served = 0
    for order in book.orders:
        if all(left[line.product_id] >= line.quantity for line in order.lines):
            served += 1
            for line in order.lines:
                left[line.product_id] -= line.quantity
    assert len(book.orders) == count
    assert served >= count / 2
    assert served < count or count < 12


def test_every_line_refers_to_a_product_and_every_order_to_a_customer() -> None:
    book = generate_orders(100, seed=3)
    products = {product.id for product in book.products}
    customers = {customer.id for customer in book.customers}
    for order in book.orders:
        ordered = [line.product_id for line in order.lines]
        assert set(ordered) <= products
        assert len(set(ordered)) == len(ordered)
        assert order.customer_id in customers
