"""Delayed messages enter the outbox when their time has come: never early, never lost, once."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from outbox_saga.queries.delayed import Progress, enter_outbox
from outbox_saga.queries.outbox import lock_numbers, take_key_locks
from outbox_saga.testing.interleaving import Play, Point, Run, explore
from outbox_saga.unit_of_work import UnitOfWork
from tests.relay.house import House, Recorder, Said
from tests.relay.test_running import running, until


def say_later(house: House, delay: float, *words: str, key: str | None = None) -> list[UUID]:
    with house.eyes.begin() as connection:
        uow = UnitOfWork(connection)
        return [uow.publish(Said(word=word), key=key, delay=delay) for word in words]


def delayed(house: House) -> list[Any]:
    return house.rows(house.tables.delayed, house.tables.delayed.c.due_at)


async def test_nothing_leaves_before_its_time_and_everything_after_it(house: House) -> None:
    ids = say_later(house, 60.0, "a", "b", key="k")
    recorder = Recorder()
    relay = house.relay(recorder)
    house.advance(59.0)
    assert await relay.run_once() == 0
    assert len(delayed(house)) == 2
    house.advance(2.0)
    await relay.run_once()
    assert [e.id for e in recorder.attempts] == ids
    assert [e.key for e in recorder.attempts] == ["k", "k"]
    assert (delayed(house), house.waiting()) == ([], [])


async def test_they_enter_in_the_order_in_which_they_are_due(house: House) -> None:
    say_later(house, 30.0, "later", key="k")
    say_later(house, 10.0, "sooner", key="k")
    house.say("now", key="k")
    recorder = Recorder()
    house.advance(40.0)
    await house.relay(recorder).run_until_empty()
    assert [word for word in recorder.words if word != "now"] == ["sooner", "later"]


async def test_a_running_relay_lets_them_in_when_they_are_due(house: House) -> None:
    recorder = Recorder()
    async with running(house.relay(recorder, poll=0.02)):
        say_later(house, 3600.0, "in an hour", key="k")
        house.say("now")
        await until(house, lambda: recorder.words == ["now"], "the other one")
        house.advance(3601.0)
        await until(house, lambda: recorder.words == ["now", "in an hour"], "its time has come")


async def test_many_that_are_due_at_once_all_enter(house: House) -> None:
    words = [f"w{number}" for number in range(250)]
    say_later(house, 1.0, *words, key="k")
    house.advance(2.0)
    recorder = Recorder()
    async with running(house.relay(recorder, page_rows=20, poll=0.02)):
        await until(house, lambda: len(recorder.words) == 250, "all of them")
    assert sorted(recorder.words) == sorted(words)
    assert len({e.id for e in recorder.attempts}) == 250


async def test_what_waits_for_its_time_is_no_backlog_of_the_outbox(house: House) -> None:
    say_later(house, 1e6, "a")
    assert await house.relay(Recorder()).run_until_empty() == 0
    assert len(delayed(house)) == 1


@pytest.mark.databases("postgres18", "postgres15", "mariadb")
async def test_a_writer_that_stands_still_holds_up_only_its_own_key(house: House) -> None:
    """Between its insert and its COMMIT, say, or prepared and forgotten."""
    say_later(house, 1.0, *(f"k{number}" for number in range(8)), key="k")
    say_later(house, 2.0, "j", key="j")
    say_later(house, 2.0, "x")
    house.advance(3.0)
    database = house.another_database()
    with house.eyes.begin() as writer:
        take_key_locks(writer, house.tables, lock_numbers(["k"]))
        with database.begin() as connection:
            limit_lock_waits(connection)
            assert enter_outbox(connection, house.tables, house.clock, 3) == 2
    assert sorted(house.waiting()) == ["j", "x"]
    with database.begin() as connection:
        assert enter_outbox(connection, house.tables, house.clock, 100) == 8
    assert house.waiting()[2:] == [f"k{number}" for number in range(8)]


@pytest.mark.databases("postgres18", "postgres15", "mariadb")
async def test_behind_those_whose_key_is_held_as_many_enter_as_would_without(
    house: House,
) -> None:
    for number in range(4):
        say_later(house, 1.0, f"k{number}", key=f"k{number}")
    for number in range(6):
        say_later(house, 2.0, f"f{number}", key=f"f{number}")
    house.advance(3.0)
    database = house.another_database()
    with house.eyes.begin() as writer:
        take_key_locks(writer, house.tables, lock_numbers(f"k{number}" for number in range(4)))
        with database.begin() as connection:
            limit_lock_waits(connection)
            assert enter_outbox(connection, house.tables, house.clock, 5) == 5
    assert sorted(house.waiting()) == [f"f{number}" for number in range(5)]


@pytest.mark.databases("postgres18", "postgres15", "mariadb")
async def test_however_many_keys_are_held_what_stands_behind_them_enters(house: House) -> None:
    """As by a prepared transaction that published under a thousand keys, and was forgotten."""
    keys = [f"k{number}" for number in range(60)]
    for key in keys:
        say_later(house, 1.0, key, key=key)
    say_later(house, 2.0, "loose")
    house.advance(3.0)
    database = house.another_database()
    with house.eyes.begin() as writer:
        take_key_locks(writer, house.tables, lock_numbers(keys))
        for _ in range(3):
            with database.begin() as connection:
                limit_lock_waits(connection)
                enter_outbox(connection, house.tables, house.clock, 10)
    assert house.waiting() == ["loose"]


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_look_that_has_not_come_to_the_end_is_gone_on_with(house: House) -> None:
    """And nothing of a key that was held enters before the next one, which begins anew."""
    say_later(house, 1.0, "k0", key="k")
    say_later(house, 1.0, *(f"j{number}" for number in range(40)), key="j")
    say_later(house, 2.0, "k1", key="k")
    say_later(house, 2.0, "loose")
    house.advance(3.0)
    database = house.another_database()
    progress = Progress(most=10)

    def enter() -> None:
        with database.begin() as connection:
            limit_lock_waits(connection)
            enter_outbox(connection, house.tables, house.clock, 5, progress)

    with house.eyes.begin() as writer:
        take_key_locks(writer, house.tables, lock_numbers(["k", "j"]))
        enter()
    while "loose" not in house.waiting():  # "k" is free again, and was not as this look began
        assert house.waiting() == []
        enter()
    assert house.waiting() == ["loose"]
    for _ in range(20):
        enter()
    assert len(house.waiting()) == 43
    assert [word for word in house.waiting() if word[0] == "k"] == ["k0", "k1"]


@pytest.mark.databases("sqlite", "mariadb")
async def test_what_is_delayed_and_not_as_we_write_it_stops_nothing_else(house: House) -> None:
    say_later(house, 1.0, "bad", key="k")
    say_later(house, 2.0, "good", key="j")
    with house.eyes.begin() as connection:
        broken = "x'ff'" if house.name == "mariadb" else "cast(x'ff' as text)"
        connection.exec_driver_sql(
            f"update outbox_saga_delayed set id = 'z', {quoted(house)} = {broken} "
            f"where {quoted(house)} = 'k'"
        )
    house.advance(3.0)
    recorder = Recorder()
    await house.relay(recorder).run_until_empty()
    assert recorder.words == ["good"]
    assert delayed(house) == []
    assert [dead.error_code for dead in house.dead()] == ["unreadable"]


def quoted(house: House) -> str:
    """The name of the column, in the database's own words."""
    return house.eyes.dialect.identifier_preparer.quote("key")


