"""The two sagas of the guide, each failing step of each in turn, on real tables and real HTTP."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga.queries import sagas
from outbox_saga.results import Success
from outbox_saga.saga import StepContext
from outbox_saga_relay.demo.assembly import Shop
from outbox_saga_relay.demo.client import ProviderClient
from outbox_saga_relay.demo.faults import Faults
from outbox_saga_relay.demo.onboarding import Onboarding, UserData
from outbox_saga_relay.demo.ordering import Line, OrderData, OrderProcessing
from outbox_saga_relay.demo.pace import LEASE
from outbox_saga_relay.demo.tables import Order, OrderLine, Product, Reservation, User
from tests.demo.in_process import Planned, RunningProvider, open_shop
from tests.fixtures.databases import Database

pytestmark = pytest.mark.databases("sqlite", "postgres18", "mariadb")

ALL_LINES = ((1, 3), (2, 4))  # product, quantity
TOTAL = 3 * 500 + 4 * 250 + 99


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[RunningProvider]:
    running = RunningProvider(tmp_path / "ledger.db")
    yield running
    running.close()


def furnish(shop: Shop, *, users: tuple[str, ...] = ("ANATR",)) -> None:
    with shop.service.unit_of_work() as uow:
        for number in (1, 2):
            uow.session.add(Product(id=number, name="x", supplied=5, stock=5, reserved=0, sold=0))
        for user in users:
            uow.session.add(User(id=user, name=user, email=f"{user}@example.org"))


async def to_the_end(shop: Shop) -> str:
    """Carries on whatever is due until nothing is unfinished; the state of the one saga."""
    orchestrator = shop.service.orchestrator(poll=0.01)
    database = shop.service.database
    async with asyncio.timeout(60):
        while await database.look(sagas.unfinished, database.tables):
            await orchestrator.run_once()
    orchestrator.close()
    with database.begin() as connection:
        state = connection.execute(sa.select(database.tables.saga.c.state)).scalar_one()
    return str(state)


def place(shop: Shop, lines: tuple[tuple[int, int], ...] = ALL_LINES) -> None:
    prices = {1: 500, 2: 250}
    data = OrderData(
        order_id=10,
        customer_id="ANATR",
        lines=[
            Line(product_id=product, quantity=quantity, unit_price_cents=prices[product])
            for product, quantity in lines
        ],
        freight_cents=99,
    )
    with shop.service.unit_of_work() as uow:
        shop.ordering.start(uow, data, business_key=data.key)


def shelf(shop: Shop) -> dict[int, tuple[int, int, int]]:
    """Stock, reserved and sold of each product."""
    with shop.service.database.begin() as connection:
        return {
            row.id: (row.stock, row.reserved, row.sold)
            for row in connection.execute(sa.select(Product.__table__))
        }


def values(shop: Shop, column: Any) -> list[Any]:
    with shop.service.database.begin() as connection:
        return list(connection.scalars(sa.select(column)))


def events(shop: Shop) -> list[str]:
    with shop.service.database.begin() as connection:
        outbox = shop.service.database.tables.outbox
        headers = connection.scalars(sa.select(outbox.c.headers).order_by(outbox.c.position))
        return [str(h).partition('"type":"')[2].partition('"')[0] for h in headers]


async def test_an_order_that_nothing_stands_against_is_completed(
    database: Database, provider: RunningProvider
) -> None:
    shop = open_shop(database.url, provider, Planned())
    furnish(shop)
    place(shop)
    assert await to_the_end(shop) == "completed"
    assert shelf(shop) == {1: (2, 0, 3), 2: (1, 0, 4)}
    assert values(shop, Order.state) == ["created"]
    assert sorted(values(shop, OrderLine.amount_cents)) == [1000, 1500]
    assert [c["amount_cents"] for c in provider.books()["charges"]] == [TOTAL]
    assert provider.books()["refunds"] == []
    assert [m["kind"] for m in provider.books()["mails"]] == ["confirmation"]
    assert events(shop) == ["OrderConfirmed"]
    await shop.close()


@pytest.mark.parametrize(
    ("lines", "users", "faults", "charges", "orders", "told"),
    [
        pytest.param(ALL_LINES, (), Planned(), 0, [], [], id="validate: no such user"),
        pytest.param(
            ((1, 2), (9, 1)), ("ANATR",), Planned(), 0, [], [], id="validate: no product"
        ),
        pytest.param(((1, 3), (2, 6)), ("ANATR",), Planned(), 0, [], [], id="reserve: 2nd line"),
        pytest.param(
            ALL_LINES,
            ("ANATR",),
            Planned(no_to=frozenset({"charge"})),
            0,
            [],
            ["OrderRefused"],
            id="pay: declined",
        ),
        pytest.param(
            ALL_LINES,
            ("ANATR",),
            Planned(order="refusal"),
            1,
            [],
            ["OrderRefused"],
            id="create: refused",
        ),
        pytest.param(
            ALL_LINES,
            ("ANATR",),
            Planned(no_to=frozenset({"confirmation"})),
            1,
            ["cancelled"],
            ["OrderCancelled", "OrderRefused"],
            id="confirm: nobody there",
        ),
    ],
)
async def test_an_order_that_fails_at_some_step_leaves_nothing_behind(
    database: Database,
    provider: RunningProvider,
    lines: tuple[tuple[int, int], ...],
    users: tuple[str, ...],
    faults: Planned,
    charges: int,
    orders: list[str],
    told: list[str],
) -> None:
    shop = open_shop(database.url, provider, faults)
    furnish(shop, users=users)
    if lines[-1][0] == 9:
        lines = (lines[0], (2, 1))
        with shop.service.database.begin() as connection:
            connection.execute(sa.delete(Product).where(Product.id == 2))
    place(shop, lines)
    assert await to_the_end(shop) == "compensated"
    assert set(shelf(shop).values()) == {(5, 0, 0)}
    assert set(values(shop, Reservation.state)) <= {"released"}
    assert values(shop, Order.state) == orders
    books = provider.books()
    assert len(books["charges"]) == len(books["refunds"]) == charges
    assert books["mails"] == []
    assert events(shop) == told
    await shop.close()


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("fault", ["lose_request", "lose_reply", "answer_late"])
async def test_whatever_gets_lost_on_the_way_money_moves_once_and_one_mail_goes_out(
    database: Database, provider: RunningProvider, fault: Any
) -> None:
    shop = open_shop(database.url, provider, Planned(first=fault, order="error"))
    furnish(shop)
    place(shop)
    assert await to_the_end(shop) == "completed"
    assert [c["amount_cents"] for c in provider.books()["charges"]] == [TOTAL]
    assert len(provider.books()["mails"]) == 1
    assert values(shop, Order.state) == ["created"]
    await shop.close()


def onboard(shop: Shop) -> None:
    data = UserData(user_id="ALFKI", name="Alfreds", email="a@example.org")
    with shop.service.unit_of_work() as uow:
        shop.onboarding.start(uow, data, business_key="user:ALFKI")


async def test_a_customer_gets_an_account_and_a_welcome(
    database: Database, provider: RunningProvider
) -> None:
    shop = open_shop(database.url, provider, Planned())
    onboard(shop)
    assert await to_the_end(shop) == "completed"
    assert values(shop, User.id) == ["ALFKI"]
    assert [m["about"] for m in provider.books()["mails"]] == ["ALFKI"]
    assert events(shop) == ["UserOnboarded"]
    await shop.close()


async def test_a_customer_who_cannot_be_welcomed_has_no_account(
    database: Database, provider: RunningProvider
) -> None:
    shop = open_shop(database.url, provider, Planned(no_to=frozenset({"welcome"})))
    onboard(shop)
    assert await to_the_end(shop) == "compensated"
    assert values(shop, User.id) == []
    assert events(shop) == []
    await shop.close()


@pytest.mark.databases("sqlite")
async def test_a_killed_orchestrator_is_replaced_within_the_lease_that_the_demo_asks_for(
    database: Database, provider: RunningProvider
) -> None:
    shop = open_shop(database.url, provider, Planned())
    orchestrator = shop.service.orchestrator(lease=LEASE)
    assert orchestrator.lease == LEASE  # a step with a longer timeout would have raised it
    orchestrator.close()
    await shop.close()


@pytest.mark.databases("sqlite")
async def test_the_mails_that_take_another_one_back_go_out_once(
    database: Database, provider: RunningProvider
) -> None:
    del database  # their compensations run only after a success that came when nobody waited
    client = ProviderClient(provider.url)
    order = OrderData(order_id=10, customer_id="ANATR", lines=[], email="a@example.org")
    user = UserData(user_id="ANATR", name="Ana", email="a@example.org")
    for data, compensation in (
        (order, OrderProcessing(client, Faults(None)).send_cancellation),
        (user, Onboarding(client).send_goodbye),
    ):
        step: StepContext[Any] = StepContext(
            saga_id=uuid.uuid4(),
            saga="some",
            step="some",
            direction="undo",
            attempt=1,
            key=uuid.uuid4(),
            data=data,
            source="shop",
            correlation_id="c",
            uow=None,
        )
        assert isinstance(await compensation(step), Success)
        assert isinstance(await compensation(step), Success)
    await client.close()
    assert [m["kind"] for m in provider.books()["mails"]] == ["cancellation", "goodbye"]
