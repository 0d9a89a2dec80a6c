"""Steps that do not end when their time is over: their sagas end all the same."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox_saga import calling
from outbox_saga.saga import execution
from outbox_saga.saga.attempts import has_ended
from outbox_saga.saga.orchestrator import Orchestrator
from tests.fixtures.databases import Database
from tests.saga.shop import Shop


class Tins(DeclarativeBase): ...


class Tin(Tins):
    __tablename__ = "tin"

    sku: Mapped[str] = mapped_column(sa.String(20), primary_key=True)


class Stubborn:
    """Waits until it is let go, whoever cancels it."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.ended: list[BaseException | None] = []
        self.began = 0

    async def __call__(self, step: Any) -> None:
        self.began += 1
        while not self.let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.let_go.wait()

    async def then_use_the_session(self, step: Any) -> None:
        await self(step)
        try:
            await step.session.execute(sa.text("select 1"))
        except SQLAlchemyError as error:
            self.ended.append(error)
        else:
            self.ended.append(None)

    async def all_ended(self) -> None:
        self.let_go.set()
        async with asyncio.timeout(30):
            while calling._left_alone:
                await asyncio.wait(calling._left_alone)


@pytest.fixture
async def stubborn(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stubborn]:
    monkeypatch.setattr(calling, "STUBBORN", 0.02)
    made = Stubborn()
    yield made
    await made.all_ended()


def set_timeout(shop: Shop, step: str, seconds: float) -> None:
    object.__setattr__(shop.saga.steps[step], "timeout", seconds)


async def test_a_saga_whose_local_step_swallows_its_cancellation_is_undone_and_says_why(
    shop: Shop, stubborn: Stubborn
) -> None:
    set_timeout(shop, "book", 0.05)
    object.__setattr__(shop.saga.steps["book"], "action", stubborn.then_use_the_session)
    id_ = await shop.start()

    await shop.to_the_end()

    ended = await shop.instance(id_)
    assert ended.state.status == "compensated"
    assert "swallowed its cancellation" in (ended.state.reason or "")
    assert await shop.shelf() == (100, 0)
    assert (shop.provider.count("charge"), shop.provider.count("refund")) == (1, 1)
    # what goes on begins nothing any more, and no connection is left with it
    await stubborn.all_ended()
    assert (stubborn.began, len(stubborn.ended)) == (3, 3)
    assert None not in stubborn.ended
    pool: Any = shop.service.database.async_engine.pool
    assert pool.checkedout() == 0


async def test_an_external_step_that_swallows_its_cancellation_is_called_again_by_the_same_key(
    shop: Shop, stubborn: Stubborn
) -> None:
    set_timeout(shop, "charge", 0.05)

    def first_time(step: Any) -> Any:
        return stubborn(step) if step.attempt == 1 else None

    shop.hooks["charge"] = first_time
    id_ = await shop.start()

    await shop.to_the_end()

    assert (await shop.instance(id_)).state.status == "completed"
    assert [request[0] for request in shop.provider.requests] == ["charge", "charge"]
    assert shop.provider.count("charge") == 1


@pytest.mark.databases("postgres18", "mariadb")  # in SQLite the thread is the only writer
async def test_a_saga_is_undone_and_says_why_when_every_thread_is_held_by_steps_out_of_time(
    shop: Shop,
) -> None:
    over = threading.Event()
    action = shop.saga.steps["book"].action

    def hang(step: Any) -> Any:
        over.wait(60)

    set_timeout(shop, "book", 0.1)
    object.__setattr__(shop.saga.steps["book"], "action", hang)
    id_ = await shop.start()
    orchestrator = Orchestrator(shop.service.database, [shop.saga], concurrency=1, poll=0.02)
    try:
        async with asyncio.timeout(60):
            while (await shop.instance(id_)).state.status == "running":
                await orchestrator.run_once()
        assert "all threads are held" in ((await shop.instance(id_)).state.reason or "")
    finally:
        over.set()
        orchestrator.close()
    object.__setattr__(shop.saga.steps["book"], "action", action)

    await shop.to_the_end()

    assert (await shop.instance(id_)).state.status == "compensated"
    assert await shop.shelf() == (100, 0)


@pytest.mark.databases("postgres18", "mariadb")  # in SQLite the thread is the only writer
async def test_a_thread_out_of_time_uses_up_no_further_attempt_while_it_holds_its_rows(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(database.url, threads=True)
    ended, over = threading.Event(), threading.Event()
    overlapped: list[bool] = []

    def first_time_for_long(step: Any) -> None:
        if step.attempt > 1:
            overlapped.append(not ended.is_set())
            return
        over.wait(60)
        ended.set()

    async def waited_for(earlier: asyncio.Future[Any], *, within: float) -> bool:
        over.set()
        return await has_ended(earlier, within=60)

    monkeypatch.setattr(execution, "has_ended", waited_for)
    shop.hooks["reserve"] = first_time_for_long
    set_timeout(shop, "reserve", 0.2)
    id_ = await shop.start()
    try:
        await shop.to_the_end()
    finally:
        over.set()

    instance = await shop.instance(id_)
    assert (instance.state.status, instance.state.steps["reserve"].attempts) == ("completed", 2)
    assert (overlapped, await shop.shelf()) == ([False], (99, 1))
    await shop.service.close()


@pytest.mark.databases("postgres18", "mariadb")
@pytest.mark.parametrize("threads", [False, True], ids=["async", "threads"])
async def test_what_a_step_leaves_in_its_session_is_flushed_within_its_time(
    database: Database, threads: bool
) -> None:
    """The flush waits for a unique key that somebody else has inserted."""
    shop = Shop(database.url, threads=threads)

    def adds(step: Any) -> None:
        step.session.add(Tin(sku="coffee"))

    shop.hooks["reserve"] = adds
    set_timeout(shop, "reserve", 0.2)
    with shop.service.database.begin() as connection:
        Tin.metadata.create_all(connection)
    id_ = await shop.start()
    orchestrator = shop.service.orchestrator()
    with shop.service.database.engine.connect() as other:
        other.execute(sa.insert(Tin).values(sku="coffee"))
        async with asyncio.timeout(30):
            while "STEP_FAILED reserve" not in await shop.history(id_):
                await orchestrator.run_once()
        other.rollback()
    orchestrator.close()
    await shop.to_the_end()
    assert (await shop.instance(id_)).state.status in ("completed", "compensated")
    await shop.service.close()