async def test_a_page_is_published_before_all_that_is_due_has_entered(house: House) -> None:
    """Millions may be due at once, and the lease does not wait for them."""
    say_later(house, 1.0, *(f"w{number}" for number in range(30)))
    house.advance(2.0)
    relay = house.relay(Recorder(), page_rows=10)
    assert await relay.run_once() == 10
    assert len(delayed(house)) == 20
    assert await relay.run_until_empty() == 30


def limit_lock_waits(connection: sa.Connection) -> None:
    """Whoever waits for a lock here has failed."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("set local lock_timeout = '1s'")
    else:
        connection.exec_driver_sql("set innodb_lock_wait_timeout = 1")


def _cuts(point: Point) -> bool:
    return point.kind != "rollback" and not point.statement.lstrip().upper().startswith("SET")


@pytest.mark.needs_a_session("the explorer asks the server who waits, by a session's number")
@pytest.mark.databases("postgres18", "mariadb")
@pytest.mark.timeout(400)  # hundreds of orders: 40 s by themselves
async def test_two_relays_let_each_message_in_once_whatever_the_order_of_their_steps(
    house: House,
) -> None:
    database = house.another_database()
    t = house.tables

    def play() -> Play:
        with database.begin() as connection:
            connection.execute(sa.delete(t.outbox))
            connection.execute(sa.delete(t.delayed))
        for word in ("a1", "a2", "b1"):
            say_later(house, 0.000001, word, key=word[0])
        came: list[int] = []

        def work(limit: int) -> None:
            with database.begin() as connection:
                came.append(enter_outbox(connection, t, house.clock, limit))

        def write() -> None:
            with database.begin() as connection:
                uow = UnitOfWork(connection)
                uow.publish(Said(word="later"), key="b", delay=1e6)
                uow.publish(Said(word="c"), key="a")

        def check(run: Run) -> str | None:
            if run.errors:
                return f"errors: {run.errors}"
            with database.begin() as connection:
                enter_outbox(connection, t, house.clock, 10)
            words = house.waiting()
            good = sorted(words) == ["a1", "a2", "b1", "c"] and words.index("a1") < words.index(
                "a2"
            )
            return None if good else f"in the outbox: {words}, {came}"

        works = {"one": lambda: work(1), "other": lambda: work(10)}
        return Play({**works, "writer": write}, check)

    most = 2 if house.name == "postgres18" else 1  # MariaDB is slow to say who waits
    found = explore(play, [database.engine], steps=_cuts, preemptions=most)
    assert not found.problems, found.report()
    assert found.deadlocks == 0, found.report()
    assert found.schedules > 20
