"""Delayed messages while another relay lets others in."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from outbox_saga.queries.clock import DATABASE_CLOCK
from outbox_saga.queries.delayed import enter_outbox
from outbox_saga.queries.outbox import lock_number, take_key_locks
from outbox_saga.unit_of_work import UnitOfWork
from tests.write_path.shop import Said, Shop

pytestmark = pytest.mark.databases("mariadb", "postgres18")


@pytest.mark.parametrize("count", [2, 50, 250])
def test_none_is_left_out_because_another_relay_lets_its_neighbours_in(
    shop: Shop, count: int
) -> None:
    """The later ones of its key would pass it."""
    with Session(shop.engine) as session, session.begin():
        uow = UnitOfWork(session)
        for number in range(count):
            for key in ("a", "b"):
                uow.publish(Said(word=f"{key}{number}"), key=key, delay=0.0001)
    writer = shop.make_plain_engine()
    relay = shop.make_plain_engine(isolation_level="READ COMMITTED")
    with writer.connect() as other, relay.connect() as first, relay.connect() as second:
        take_key_locks(other, shop.tables, [lock_number("a")])
        try:
            assert enter_outbox(first, shop.tables, DATABASE_CLOCK, 500) == count
            other.rollback()
            if shop.name == "mariadb":
                second.execute(sa.text("set innodb_lock_wait_timeout = 1"))
            assert enter_outbox(second, shop.tables, DATABASE_CLOCK, 500) == count
            second.commit()
            first.commit()
        finally:
            other.rollback()
            first.rollback()
            second.rollback()
    words = [w for w in shop.words() if w.startswith("a")]
    assert words == [f"a{n}" for n in range(count)]
