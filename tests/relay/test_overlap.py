"""A relay that was overtaken still sends what it has read; its successor copes with it."""

from __future__ import annotations

import time

import pytest

from outbox_saga.brokers.contract import Refused
from outbox_saga.errors import BrokerUnavailable
from outbox_saga.queries.relay import Failed, delete_published
from outbox_saga.testing.interleaving import Play, Run, explore
from outbox_saga_relay.pace import Pace
from outbox_saga_relay.store import Store
from tests.relay.house import House, Recorder, accept


@pytest.mark.needs_a_session("the explorer asks the server who waits, by a session's number")
@pytest.mark.databases("postgres18", "mariadb")
async def test_a_key_is_parked_only_together_with_its_dead_letter(house: House) -> None:
    """In every order of the steps of a relay that removes a message, and of one that buries it."""
    databases = [house.another_database() for _ in range(2)]
    first, second = (Store(database, lease=1000.0) for database in databases)

    def play() -> Play:
        house.empty()
        house.say("one", key="k")
        assert first.lease._take({})
        (row,) = first._exchange([], 10, None, [], [], None).rows
        house.advance(1001)
        assert second.lease._take({})

        def removes() -> None:
            with databases[0].program_engine.begin() as connection:
                delete_published(connection, house.tables, [row])

        def check(run: Run) -> str | None:
            parked = [found.position for found in house.blocked()]
            dead = [found.position for found in house.dead()]
            if run.errors or house.waiting() or parked != dead:
                return f"parked {parked}, dead {dead}, left {house.waiting()}, {run.errors}"
            return None

        return Play(
            {
                # as its statement does that began while its lease lasted
                "removes": removes,
                "buries": lambda: second._store_failures([Failed(row, None, "no", "never")]),
            },
            check,
        )

    try:
        found = explore(play, [database.program_engine for database in databases])
    finally:
        for store in (first, second):
            store.connection.give_up()
    assert found.exhausted
    assert not found.problems, found.report()


async def test_a_key_does_not_wait_for_a_message_that_another_relay_has_removed(
    house: House,
) -> None:
    no = Refused(BrokerUnavailable("not now", code="not_now"))
    sent = Recorder(lambda _: no)
    successor = house.relay(sent, lease=1000.0)

    house.say("one", key="k")
    await successor.run_once()
    assert [b.error_code for b in house.blocked()] == ["not_now"]
    with house.eyes.begin() as connection:
        # the owner before had its ack, and its DELETE was on the way when its lease ended
        connection.execute(house.tables.outbox.delete())
    house.advance(61)
    assert (await successor.store.renew_lease()).held  # it knows how late it is
    await successor.run_once()
    assert house.blocked() == []
    assert len(successor.store.blocked) == 0
    sent.answer = accept
    house.say("two", key="k")
    assert await successor.run_once() == 1


async def test_a_relay_does_not_spin_while_the_time_of_a_key_has_come(house: House) -> None:
    no = Refused(BrokerUnavailable("not now", code="not_now"))
    relay = house.relay(Recorder(lambda _: no), lease=1000.0)
    house.say("one", key="k")
    await relay.run_once()
    house.advance(61)
    assert (await relay.store.renew_lease()).held
    now = time.monotonic()
    pace = Pace(relay.poll, 1000.0, now)
    pace.looked(now, now, found=False)
    looks = relay._serving.next_turn(pace, stopping=False)
    assert looks is not None
    looks.close()
    pace.looked(now, now, found=False)  # it could not be read
    pace.entered(now, full=False)
    assert relay._serving.next_turn(pace, stopping=False) is None
    assert relay._serving._patience(pace, busy=False) > 0
