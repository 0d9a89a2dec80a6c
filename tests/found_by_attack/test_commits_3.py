"""Answers after the answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from outbox_saga import commit_outcome
from outbox_saga.errors import CommitUnknown
from outbox_saga.unit_of_work import unit_of_work
from tests.fixtures.databases import Database
from tests.write_path import between as lines
from tests.write_path.between import Between, between
from tests.write_path.shop import Order, Said, Shop

pytestmark = pytest.mark.databases("postgres18", "mariadb")


@pytest.fixture
def line(shop: Shop) -> Iterator[Between]:
    with between(shop.url) as line:
        yield line


async def test_a_rollback_of_the_pool_that_hangs_does_not_unsay_the_commit(
    shop: Shop, line: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COMMIT was answered; the pool then resets the connection, and the server goes silent."""
    monkeypatch.setattr(lines, "_COMMIT", re.compile(rb"ROLLBACK", re.IGNORECASE))
    through = create_async_engine(Database(shop.name, line.url).async_url)
    told = ""
    try:
        async with unit_of_work(async_sessionmaker(through), commit_timeout=0.5) as uow:
            uow.session.add(Order(note="paid"))
            uow.publish(Said(word="a"))
            await uow.session.flush()
            line.lose = "the answer hangs"
    except (TimeoutError, CommitUnknown) as error:
        told = str(error)
    line.lose = None
    await through.dispose()
    assert shop.words() == ["a"]
    assert "nothing was committed" not in told


@pytest.mark.databases("postgres18")
def test_a_transaction_the_server_has_never_heard_of_is_not_an_error(shop: Shop) -> None:
    """A standby was promoted without it: its ids are behind."""
    with shop.engine.connect() as connection:
        now = connection.execute(sa.text("select cast(pg_current_xact_id() as text)")).scalar_one()
    unknown = CommitUnknown((uuid4(),), str(int(now) + 1000))
    assert commit_outcome(shop.engine, unknown, patience=0.5) in (False, None)


@pytest.mark.databases("postgres18")
def test_another_transaction_of_the_same_number_is_not_taken_for_it(shop: Shop) -> None:
    """A standby was promoted without it, and has given its id to somebody else since.

    Here: the id is another transaction's, the messages are in no table.
    """
    with shop.engine.begin() as connection:
        connection.execute(sa.text("insert into shop_order (note) values ('another')"))
        number = connection.execute(
            sa.text("select cast(pg_current_xact_id() as text)")
        ).scalar_one()
    unknown = CommitUnknown((uuid4(),), number)
    assert commit_outcome(shop.engine, unknown, patience=0.5) is not True
