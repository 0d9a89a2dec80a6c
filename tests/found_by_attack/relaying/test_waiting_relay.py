"""What a running relay does with a long-held delayed row, and by a mark that is held."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from outbox_saga.unit_of_work import UnitOfWork
from tests.relay.house import House, Recorder, Said
from tests.relay.test_delayed import say_later
from tests.relay.test_running import running, until


@pytest.mark.databases("postgres18")
async def test_what_enters_while_an_older_transaction_is_open_is_seen(house: House) -> None:
    """The mark, an old writer that commits late, delayed messages and a held key together."""
    recorder = Recorder()
    old = house.eyes.connect()
    old.begin()
    old.execute(sa.text("select pg_current_xact_id()"))
    async with running(house.relay(recorder, page_rows=4, poll=0.02)):
        for number in range(30):
            house.say(f"k{number}", key="k")
        await until(house, lambda: len(recorder.words) == 30, "k")
        UnitOfWork(old).publish(Said(word="late"), key="z")
        say_later(house, 5.0, *[f"d{n}" for n in range(10)], key="k")
        house.advance(6.0)
        await until(house, lambda: len(recorder.words) == 40, "delayed")
        old.commit()
        await until(house, lambda: "late" in recorder.words, "late")
    old.close()
    assert house.waiting() == []


@pytest.mark.databases("mariadb")
async def test_a_running_relay_with_a_prepared_transaction_beside_it_publishes_once(
    house: House,
) -> None:
    with house.eyes.connect() as other:
        other.exec_driver_sql("set global innodb_lock_wait_timeout = 2")
    house.say(*range(20))
    connection = house.eyes.connect()
    transaction = connection.begin_twophase()
    UnitOfWork(connection).publish(Said(word="prepared"))
    transaction.prepare()
    recorder = Recorder()
    import asyncio

    try:
        async with running(house.relay(recorder, poll=0.02)):
            await asyncio.sleep(12)
    finally:
        transaction.rollback()
        connection.close()
        with house.eyes.connect() as other:
            other.exec_driver_sql("set global innodb_lock_wait_timeout = 50")
    assert len(recorder.attempts) == 20, len(recorder.attempts)
