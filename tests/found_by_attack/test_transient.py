"""What may be tried again, as real servers say it (PyMySQL 1.2 tells the SQLSTATE, too)."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from outbox_saga.queries.dialects import is_transient
from outbox_saga.queries.outbox import lock_numbers, take_key_locks
from tests.write_path.shop import Shop

pytestmark = pytest.mark.databases("mariadb", "postgres18")


def test_a_wait_for_a_lock_that_took_too_long(shop: Shop) -> None:
    setting = (
        "set innodb_lock_wait_timeout = 1"
        if shop.name == "mariadb"
        else "set lock_timeout = '300ms'"
    )
    with shop.engine.begin() as holder, shop.engine.connect() as other:
        take_key_locks(holder, shop.tables, lock_numbers(["k"]))
        other.exec_driver_sql(setting)
        with pytest.raises(DBAPIError) as told:
            take_key_locks(other, shop.tables, lock_numbers(["k"]))
    assert is_transient(told.value)


@pytest.mark.databases("mariadb")
async def test_a_wait_for_a_lock_that_took_too_long_of_an_async_engine(shop: Shop) -> None:
    engine = shop.make_plain_async_engine()
    with shop.engine.begin() as holder:
        take_key_locks(holder, shop.tables, lock_numbers(["k"]))
        async with engine.connect() as other:
            await other.exec_driver_sql("set innodb_lock_wait_timeout = 1")
            with pytest.raises(DBAPIError) as told:
                await other.run_sync(take_key_locks, shop.tables, lock_numbers(["k"]))
    await engine.dispose()
    assert is_transient(told.value)


@pytest.mark.databases("mariadb")
def test_a_connection_that_an_operator_has_killed(shop: Shop) -> None:
    with shop.make_plain_engine().connect() as other:
        number = other.execute(sa.text("select connection_id()")).scalar_one()
        shop.execute(f"kill {number}")
        with pytest.raises(DBAPIError) as told:
            other.execute(sa.text("select 1"))
    assert is_transient(told.value)
