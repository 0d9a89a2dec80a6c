"""Order files: what is read, and how clearly a bad file is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from outbox_saga.errors import ConfigurationError
from outbox_saga_relay.demo.orders import OrdersRefused, read_orders

GOOD = {
    "products.csv": "product_id,name,unit_price_cents,units_in_stock,discontinued\n"
    "1,Chai,1800,39,0\n"
    '2,"Chang, dark",1900,17,0\n',
    "customers.csv": "customer_id,company,city\nANATR,Ana Trujillo,México D.F.\n",
    "orders.csv": "order_id,customer_id,order_date,freight_cents\n"
    "12,ANATR,1996-07-05,1161\n"
    "10,ANATR,1996-07-04,3238\n",
    "order_lines.csv": "order_id,product_id,quantity,unit_price_cents,discount\n"
    "10,1,12,1400,0.15\n"
    "12,1,1,1000,0.0\n"
    "12,2,5,980,0.125\n",
}

Write = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Writes the good files, some of them exchanged; None leaves one out."""

    def write(changed: dict[str, str | bytes | None] | None = None) -> Path:
        for name, content in {**GOOD, **(changed or {})}.items():
            if isinstance(content, str):
                (tmp_path / name).write_text(content, encoding="utf-8")
            elif isinstance(content, bytes):
                (tmp_path / name).write_bytes(content)
        return tmp_path

    return write


def test_orders_come_in_the_sequence_of_the_file(written: Write) -> None:
    book = read_orders(written())
    assert [order.id for order in book.orders] == [12, 10]
    assert [product.name for product in book.products] == ["Chai", "Chang, dark"]
    assert [customer.email for customer in book.customers] == ["anatr@example.org"]


def test_lines_know_what_they_cost_to_the_cent(written: Write) -> None:
    book = read_orders(written())
    # 5 x 980 less an eighth is 4287.5 cents
    assert [line.amount_cents for line in book.orders[0].lines] == [1000, 4288]
    assert [line.amount_cents for line in book.orders[1].lines] == [14280]


def test_a_byte_order_mark_is_not_part_of_the_first_column(written: Write) -> None:
    book = read_orders(written({"products.csv": b"\xef\xbb\xbf" + GOOD["products.csv"].encode()}))
    assert len(book.products) == 2


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("products.csv", "units_in_stock", "units", "line 1: there is no column units_in_stock"),
        (
            "products.csv",
            "1,Chai,1800,39",
            "1,Chai,18.00,39",
            "line 2: unit_price_cents is '18.00'",
        ),
        ("products.csv", "1,Chai,1800,39", "1,Chai,1800,-3", "line 2: units_in_stock is '-3'"),
        ("products.csv", '2,"Chang', '1,"Chang', "line 3: product_id 1 stands there twice"),
        ("products.csv", "1,Chai", "1,", "line 2: name is ''"),
        ("products.csv", "1,Chai,1800,39,0", "1,Chai,1800", "line 2: give 5 cells"),
        ("products.csv", "1,Chai,1800,39,0", "1,Chai,1800,39,0,0", "line 2: give 5 cells"),
        ("customers.csv", "ANATR,", "A\tB,", "line 2: customer_id is 'A\\tB'"),
        ("orders.csv", "12,ANATR", "12,NOBODY", "line 2: customer_id NOBODY is not in customers"),
        ("orders.csv", "10,ANATR", "12,ANATR", "line 3: order_id 12 stands there twice"),
        ("orders.csv", "12,ANATR", "99999999999,ANATR", "line 2: order_id is '99999999999'"),
        ("order_lines.csv", "10,1,12", "11,1,12", "line 2: order_id 11 is not in orders.csv"),
        ("order_lines.csv", "10,1,12", "10,7,12", "line 2: product_id 7 is not in products.csv"),
        ("order_lines.csv", "10,1,12", "10,1,0", "line 2: quantity is '0'"),
        ("order_lines.csv", "10,1,12", "10,1,²", "line 2: quantity is '²'"),
        ("order_lines.csv", "12,2,5", "12,1,5", "line 4: order_id 12 has product_id 1 twice"),
        ("order_lines.csv", "0.15", "15", "line 2: discount is '15'"),
        ("order_lines.csv", "0.15", "nan", "line 2: discount is 'nan'"),
        ("order_lines.csv", "0.15", "0.12345", "line 2: discount is '0.12345'"),
        ("order_lines.csv", "10,1,12,1400,0.15\n", "", "there is no line for order_id 10"),
        ("order_lines.csv", "10,1,12", '"10,1,12', "order_lines.csv: not CSV"),
    ],
)
def test_a_bad_file_is_refused_with_its_line_and_column(
    written: Write, file: str, old: str, new: str, said: str
) -> None:
    assert old in GOOD[file]
    folder = written({file: GOOD[file].replace(old, new)})
    with pytest.raises(OrdersRefused) as refused:
        read_orders(folder)
    assert str(refused.value).startswith(file)
    assert said in str(refused.value)


def test_a_missing_file_is_named_with_what_the_directory_needs(written: Write) -> None:
    with pytest.raises(ConfigurationError, match=r"orders\.csv cannot be read .* --orders takes"):
        read_orders(written({"orders.csv": None}))


def test_a_file_that_is_not_utf8_is_refused(written: Write) -> None:
    latin = GOOD["customers.csv"].encode("latin-1")
    with pytest.raises(OrdersRefused, match=r"customers\.csv is not UTF-8 at byte"):
        read_orders(written({"customers.csv": latin}))
