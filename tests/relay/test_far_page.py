"""A page that is found far behind the rows of a parked key."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga.brokers.contract import ACCEPTED, Outcome, Refused
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import BrokerUnavailable, LeaseLost, Unpublishable
from outbox_saga.queries.outbox import write_messages
from outbox_saga_relay.relay import Relay
from tests.brokers.conformance import envelope
from tests.relay.house import RETRY, House, Recorder, word_of
from tests.relay.test_running import running, until


def poison(envelope: Envelope) -> Outcome:
    if word_of(envelope) == "poison":
        return Refused(Unpublishable("no", code="no"))
    return ACCEPTED


async def park(house: House, key: str) -> None:
    house.say("poison", key=key)
    await house.relay(Recorder(poison)).run_until_empty()


def follow(house: House, rows: int, size: int) -> None:
    """So many of the parked key, by one statement."""
    house.say("x" * size, key="k")
    names = "id, `partition`, topic, `key`, headers, body, created_at"
    with house.eyes.begin() as connection:
        connection.exec_driver_sql(
            f"insert into outbox_saga_outbox ({names}) "
            f"select {names} from outbox_saga_outbox, seq_1_to_{rows}"
        )


def far(relay: Relay) -> Any:
    relay.store._far._slow = -1.0
    relay.store._far.is_far = True
    return relay.store._far


@pytest.mark.timeout(300)
@pytest.mark.databases("mariadb")
async def test_a_page_behind_more_than_a_statement_may_pass_is_found(house: House) -> None:
    await park(house, "k")
    follow(house, 60_000, 2000)
    house.say("other")
    recorder = Recorder()
    relay = Relay(house.another_database(deadline=0.5), recorder, retry=RETRY, poll=0.02)
    house._relays.append(relay)
    async with running(relay):
        await until(house, lambda: recorder.words == ["other"], "it is found")
    assert relay.store._far.is_far


async def test_pieces_make_the_page_that_one_statement_would(
    house: House,
) -> None:
    await park(house, "k")
    house.say(*(f"k{number}" for number in range(40)), key="k")
    house.say(*(f"a{number}" for number in range(5)), key="a")
    house.say(*(f"k{number}" for number in range(40, 80)), key="k")
    house.say(*(f"a{number}" for number in range(5, 10)), "last", key="a")
    recorder = Recorder()
    relay = house.relay(recorder, page_rows=4)
    far(relay)._piece = 3
    for _ in range(10):
        await relay.run_once()
    assert recorder.words == [*(f"a{number}" for number in range(10)), "last"]
    assert len(house.waiting()) == 80


@pytest.mark.databases("mariadb", "postgres18")
async def test_what_is_committed_between_two_pieces_is_not_found_by_halves(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first message appears in a piece that was passed, its second in the next one."""
    await park(house, "k")
    relay = house.relay(Recorder())
    assert await relay.store.lease.take()
    look = far(relay)
    look._piece = 2
    next_piece = look._next
    with house.eyes.connect() as late:
        writing = late.begin()
        first, second = envelope(key="j"), envelope(key="j")
        write_messages(late, house.tables, [first])
        house.say(*(f"k{number}" for number in range(4)), key="k")

        def between(*arguments: Any) -> Any:
            found = next_piece(*arguments)
            if writing.is_active:
                writing.commit()
                with house.eyes.begin() as connection:
                    write_messages(connection, house.tables, [second])
            return found

        monkeypatch.setattr(look, "_next", between)
        assert (await relay.store.exchange([], 10)).rows == []
    page = await relay.store.exchange([], 10)
    assert [row.id for row in page.rows] == [first.id, second.id]


@pytest.mark.databases("mariadb", "sqlite", "postgres18")
async def test_a_lease_that_is_lost_during_the_look_loses_the_page(house: House) -> None:
    house.say("a1", key="a")
    relay, usurper = house.relay(Recorder(), lease=10.0), house.relay(Recorder())
    assert await relay.store.lease.take()
    look = far(relay)
    begin = look._begin

    def passed(*arguments: Any) -> Any:
        found = begin(*arguments)
        house.advance(20)
        usurper.store.lease._take({})
        return found

    look._begin = passed
    with pytest.raises(LeaseLost):
        await relay.store.exchange([], 10)


@pytest.mark.databases("mariadb", "sqlite", "postgres18")
async def test_a_key_whose_time_comes_during_the_look_waits_for_the_next(house: House) -> None:
    def answer(envelope: Envelope) -> Outcome:
        return Refused(BrokerUnavailable("not now", code="full"))

    house.say("a1", key="a")
    relay = house.relay(Recorder(answer))
    await relay.run_once()
    house.say("a2", key="a")
    look = far(relay)
    begin = look._begin

    def later(*arguments: Any) -> Any:
        found = begin(*arguments)
        house.advance(61)
        return found

    look._begin = later
    assert (await relay.store.exchange([], 10)).rows == []
    look._begin = begin
    assert [word_of(row.body) for row in (await relay.store.exchange([], 10)).rows] == ["a1", "a2"]


@pytest.mark.databases("mariadb", "sqlite", "postgres18")
async def test_a_relay_that_is_told_to_stop_does_not_look_to_the_end(house: House) -> None:
    await park(house, "k")
    house.say(*range(20), key="k")
    relay = house.relay(Recorder())
    assert await relay.store.lease.take()
    look = far(relay)
    look._piece = 2
    next_piece, pieces = look._next, []

    def stop(*arguments: Any) -> Any:
        pieces.append(1)
        relay.store.connection.thread._hurry = 5.0
        return next_piece(*arguments)

    look._next = stop
    assert (await relay.store.exchange([], 10)).rows == []
    assert len(pieces) == 1


@pytest.mark.databases("postgres18", "postgres15")
async def test_a_look_whose_process_stands_still_is_ended_by_the_server(house: House) -> None:
    """It would hold back vacuum for as long as that lasts."""
    house.say("a")
    relay = house.relay(Recorder())
    store, look = relay.store, far(relay)
    await store.lease.take()
    look._idle = 0.05
    snapshot = await store.connection.run(store.connection.snapshot)
    try:
        wanted = await store.connection.run(store._page_wanted, 1, [], [], None, True)
        await store.connection.run(look._begin, snapshot, wanted)
        driver: Any = snapshot.connection.driver_connection
        pid = driver.info.backend_pid

        def ended() -> bool:
            with house.eyes.begin() as connection:
                asked = sa.text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
                return not connection.execute(asked, {"pid": pid}).scalar_one()

        house.until(ended, "the end of the look")
    finally:
        snapshot.invalidate()
        snapshot.close()
