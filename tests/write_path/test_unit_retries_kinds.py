"""Plain and async work with the session it needs, and tasks that are cancelled."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

import outbox_saga
from outbox_saga import CommitUnknown, Event, Retry, UnitOfWork, retry_unit
from tests.write_path.shop import INSERT, Order, Said, Shop
from tests.write_path.units import CONFLICT, kill

servers = pytest.mark.databases("postgres18", "postgres15", "mariadb")


def test_it_is_a_public_name() -> None:
    assert {"retry_unit", "CommitUnknown"} <= set(outbox_saga.__all__)


@pytest.mark.databases("sqlite")
def test_async_work_in_a_plain_session_is_refused_before_it_is_committed(shop: Shop) -> None:
    async def work(uow: UnitOfWork[Session]) -> None:
        raise AssertionError("nobody awaits this")

    def generator(uow: UnitOfWork[Session]) -> Any:
        yield

    def both(uow: UnitOfWork[Session]) -> Any:
        uow.session.execute(INSERT, {"note": "row"})
        return work(uow)

    make = sessionmaker(shop.engine)
    for wrong in (both, generator):
        with pytest.raises(TypeError, match="nobody runs"):
            retry_unit(make, wrong)
    assert shop.notes() == []


@pytest.mark.databases("sqlite")
async def test_plain_work_in_an_async_session_is_refused_before_it_is_committed(
    shop: Shop, async_engine: AsyncEngine
) -> None:
    def work(uow: UnitOfWork[AsyncSession]) -> Any:
        uow.publish(Said(word="never"))
        return "value"

    with pytest.raises(TypeError, match="async def"):
        await retry_unit(async_sessionmaker(async_engine), work)
    assert shop.words() == []


async def test_a_lambda_that_calls_async_work_is_async_work(
    shop: Shop, async_engine: AsyncEngine
) -> None:
    async def place(uow: UnitOfWork[AsyncSession], note: str) -> str:
        await uow.session.execute(INSERT, {"note": note})
        uow.publish(Said(word=note))
        return note

    make = async_sessionmaker(async_engine)
    assert await retry_unit(make, lambda uow: place(uow, "row")) == "row"
    assert (shop.notes(), shop.words()) == (["row"], ["row"])


@servers
def test_it_waits_by_itself_between_attempts(shop: Shop) -> None:
    attempts: list[int] = []

    def work(uow: UnitOfWork[Session]) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            uow.session.execute(sa.text(CONFLICT[shop.engine.dialect.name]))

    retry_unit(sessionmaker(shop.engine), work, retry=Retry(initial=0.001))
    assert len(attempts) == 2


@pytest.mark.databases("sqlite")
def test_what_the_guide_shows_is_placed_once_each(shop: Shop) -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "units-of-work.md"
    first, second = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)

    class OrderPlaced(Event, topic="orders"):
        order_id: int

    def place_numbered(uow: UnitOfWork[Session]) -> None:
        uow.session.add(Order(id=77, note="numbered"))

    names: dict[str, Any] = {"engine": shop.engine, "Order": Order, "OrderPlaced": OrderPlaced}
    exec(first, names)
    names |= {"CommitUnknown": CommitUnknown, "number": 77, "place_numbered": place_numbered}
    exec(second, names)
    assert shop.notes() == ["tea", "tea", "numbered"]
    assert names["is_placed"](CommitUnknown())
    names["number"] = 78
    assert not names["is_placed"](CommitUnknown())


# --- cancellation --------------------------------------------------------------------------------


@servers
async def test_a_task_that_is_cancelled_between_attempts_ends_there(
    shop: Shop, async_engine: AsyncEngine
) -> None:
    attempts: list[int] = []
    asleep = asyncio.Event()

    async def work(uow: UnitOfWork[AsyncSession]) -> None:
        attempts.append(1)
        uow.publish(Said(word="never"))
        await uow.session.execute(sa.text(CONFLICT[async_engine.dialect.name]))

    async def sleep(_: float) -> None:
        asleep.set()
        await asyncio.Event().wait()

    unit = asyncio.create_task(retry_unit(async_sessionmaker(async_engine), work, sleep=sleep))
    await asleep.wait()
    unit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unit
    assert (attempts, shop.words()) == ([1], [])


@servers
async def test_a_task_that_is_cancelled_at_work_ends_there_although_its_rollback_fails(
    shop: Shop, async_engine: AsyncEngine
) -> None:
    attempts: list[int] = []
    at_work = asyncio.Event()

    async def work(uow: UnitOfWork[AsyncSession]) -> None:
        attempts.append(1)
        await uow.session.execute(INSERT, {"note": "never"})
        await uow.session.run_sync(lambda session: kill(shop, session))
        at_work.set()
        await asyncio.Event().wait()

    unit = asyncio.create_task(retry_unit(async_sessionmaker(async_engine), work))
    await at_work.wait()
    unit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unit
    assert (attempts, shop.notes()) == ([1], [])
