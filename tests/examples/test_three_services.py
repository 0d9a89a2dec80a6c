"""Three services with a database each, as their README starts them; one is killed meanwhile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from outbox_saga.tables import tables_in
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database

EXAMPLE = Path(__file__).parents[2] / "examples" / "three_services"
SERVICES = ("orders", "inventory", "payments")
PATIENCE = 120.0


class Three:
    """The example in a folder of its own.

    Args:
        urls: Of the database of each service.
    """

    def __init__(self, folder: Path, urls: dict[str, str], broker: str) -> None:
        self.folder = Path(shutil.copytree(EXAMPLE, folder / "three"))
        self.env = {**os.environ, "BROKER": broker}
        self.env |= {f"{name.upper()}_DATABASE": url for name, url in urls.items()}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        for url in urls.values():
            engine = sa.create_engine(url, poolclass=sa.NullPool)
            with engine.begin() as connection:
                upgrade(connection)

    def begin(self, name: str) -> None:
        command = [sys.executable, "-m", "outbox_saga_relay", "run", f"{name}:service"]
        command += ["--log-level", "error"]
        self.running[name] = subprocess.Popen(command, cwd=self.folder, env=self.env)

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait()

    @contextmanager
    def all(self) -> Iterator[None]:
        for name in SERVICES:
            self.begin(name)
        try:
            yield
        finally:
            for process in self.running.values():
                process.terminate()
            for process in self.running.values():
                process.wait(30)

    def place(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "place.py", *words],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.mark.databases("postgres18")
@pytest.mark.parametrize("how", [(), ("--by-events",)], ids=["by-commands", "by-events"])
def test_the_books_of_all_three_agree_though_one_may_be_killed(
    database: Database,
    fresh_database: Any,
    nats_url: str,
    tmp_path: Path,
    how: tuple[str, ...],
) -> None:
    name = f"three-{uuid4().hex[:12]}"
    broker = f"{nats_url}?stream={name}&prefix={name}&create=1"
    urls = {"orders": database.url}
    urls |= {each: fresh_database(database.name).url for each in SERVICES[1:]}
    three = Three(tmp_path, urls, broker)
    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    table = tables_in(None).saga
    ended = sa.select(sa.func.count()).where(table.c.ended_at.is_not(None))
    with three.all():
        placing = three.place("24", *how)
        deadline = time.monotonic() + PATIENCE
        while not how:  # one killing is enough: its leases have to run out
            with engine.connect() as connection:
                if connection.execute(ended).scalar_one() >= 3:
                    three.kill("payments")
                    three.begin("payments")
                    break
            assert time.monotonic() < deadline, placing.communicate()[1]
        out, err = placing.communicate(timeout=PATIENCE)
    assert placing.returncode == 0, out + err
    counts, books = out.splitlines()
    assert books == "the books of the three services agree"
    found = {state: int(count) for count, state in re.findall(r"(\d+) (\w+)", counts)}
    assert sum(found.values()) == 24
    assert set(found) == {"confirmed", "cancelled"}  # there is not enough for all
    with engine.connect() as connection:
        states = set(connection.scalars(sa.select(table.c.state)))
    assert states == {"completed", "compensated"}


CANCELLED_FIRST = """
import asyncio
import inventory
from messages import OrderCancelled, OrderPlaced
from sqlalchemy.ext.asyncio import AsyncSession
from outbox_saga.envelopes import seal

async def main():
    service = inventory.service
    async with service.database.async_begin() as connection:
        await connection.run_sync(inventory.Base.metadata.create_all)
    async with AsyncSession(service.database.async_engine) as session, session.begin():
        session.add(inventory.Shelf(sku="tea", free=9, reserved=0))
    order = OrderPlaced(order_id=1, sku="tea", quantity=2, customer="ada", cents=900)
    await service.deliver(seal(OrderCancelled(order_id=1), key="order:1"))
    await service.deliver(seal(order, key="order:1"))
    async with AsyncSession(service.database.async_engine) as session:
        shelf = await session.get(inventory.Shelf, "tea")
        print(shelf.free, shelf.reserved)
    await service.close()

asyncio.run(main())
"""


def test_a_cancellation_that_comes_before_its_order_reserves_nothing(tmp_path: Path) -> None:
    three = Three(tmp_path, {"inventory": f"sqlite:///{tmp_path / 'inventory.db'}"}, "local")
    done = subprocess.run(
        [sys.executable, "-c", CANCELLED_FIRST],
        cwd=three.folder,
        env=three.env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout.split() == ["9", "0"], done.stdout + done.stderr
