"""CommitUnknown and commit_timeout: what is told of a COMMIT that was sent."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga.errors import CommitUnknown
from outbox_saga.unit_of_work import UnitOfWork, unit_of_work
from outbox_saga.watchdog import _watchdog, cut_after
from tests.fixtures.databases import Database
from tests.write_path.between import Between, between
from tests.write_path.shop import Order, Said, Shop

pytestmark = pytest.mark.databases("postgres18", "mariadb")


@pytest.fixture
def line(shop: Shop) -> Iterator[Between]:
    with between(shop.url) as line:
        yield line


def test_a_unit_without_messages_is_not_told_that_nothing_was_committed(
    shop: Shop, line: Between
) -> None:
    through = sa.create_engine(line.url)
    work = unit_of_work(sessionmaker(through), commit_timeout=0.3)
    with pytest.raises(Exception) as told, work as uow:  # noqa: PT011
        uow.session.add(Order(note="paid"))
        line.lose = "the answer hangs"
    through.dispose()
    assert shop.notes() == ["paid"]
    assert "nothing was committed" not in str(told.value)


async def test_an_async_unit_without_messages_is_not_told_that_nothing_was_committed(
    shop: Shop, line: Between
) -> None:
    through = create_async_engine(Database(shop.name, line.url).async_url)
    work = unit_of_work(async_sessionmaker(through), commit_timeout=0.3)
    with pytest.raises(Exception) as told:  # noqa: PT011
        async with work as uow:
            uow.session.add(Order(note="paid"))
            line.lose = "the answer hangs"
    await through.dispose()
    assert shop.notes() == ["paid"]
    assert "nothing was committed" not in str(told.value)


@pytest.mark.parametrize("seconds", [None, 30.0])
async def test_a_hook_that_times_out_after_the_commit_is_not_taken_for_the_deadline(
    shop: Shop, seconds: float | None
) -> None:
    """socket.timeout, redis, urllib and asyncio all raise the built-in TimeoutError."""
    engine = shop.make_plain_async_engine()

    class Mine(Session):
        pass

    @event.listens_for(Mine, "after_commit")
    def tell(session: Any) -> None:
        raise TimeoutError("the cache did not answer")

    make = async_sessionmaker(engine, class_=AsyncSession, sync_session_class=Mine)
    with pytest.raises(TimeoutError) as told:
        async with unit_of_work(make, commit_timeout=seconds) as uow:
            uow.session.add(Order(note="paid"))
            uow.publish(Said(word="a"), key="k")
    await engine.dispose()
    assert shop.words() == ["a"]
    assert "nothing was committed" not in str(told.value)


def test_a_two_phase_commit_whose_answer_is_lost_is_unknown(shop: Shop, line: Between) -> None:
    """Of MariaDB it is a statement (XA COMMIT), not a call of the driver's."""
    through = sa.create_engine(line.url)
    with through.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(sa.text("insert into shop_order (note) values ('paid')"))
        UnitOfWork(connection).publish(Said(word="a"), key="k")
        transaction.prepare()
        line.lose = "before the answer comes back"
        with pytest.raises(CommitUnknown):
            transaction.commit()
    through.dispose()


def test_the_flush_is_within_the_deadline(shop: Shop) -> None:
    """'Seconds the commit may take, from the flush to the answer of COMMIT'."""
    engine = shop.make_plain_engine()
    ended = threading.Event()
    found: list[BaseException] = []

    def work() -> None:
        try:
            with unit_of_work(sessionmaker(engine), commit_timeout=0.3) as uow:
                uow.session.add(Order(id=77, note="paid"))
                uow.publish(Said(word="a"), key="k")
        except BaseException as error:  # noqa: BLE001
            found.append(error)
        ended.set()

    with shop.engine.connect() as holder:
        holder.execute(sa.text("insert into shop_order (id, note) values (77, 'other')"))
        thread = threading.Thread(target=work)
        thread.start()
        in_time = ended.wait(5)
        holder.rollback()
    thread.join()
    assert in_time, found


def test_a_connection_that_is_closed_meanwhile_does_not_end_the_watchdog(shop: Shop) -> None:
    engine = shop.make_plain_engine()
    with engine.connect() as first:
        with cut_after(0.1, [first]) as watch:
            gone_through = threading.Event()
            watch.cuts.append(gone_through.set)  # the last one
            first.connection.driver_connection.close()  # type: ignore[union-attr]
            assert gone_through.wait(30)
        first.invalidate()
    seconds = "pg_sleep(3)" if shop.name != "mariadb" else "sleep(3)"
    with engine.connect() as second, cut_after(0.2, [second]) as watch:
        with contextlib.suppress(DBAPIError):
            second.execute(sa.text(f"select {seconds}"))
        assert watch.passed


def test_a_connection_that_is_the_pools_again_is_not_cut(shop: Shop) -> None:
    """Its next user has done nothing."""
    engine = shop.make_plain_engine(pool_size=1, max_overflow=0)
    given_back, over = threading.Event(), threading.Event()

    class Mine(Session):
        pass

    @event.listens_for(Mine, "after_transaction_end")
    def tell(session: Any, ended: Any) -> None:
        if ended.parent is None and not given_back.is_set():
            given_back.set()
            over.wait(60)

    def first() -> None:
        with unit_of_work(sessionmaker(engine, class_=Mine), commit_timeout=1.0) as uow:
            uow.publish(Said(word="a"))

    thread = threading.Thread(target=first)
    thread.start()
    given_back.wait(10)
    gone_through = threading.Event()
    next(iter(_watchdog._watches.values())).cuts.append(gone_through.set)  # the last one
    try:
        with engine.begin() as connection:
            connection.execute(sa.text("select 1"))
            assert gone_through.wait(30)
            connection.execute(sa.text("select 1"))
    finally:
        over.set()
        thread.join()
