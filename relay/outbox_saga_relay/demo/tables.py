"""The shop's own tables, beside ours in one database."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Integer, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SERIAL = BigInteger().with_variant(Integer(), "sqlite")


class ShopTable(DeclarativeBase):
    """Every table of the shop."""


class Product(ShopTable):
    """What is on the shelf, what is promised, and what is gone: together they never change."""

    __tablename__ = "shop_product"
    __table_args__ = (CheckConstraint("stock >= 0 and reserved >= 0 and sold >= 0"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(200))
    supplied: Mapped[int]
    stock: Mapped[int]
    reserved: Mapped[int] = mapped_column(default=0)
    sold: Mapped[int] = mapped_column(default=0)


class User(ShopTable):
    """A customer who was welcomed, and what the ledger has counted for them."""

    __tablename__ = "shop_user"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    email: Mapped[str] = mapped_column(String(200))
    confirmed_orders: Mapped[int] = mapped_column(default=0)
    spent_cents: Mapped[int] = mapped_column(BigInteger, default=0)


class OrderRequest(ShopTable):
    """An order as it came in, written in the transaction that starts its saga."""

    __tablename__ = "shop_order_request"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[str] = mapped_column(String(40))


class Reservation(ShopTable):
    """One line of an order, taken from the shelf. `state`: held, sold or released."""

    __tablename__ = "shop_reservation"

    order_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    product_id: Mapped[int] = mapped_column(ForeignKey("shop_product.id"), primary_key=True)
    quantity: Mapped[int]
    state: Mapped[str] = mapped_column(String(10), default="held")


class Order(ShopTable):
    """An order that was paid for. `state`: created or cancelled."""

    __tablename__ = "shop_order"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[str] = mapped_column(String(40))
    total_cents: Mapped[int] = mapped_column(BigInteger)
    payment_id: Mapped[str] = mapped_column(String(60))
    state: Mapped[str] = mapped_column(String(10), default="created")


class OrderLine(ShopTable):
    """One line of an order that was paid for."""

    __tablename__ = "shop_order_line"

    order_id: Mapped[int] = mapped_column(ForeignKey("shop_order.id"), primary_key=True)
    product_id: Mapped[int] = mapped_column(ForeignKey("shop_product.id"), primary_key=True)
    quantity: Mapped[int]
    amount_cents: Mapped[int] = mapped_column(BigInteger)


class Noted(ShopTable):
    """What the handlers have noted, a row each time one ran.

    Nothing here is unique, on purpose: a message that is handled twice would stand here twice.
    """

    __tablename__ = "shop_noted"

    number: Mapped[int] = mapped_column(SERIAL, primary_key=True)
    message_id: Mapped[str] = mapped_column(String(36))
    event: Mapped[str] = mapped_column(String(40))
    subject: Mapped[str] = mapped_column(String(40))
