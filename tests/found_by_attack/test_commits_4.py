"""Cancellation, listeners and neighbours of a COMMIT."""

from __future__ import annotations

import asyncio
import gc
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from outbox_saga.commits import interrupted_commit
from outbox_saga.errors import CommitUnknown
from outbox_saga.pending import what_was_written
from outbox_saga.unit_of_work import UnitOfWork, unit_of_work
from tests.fixtures.databases import Database
from tests.write_path.between import Between, between
from tests.write_path.shop import Said, Shop

pytestmark = pytest.mark.databases("postgres18", "mariadb")


@pytest.fixture
def line(shop: Shop) -> Iterator[Between]:
    with between(shop.url) as line:
        yield line


def test_after_a_commit_nothing_of_it_is_under_way(shop: Shop) -> None:
    """`what_was_written`: [] when no COMMIT is under way."""
    with shop.engine.connect() as connection:
        with connection.begin():
            UnitOfWork(connection).publish(Said(word="a"))
        gc.collect()
        assert what_was_written(connection) == []


def test_a_listener_of_the_users_does_not_hide_an_unknown_commit(
    shop: Shop, line: Between
) -> None:
    through = sa.create_engine(line.url)

    class Mine(Exception):
        pass

    @event.listens_for(through, "handle_error")
    def translated(context: Any) -> Any:
        return Mine("database trouble") if context.is_disconnect else None

    with pytest.raises(Exception) as told, Session(through) as session:  # noqa: PT011, SIM117
        with session.begin():
            UnitOfWork(session).publish(Said(word="a"))
            line.lose = "before the answer comes back"
    through.dispose()
    assert isinstance(told.value, Mine)
    assert interrupted_commit(told.value) is not None


async def test_the_users_own_timeout_around_a_unit_tells_of_an_unknown_commit(
    shop: Shop, line: Between
) -> None:
    """'this, and nothing else, is CommitUnknown, for every session that has published'."""
    through = create_async_engine(Database(shop.name, line.url).async_url)
    with pytest.raises(Exception) as told:  # noqa: PT011
        async with asyncio.timeout(0.5), unit_of_work(async_sessionmaker(through)) as uow:
            uow.publish(Said(word="a"), key="k")
            line.lose = "the answer hangs"
    await through.dispose()
    assert isinstance(told.value, TimeoutError)
    unknown = interrupted_commit(told.value)
    assert unknown is not None
    assert len(unknown.message_ids) == 1
    assert shop.words() == ["a"]


def test_the_error_travels_to_another_process_as_it_is() -> None:
    error = CommitUnknown((), "7")
    back = pickle.loads(pickle.dumps(error))
    assert (str(back), back.message_ids, back.transaction) == (str(error), (), "7")


def test_a_session_of_two_databases_is_not_told_that_nothing_was_committed(
    shop: Shop, line: Between
) -> None:
    """The outbox's database has committed; the other one does not answer."""
    through, plain = sa.create_engine(line.url), shop.make_plain_engine()
    make = sessionmaker(plain)
    work = unit_of_work(make, commit_timeout=0.4, bind=plain)
    with pytest.raises(Exception) as told, work as uow:  # noqa: PT011
        uow.publish(Said(word="a"))
        uow.session.execute(
            sa.text("insert into shop_order (note) values ('paid')"),
            bind_arguments={"bind": through},
        )
        line.lose = "the answer hangs"
    through.dispose()
    assert shop.notes() == ["paid"]
    assert "nothing was committed" not in str(told.value)
