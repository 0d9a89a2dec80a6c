"""Delayed messages on MariaDB: whoever holds a key's lock waits for nothing more."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from outbox_saga.envelopes import Envelope, seal
from outbox_saga.queries.clock import DATABASE_CLOCK
from outbox_saga.queries.delayed import Delayed, enter_outbox, write_delayed
from outbox_saga.queries.outbox import write_messages
from outbox_saga.queries.relay import delete_published
from outbox_saga.unit_of_work import UnitOfWork
from tests.write_path.shop import Said, Shop

pytestmark = pytest.mark.databases("mariadb", "postgres18")


def another() -> Envelope:
    return seal(
        Said(word="w"),
        key="w",
        headers=None,
        topic=None,
        source="s",
        correlation_id=None,
        causation_id=None,
    )


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("count", [1, 2, 3, 20, 500])
@pytest.mark.parametrize("delay", [0.001, 3600.0])
def test_entering_does_not_wait_for_a_writer_of_a_delayed_message(
    shop: Shop, count: int, delay: float, isolation: str
) -> None:
    """A writer has written its delayed message and waits for a lock of a key, say."""
    with Session(shop.engine) as session, session.begin():
        uow = UnitOfWork(session)
        for number in range(count):
            uow.publish(Said(word=str(number)), key=f"k{number}", delay=0.0001)
    writer = shop.make_plain_engine(isolation_level=isolation)
    relay = shop.make_plain_engine(isolation_level="READ COMMITTED")
    with writer.connect() as other, relay.connect() as mine:
        write_delayed(other, shop.tables, [Delayed(another(), delay)])
        if shop.name == "mariadb":
            mine.execute(sa.text("set innodb_lock_wait_timeout = 1"))
        else:
            mine.execute(sa.text("set lock_timeout = '1s'"))
        try:
            assert enter_outbox(mine, shop.tables, DATABASE_CLOCK, 500) == count
            # and the writer of another delayed message does not wait for it, either
            if shop.name == "mariadb":
                other.execute(sa.text("set innodb_lock_wait_timeout = 1"))
            for later in (0.0, 0.001, 3600.0):
                write_delayed(other, shop.tables, [Delayed(another(), later)])
        finally:
            mine.rollback()
            other.rollback()


@pytest.mark.parametrize("count", [1, 2, 3, 20, 500])
def test_removing_does_not_wait_for_a_writer(shop: Shop, count: int) -> None:
    with Session(shop.engine) as session, session.begin():
        uow = UnitOfWork(session)
        for number in range(count):
            uow.publish(Said(word=str(number)), key=f"k{number}")
    rows = shop.rows()
    writer = shop.make_plain_engine()
    relay = shop.make_plain_engine(isolation_level="READ COMMITTED")
    with writer.connect() as other, relay.connect() as mine:
        write_messages(other, shop.tables, [another()])
        if shop.name == "mariadb":
            mine.execute(sa.text("set innodb_lock_wait_timeout = 1"))
        try:
            assert delete_published(mine, shop.tables, rows) == count
        finally:
            mine.rollback()
            other.rollback()
