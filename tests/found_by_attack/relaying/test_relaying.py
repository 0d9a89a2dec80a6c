"""A relay beside writers that take their time."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from outbox_saga.brokers.contract import ACCEPTED, Refused
from outbox_saga.errors import PublishUnconfirmed, Unpublishable
from outbox_saga.unit_of_work import UnitOfWork
from tests.relay.house import House, Recorder, Said, word_of
from tests.relay.test_delayed import say_later
from tests.relay.test_what_comes_back import replay_all


@pytest.mark.databases("mariadb", "postgres18")
async def test_a_prepared_transaction_does_not_stop_the_relay_for_all_others(
    house: House,
) -> None:
    house.say(*range(20))
    connection = house.eyes.connect()
    transaction = connection.begin_twophase()
    try:
        UnitOfWork(connection).publish(Said(word="prepared"))
        transaction.prepare()
        house_timeout = "set global innodb_lock_wait_timeout = 2"
        if house.name == "mariadb":
            with house.eyes.connect() as other:
                other.exec_driver_sql(house_timeout)
        recorder = Recorder()
        await house.relay(recorder).run_until_empty()
        assert len(recorder.words) == 20
        # 'prepared' is not visible here: it may be committed or not
        with house.eyes.connect() as other:
            count = other.execute(
                sa.select(sa.func.count()).select_from(house.tables.outbox)
            ).scalar_one()
        assert count == 0
    finally:
        transaction.rollback()
        connection.close()
        if house.name == "mariadb":
            with house.eyes.connect() as other:
                other.exec_driver_sql("set global innodb_lock_wait_timeout = 50")


@pytest.mark.databases("postgres18", "sqlite")
async def test_until_empty_lets_all_in_that_are_due_though_a_key_is_parked(house: House) -> None:
    def answer(envelope):  # type: ignore[no-untyped-def]
        return Refused(Unpublishable("no", code="no")) if envelope.key == "k" else ACCEPTED

    house.say("poison", key="k")
    recorder = Recorder(answer)
    await house.relay(recorder).run_until_empty()
    assert len(house.dead()) == 1
    say_later(house, 1.0, "a", "b", "c", key="k")
    say_later(house, 2.0, "other", key="j")
    house.advance(3.0)
    await house.relay(recorder, page_rows=2).run_until_empty()
    assert "other" in recorder.words


@pytest.mark.databases("postgres18")
async def test_until_empty_sees_a_replay_that_comes_while_a_retry_is_settled(
    house: House,
) -> None:
    """A page is empty while something was put back; the relay must be told why."""
    tried: list[str] = []

    def answer(envelope):  # type: ignore[no-untyped-def]
        word = word_of(envelope)
        tried.append(word)
        if word == "k1" and tried.count("k1") == 1:
            return Refused(Unpublishable("no", code="no"))
        if word == "a1" and tried.count("a1") == 1:
            return Refused(PublishUnconfirmed("no answer", code="timeout"))
        if word == "a1" and tried.count("a1") == 2:
            replay_all(house)
        return ACCEPTED

    house.say("k1", key="k")
    house.say("a1", key="a")
    relay = house.relay(Recorder(answer), page_rows=1)
    await relay.run_once()
    await relay.run_once()
    assert len(house.blocked()) == 2
    house.say("x1")
    house.advance(61.0)
    # the rest by one call
    while await relay.run_once() == 0 and tried.count("a1") < 2:
        pass
    await relay.run_until_empty()
    assert house.waiting() == []
