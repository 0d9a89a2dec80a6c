"""Which errors of a database say nothing about the work: read by code, as each driver has it."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_saga.queries.dialects import is_transient
from tests.fixtures.databases import Database

# 1205: a lock wait timeout, 1927: a connection that was killed, 4031: one that was idle too long.
# Their SQLSTATEs, which drivers tell as well, say nothing.
CODES = [(1205, "HY000"), (1213, "40001"), (1927, "70100"), (4031, "HY000"), (1644, "40001")]
OTHERS = [(1644, "45000"), (1146, "42S02"), (1317, "70100")]


def signal(errno: int, state: str) -> str:
    return f"signal sqlstate '{state}' set mysql_errno = {errno}, message_text = 'no'"


@pytest.mark.databases("mariadb")
@pytest.mark.parametrize(("errno", "state"), [*CODES, *OTHERS])
async def test_mariadb_is_read_by_its_number_whatever_sqlstate_comes_with_it(
    database: Database, errno: int, state: str
) -> None:
    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    with pytest.raises(DBAPIError) as plain, engine.connect() as connection:
        connection.exec_driver_sql(signal(errno, state))
    async_engine = create_async_engine(database.async_url, poolclass=sa.NullPool)
    with pytest.raises(DBAPIError) as asynchronous:
        async with async_engine.connect() as another:
            await another.exec_driver_sql(signal(errno, state))
    await async_engine.dispose()
    told = [is_transient(plain.value), is_transient(asynchronous.value)]
    assert told == [(errno, state) in CODES] * 2


@pytest.mark.databases("mariadb")
def test_a_real_lock_wait_timeout_is_transient(database: Database) -> None:
    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("create table till (id int primary key) engine = InnoDB")
        connection.exec_driver_sql("insert into till values (1)")
    with engine.connect() as holder, engine.connect() as waiter:
        holder.exec_driver_sql("select * from till for update")
        waiter.exec_driver_sql("set innodb_lock_wait_timeout = 0")
        with pytest.raises(DBAPIError) as failed:
            waiter.exec_driver_sql("select * from till for update")
    assert failed.value.orig is not None
    assert failed.value.orig.args[0] == 1205
    assert is_transient(failed.value)
