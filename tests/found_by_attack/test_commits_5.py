"""Units of work and handlers, cancelled at each of their suspensions, and what is said of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from outbox_saga import async_commit_outcome, retry_unit
from outbox_saga.commits import interrupted_commit
from outbox_saga.database import Database
from outbox_saga.envelopes import seal
from outbox_saga.handler_context import HandlerContext
from outbox_saga.inbox import handle_once
from outbox_saga.unit_of_work import UnitOfWork, unit_of_work
from outbox_saga.worker_threads import WorkerThreads
from tests.write_path.cancelling import CancelledAt, Moment
from tests.write_path.shop import Said, Shop

pytestmark = pytest.mark.databases("postgres18", "mariadb")


async def block(engine: AsyncEngine) -> None:
    async with unit_of_work(async_sessionmaker(engine)) as uow:
        uow.publish(Said(word="a"), key="k")


async def retried(engine: AsyncEngine) -> None:
    async def work(uow: UnitOfWork[Any]) -> None:
        uow.publish(Said(word="a"), key="k")

    await retry_unit(async_sessionmaker(engine), work)


async def ending(run: CancelledAt) -> BaseException | None:
    try:
        await run
    except BaseException as error:  # noqa: BLE001  # what the caller would see
        return error
    return None


@pytest.mark.parametrize("moment", ["while it waits", "with the answer"])
@pytest.mark.parametrize("work", [block, retried])
async def test_whoever_is_cancelled_before_it_hears_of_its_commit_is_told_that_it_may_be(
    shop: Shop,
    async_engine: AsyncEngine,
    work: Callable[[AsyncEngine], Awaitable[None]],
    moment: Moment,
) -> None:
    """Also while the session is closed: a unit that seems undone would be done twice."""
    outcomes: set[tuple[bool, bool]] = set()
    at, reached = 0, True
    while reached:
        at += 1
        shop.empty()
        async with async_engine.connect() as connection:
            await connection.execute(sa.text("select 1"))
        run = CancelledAt(work(async_engine), at, moment)
        error = await asyncio.create_task(ending(run))
        reached = run.done
        committed = bool(shop.words())
        if error is None:
            assert committed, f"suspension {at}"
            continue
        unknown = interrupted_commit(error)
        assert unknown is not None or not committed, f"suspension {at}: {error!r}"
        if unknown is not None:
            answer = await async_commit_outcome(async_engine, unknown)
            assert answer in (committed, None), f"suspension {at}"
            assert len(unknown.message_ids) == 1
        assert isinstance(error, asyncio.CancelledError)
        outcomes.add((committed, unknown is not None))
    assert {(False, False), (True, True)} <= outcomes


@pytest.mark.databases("postgres18")
async def test_a_handler_that_is_cancelled_and_once_more_while_it_ends_is_cancelled(
    shop: Shop,
) -> None:
    """Not failed with an error of the connection that was cut under it."""
    database = Database(shop.url, hints=False)
    threads = WorkerThreads(1, "handlers")

    async def handler(context: HandlerContext[Said]) -> None:
        context.publish(Said(word="a"), key="k")
        await context.session.execute(sa.text("select 1"))
        await context.session.execute(sa.text("select 2"))

    at, reached, odd = 0, True, list[str]()
    while reached:
        at += 1
        handling = handle_once(
            database, threads, "till", seal(Said(word="in")), Said, handler, source="shop"
        )
        run = CancelledAt(handling, at, "twice")
        error = await asyncio.create_task(ending(run))
        reached = run.done
        if error is not None and not isinstance(error, asyncio.CancelledError):
            odd.append(f"suspension {at}: {error!r}")
    await database.close()
    threads.shutdown()
    assert odd == []
    assert at > 4
