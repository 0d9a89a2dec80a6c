"""How often a relay looks when nothing happens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outbox_saga_relay.pace import COMPANY, DUE, Pace
from tests.relay.house import House, Recorder
from tests.relay.test_running import Broker, running, until

SPENT = 0.001  # seconds that a look or a renewal takes


@given(poll=st.floats(0.01, 30.0), renew=st.floats(0.1, 100.0))
def test_an_idle_relay_looks_at_least_once_in_poll_and_asks_at_most_once_besides_renewals(
    poll: float, renew: float
) -> None:
    now = 0.0
    pace = Pace(poll, renew, now)
    while not pace.idle:
        pace.looked(now, now, found=False)
    began = last = now
    asked = 0
    for _ in range(500):
        now = max(now, min(pace.renew_at, pace.read_at))
        if renews := now >= pace.renew_at:
            pace.renews(now)
        else:
            asked += 1
        assert now - last <= poll + 0.001
        last, now = now, now + SPENT
        pace.looked(last, now, found=False)
        assert pace.idle
        if renews and asked:
            assert asked <= (now - began) / poll + 1 + 1e-6


def test_a_database_that_answers_slowly_is_not_asked_without_a_pause() -> None:
    pace = Pace(0.25, 1000.0, 0.0)
    while not pace.idle:
        pace.looked(0.0, 0.0, found=False)
    pace.looked(1.0, 11.0, found=False)
    assert pace.read_at > 11.1


def test_failures_wait_a_moment_for_company_after_others_were_stored() -> None:
    pace = Pace(0.25, 1000.0, 5.0)
    assert pace.store_at <= 5.0
    pace.stored(5.0)
    assert pace.store_at == 5.0 + COMPANY


def test_it_is_not_asked_for_each_page_which_keys_are_due() -> None:
    pace = Pace(0.25, 1000.0, 5.0)
    assert pace.due_at <= 5.0
    pace.asked(5.0)
    assert pace.due_at == 5.0 + DUE


async def test_a_renewal_finds_what_was_committed_between_two_looks(house: House) -> None:
    heard = Recorder()
    relay = house.relay(heard, poll=0.01, lease=1000.0, listen=False)
    assert await relay.run_once() == 0
    house.say("one")
    assert (await relay.store.renew_lease(look=())).waiting
    assert not (await relay.store.renew_lease()).waiting  # it was not asked to look
    assert await relay.run_once() == 1
    assert not (await relay.store.renew_lease(look=())).waiting


async def test_a_relay_told_to_look_once_in_an_hour_still_looks_whenever_it_renews(
    house: House,
) -> None:
    broker = Broker()
    async with running(house.relay(broker, poll=3600.0, lease=0.9, listen=False)):
        house.say("first")
        await broker.until("first")
        await until(house, lambda: house.waiting() == [], "removed")
        house.say("second")
        await broker.until("second")
