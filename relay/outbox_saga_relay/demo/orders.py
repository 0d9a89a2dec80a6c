"""What the shop has and what is ordered of it: four CSV files, checked while they are read.

    products.csv     product_id, name, unit_price_cents, units_in_stock
    customers.csv    customer_id, company
    orders.csv       order_id, customer_id, freight_cents         in the sequence of the file
    order_lines.csv  order_id, product_id, quantity, unit_price_cents, discount

More columns are welcome and not read. Money is whole cents; a discount is a fraction like 0.15.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from outbox_saga.errors import ConfigurationError
from outbox_saga_relay.demo.ordering import Line

MAX_INTEGER = 2**31 - 1
MAX_ID = 40


@dataclass(frozen=True, slots=True)
class Product:
    """A product and how many of it there are."""

    id: int
    name: str
    price_cents: int
    stock: int


@dataclass(frozen=True, slots=True)
class Customer:
    """Somebody who is onboarded before their orders come in."""

    id: str
    name: str

    @property
    def email(self) -> str:
        """An address at a domain that nobody can have."""
        return f"{self.id.lower()}@example.org"


@dataclass(frozen=True, slots=True)
class OrderIn:
    """An order as it comes in."""

    id: int
    customer_id: str
    freight_cents: int
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class OrderBook:
    """Everything a run of the demo starts from."""

    products: tuple[Product, ...]
    customers: tuple[Customer, ...]
    orders: tuple[OrderIn, ...]


class OrdersRefused(ConfigurationError):
    """The order files cannot be used; the message names file, line and column. Mend that line."""


class _Row:
    """One line of a file, whose columns are asked for by kind."""

    def __init__(self, file: str, number: int, cells: Mapping[str, str]) -> None:
        self._file = file
        self._number = number
        self._cells = cells

    def refuse(self, why: str) -> OrdersRefused:
        """The error that names this line."""
        return OrdersRefused(f"{self._file}, line {self._number}: {why}")

    def text(self, column: str, *, longest: int = 200) -> str:
        found = self._cells[column].strip()
        if not found or not found.isprintable() or len(found) > longest:
            raise self.refuse(f"{column} is {found!r}; give 1 to {longest} printable characters")
        return found

    def integer(self, column: str, *, least: int = 0) -> int:
        found = self._cells[column].strip()
        if not (found.isascii() and found.isdecimal() and least <= int(found) <= MAX_INTEGER):
            raise self.refuse(
                f"{column} is {found!r}; give a whole number from {least} to {MAX_INTEGER}"
            )
        return int(found)

    def fraction(self, column: str) -> int:
        """A fraction of 1 in hundredths of a percent."""
        found = self._cells[column].strip()
        try:
            parts = Decimal(found) * 10_000
        except InvalidOperation:
            parts = Decimal(-1)
        if not parts.is_finite() or not 0 <= parts <= 10_000 or parts != int(parts):
            raise self.refuse(
                f"{column} is {found!r}; give a fraction from 0 to 1 of at most four decimals"
            )
        return int(parts)


def read_orders(directory: Path) -> OrderBook:
    """The orders of a directory's four files; raises OrdersRefused for what cannot be used."""
    products: dict[int, Product] = {}
    for row in _rows(directory, "products.csv", "product_id name unit_price_cents units_in_stock"):
        product = Product(
            id=row.integer("product_id"),
            name=row.text("name"),
            price_cents=row.integer("unit_price_cents"),
            stock=row.integer("units_in_stock"),
        )
        if products.setdefault(product.id, product) is not product:
            raise row.refuse(f"product_id {product.id} stands there twice")

    customers: dict[str, Customer] = {}
    for row in _rows(directory, "customers.csv", "customer_id company"):
        customer = Customer(row.text("customer_id", longest=MAX_ID), row.text("company"))
        if customers.setdefault(customer.id, customer) is not customer:
            raise row.refuse(f"customer_id {customer.id} stands there twice")

    heads: dict[int, tuple[str, int]] = {}
    for row in _rows(directory, "orders.csv", "order_id customer_id freight_cents"):
        order_id = row.integer("order_id")
        if order_id in heads:
            raise row.refuse(f"order_id {order_id} stands there twice")
        customer_id = row.text("customer_id", longest=MAX_ID)
        if customer_id not in customers:
            raise row.refuse(f"customer_id {customer_id} is not in customers.csv")
        heads[order_id] = (customer_id, row.integer("freight_cents"))

    lines = _read_lines(directory, heads, products)
    for order_id, of_order in lines.items():
        if not of_order:
            raise OrdersRefused(f"order_lines.csv: there is no line for order_id {order_id}")
    return OrderBook(
        tuple(products.values()),
        tuple(customers.values()),
        tuple(
            OrderIn(order_id, customer_id, freight, tuple(lines[order_id].values()))
            for order_id, (customer_id, freight) in heads.items()
        ),
    )


def _read_lines(
    directory: Path, orders: Mapping[int, object], products: Mapping[int, Product]
) -> dict[int, dict[int, Line]]:
    lines: dict[int, dict[int, Line]] = {order_id: {} for order_id in orders}
    columns = "order_id product_id quantity unit_price_cents discount"
    for row in _rows(directory, "order_lines.csv", columns):
        order_id, product_id = row.integer("order_id"), row.integer("product_id")
        if order_id not in orders:
            raise row.refuse(f"order_id {order_id} is not in orders.csv")
        if product_id not in products:
            raise row.refuse(f"product_id {product_id} is not in products.csv")
        if product_id in lines[order_id]:
            raise row.refuse(f"order_id {order_id} has product_id {product_id} twice")
        lines[order_id][product_id] = Line(
            product_id=product_id,
            quantity=row.integer("quantity", least=1),
            unit_price_cents=row.integer("unit_price_cents"),
            discount=row.fraction("discount"),
        )
    return lines


def _rows(directory: Path, file: str, columns: str) -> Iterator[_Row]:
    """The file's rows, each with a cell for each of these columns."""
    wanted = columns.split()
    try:
        with (directory / file).open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, strict=True)
            missing = [name for name in wanted if name not in (reader.fieldnames or ())]
            if missing:
                raise OrdersRefused(f"{file}, line 1: there is no column {', '.join(missing)}")
            for cells in reader:
                # with a dictionary's own words: more cells than columns, or fewer
                if None in cells or None in cells.values():
                    raise OrdersRefused(
                        f"{file}, line {reader.line_num}: give {len(reader.fieldnames or ())} "
                        "cells, as many as line 1"
                    )
                yield _Row(file, reader.line_num, cells)
    except OSError as error:
        raise OrdersRefused(
            f"{directory / file} cannot be read ({error.strerror}); --orders takes a directory "
            "with products.csv, customers.csv, orders.csv and order_lines.csv"
        ) from error
    except UnicodeDecodeError as error:
        raise OrdersRefused(
            f"{file} is not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise OrdersRefused(f"{file}: not CSV ({error}); quote the cell") from error
