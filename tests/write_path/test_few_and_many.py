"""A few messages are values of one statement, many are elements of its arrays: no difference."""

from __future__ import annotations

import threading
import time

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from outbox_saga.queries.outbox import FEW, lock_number, take_key_locks
from outbox_saga.unit_of_work import UnitOfWork
from tests.write_path.shop import Said, Shop, say

COUNTS = (1, 2, FEW - 1, FEW, FEW + 1, 3 * FEW)


def key(number: int) -> str | None:
    """Some have none, some share one, and the numbers of their locks do not rise with them."""
    return None if number % 4 == 1 else f"order:{(number * 7919) % 5}"


@pytest.mark.parametrize("count", COUNTS)
def test_every_message_stands_in_its_place_with_all_it_has(shop: Shop, count: int) -> None:
    bodies = [bytes(range(256)) * (number % 3) + b"\\" for number in range(count)]
    with Session(shop.engine) as session, session.begin():
        uow = UnitOfWork(session)
        ids = [
            uow.publish_body(
                body,
                topic=f"talk.{number % 2}",
                type="Raw",
                key=key(number),
                content_type="application/octet-stream",
                headers={"n": str(number)},
            )
            for number, body in enumerate(bodies)
        ]
    rows = shop.rows()
    assert [(row.id, row.body, row.key) for row in rows] == [
        (ids[n], bodies[n], key(n)) for n in range(count)
    ]
    assert [row.envelope().headers["n"] for row in rows] == [str(n) for n in range(count)]
    assert [row.topic for row in rows] == [f"talk.{n % 2}" for n in range(count)]


@pytest.mark.parametrize("count", COUNTS)
async def test_so_it_does_from_an_async_session(
    shop: Shop, async_engine: AsyncEngine, count: int
) -> None:
    for _ in range(2):
        async with AsyncSession(async_engine) as session, session.begin():
            for number in range(count):
                say(session, number, key=key(number))
    assert shop.words() == [str(number) for number in range(count)] * 2


@pytest.mark.databases("postgres18", "postgres15")
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("often", [False, True])
def test_every_lock_of_every_key_is_held_until_the_commit(
    shop: Shop, count: int, often: bool
) -> None:
    """With a statement that the driver has prepared, too (from its sixth time on)."""
    found: set[int] = set()

    def look(connection: sa.Connection) -> None:
        found.clear()
        found.update(
            connection.scalars(
                sa.text(
                    "select objid from pg_locks "
                    "where locktype = 'advisory' and pid = pg_backend_pid()"
                )
            )
        )

    event.listen(shop.engine, "commit", look)  # after ours
    with shop.engine.connect() as connection:
        for _ in range(12 if often else 1):
            uow = UnitOfWork(connection)
            with connection.begin():
                for number in range(count):
                    uow.publish(Said(word=str(number)), key=key(number))
    keys = {key(number) for number in range(count)} - {None}
    assert found == {lock_number(each) for each in keys if each is not None}


@pytest.mark.databases("postgres18", "postgres15")
@pytest.mark.parametrize("count", COUNTS)
def test_a_writer_that_waits_for_its_locks_has_no_position_yet(shop: Shop, count: int) -> None:
    """Else what it writes could stand below what the writer it waits for commits later.

    But its transaction has its number: who reads the oldest one that runs knows of it.
    """
    sequence = f"select last_value, is_called from {shop.tables.outbox.name}_position_seq"
    waiting = sa.text(
        "select backend_xid is not null from pg_locks join pg_stat_activity using (pid) "
        "where locktype = 'advisory' and not granted and datname = current_database()"
    )

    def write() -> None:
        with shop.engine.connect() as connection, connection.begin():
            for number in range(count):
                say(connection, number, key="k")

    write()  # the sequence has been used
    with shop.engine.connect() as first, first.begin():
        take_key_locks(first, shop.tables, [lock_number("k")])
        second = threading.Thread(target=write)
        with shop.make_engine(isolation_level="AUTOCOMMIT").connect() as eyes:
            before = eyes.exec_driver_sql(sequence).one()
            second.start()
            found: list[bool] = []
            deadline = time.monotonic() + 20
            while not found:
                assert time.monotonic() < deadline, "the second writer never waited"
                found = list(eyes.scalars(waiting))
            # asked again: the two views are not read at the same moment
            assert list(eyes.scalars(waiting)) == [True]
            assert eyes.exec_driver_sql(sequence).one() == before
    second.join(20)
    assert shop.words() == [str(number) for number in range(count)] * 2
