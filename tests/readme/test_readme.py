"""What the README shows is run: its program as a program, its fragments with what they assume."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

import outbox_saga
from outbox_saga import Event, Saga, nothing_to_undo
from outbox_saga.queries import sagas
from outbox_saga.queries.relay import pending
from outbox_saga_migrations import upgrade
from outbox_saga_relay.cli import main

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(), re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]

pytestmark = pytest.mark.anyio


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


class Stock(Base):
    __tablename__ = "stock"
    sku: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[int]


class OrderData(BaseModel):
    order_id: int = 0
    sku: str = "tea"
    quantity: int = 3
    total: int = 500
    reserved: int = 0
    charge: str = ""


class StockReserved(Event, topic="stock"):
    sku: str


def assumed() -> dict[str, Any]:
    """The public names, as after `from outbox_saga import …`, and the reader's own models."""
    names: dict[str, Any] = {name: getattr(outbox_saga, name) for name in outbox_saga.__all__}
    return names | {
        "OrderData": OrderData,
        "Stock": Stock,
        "StockReserved": StockReserved,
        "__name__": "readme",
    }


@pytest.fixture
def engine(tmp_path: Path) -> sa.Engine:
    made = sa.create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    with made.begin() as connection:
        upgrade(connection)
        Base.metadata.create_all(connection)
    return made


def test_the_first_code_stands_in_the_first_25_lines() -> None:
    assert "```python" in "\n".join(README.read_text().splitlines()[:25])


async def test_the_first_fragment_writes_order_message_and_saga_together(
    engine: sa.Engine, tmp_path: Path
) -> None:
    async def act(step: Any) -> None: ...

    names = assumed() | {
        "Session": sessionmaker(engine, expire_on_commit=False),
        "order": Order(id=1),
        "fulfil_order": Saga("fulfil_order", data=OrderData).step(
            "a", act, compensation=nothing_to_undo
        ),
    }

    exec(PYTHON[0], names)

    tables = outbox_saga.Database(f"sqlite:///{tmp_path / 'shop.db'}").tables
    with engine.connect() as connection:
        assert connection.execute(sa.select(Order.id)).scalars().all() == [1]
        assert connection.execute(sa.select(tables.outbox.c.key)).scalars().all() == ["order:1"]
        assert connection.execute(sa.select(tables.saga.c.name)).scalars().all() == [
            "fulfil_order"
        ]


def test_the_whole_program_handles_its_message_once(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PYTHON[1])
    commands = [line for line in SHELL if "shop.db" in line or line.startswith("python shop.py")]
    told = ""
    for command in commands:
        words = shlex.split(command, comments=True)
        program = (
            [sys.executable, "-m", "outbox_saga_relay"]
            if words[0] == "outbox-saga"
            else [sys.executable]
        )
        done = subprocess.run(
            [*program, *words[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told = done.stdout

    assert told == "handled once: 1\n"
    assert "# handled once: 1" in commands[-1]


class Payments:
    """The reader's payment client."""

    def __init__(self) -> None:
        self.charged: dict[str, int] = {}

    async def charge(self, total: int, *, idempotency_key: str) -> str:
        self.charged.setdefault(idempotency_key, total)
        return idempotency_key

    async def refund(self, charge: str, *, idempotency_key: str) -> None:
        raise AssertionError("nothing is refunded here")


async def test_the_saga_completes_and_moves_stock_and_money(
    engine: sa.Engine, tmp_path: Path
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(Stock).values(sku="tea", quantity=10))
    payments = Payments()
    names = assumed() | {"URL": f"sqlite:///{tmp_path / 'shop.db'}", "payments": payments}

    exec(PYTHON[2], names)

    service: outbox_saga.Service = names["service"]
    async with service.unit_of_work() as uow:
        names["fulfil_order"].start(uow, OrderData(order_id=1))
    orchestrator = service.orchestrator()
    async with asyncio.timeout(20):
        while await service.database.look(sagas.unfinished, service.database.tables):
            await orchestrator.run_once()
    orchestrator.close()

    assert list(payments.charged.values()) == [500]
    assert await service.database.look(pending, service.database.tables) == 1
    with engine.connect() as connection:
        assert connection.execute(sa.select(Stock.quantity)).scalar_one() == 7
    await service.close()


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("outbox-saga ")])
def test_every_command_that_is_shown_exists_with_its_options(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    options = [word for word in words if word.startswith("--")]
    names = [word for word in words[:2] if not word.startswith("-") and ":" not in word]

    shown = CliRunner().invoke(main, [*names, "--help"])

    assert shown.exit_code == 0, shown.output
    for option in options:
        assert option in shown.output
