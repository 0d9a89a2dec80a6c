"""What is put back, or may be tried again, behind a mark that has passed it."""

from __future__ import annotations

from typing import Any

import pytest

from outbox_saga.dead_letters import DeadLetters
from outbox_saga.decisions import Decision
from outbox_saga.queries import relay as verbs
from outbox_saga.queries.exchange import can_exchange
from outbox_saga.queries.relay import Failed
from outbox_saga_relay.relay import Relay
from outbox_saga_relay.store import Page
from tests.relay.house import House, Recorder, word_of
from tests.relay.test_outcomes import IMPOSSIBLE, UNCONFIRMED, scripted
from tests.relay.test_running import running, until

ADA = Decision("ada", "it was mended")


def of_k(recorder: Recorder) -> list[str]:
    return [word for word in recorder.words if word.startswith("k")]


def words(page: Page) -> list[str]:
    return [word_of(row.body) for row in page.rows]


async def passed(house: House, relay: Relay) -> None:
    """The mark is above everything there is now, where the database knows a mark."""
    for number in range(4):
        house.say(f"x{number}")
        await relay.run_once()


def replay_all(house: House) -> None:
    letters = DeadLetters(house.database)
    with house.database.begin() as connection:
        for letter in letters.find(connection):
            letters.replay(connection, letter, ADA)


async def test_a_replay_beside_a_running_relay_comes_before_what_waited_behind_it(
    house: House,
) -> None:
    """The lease is long, so that no renewal tells the relay what a page must see by itself."""
    recorder = scripted(k1=[IMPOSSIBLE])
    relay = house.relay(recorder)
    house.say("k1", key="k")
    async with running(relay):
        await until(house, house.dead, "k1 is a dead letter")
        for number in range(4):
            house.say(f"x{number}")
            relay.hint()
            await until(house, lambda: not house.waiting(), "gone")
        house.say("k2", "k3", key="k")
        replay_all(house)
        relay.hint()
        await until(house, lambda: not house.waiting(), "all of k is published")
    assert of_k(recorder) == ["k1", "k1", "k2", "k3"]
    assert (house.blocked(), house.dead()) == ([], [])


async def test_a_replay_between_two_statements_of_a_page_comes_before_what_waited_behind_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = scripted(k1=[IMPOSSIBLE])
    relay = house.relay(recorder)
    house.say("k1", key="k")
    await relay.run_once()
    await passed(house, relay)
    house.say("k2", "k3", key="k")
    due_positions, looked = verbs.due_positions, list[int]()

    def then_somebody_replays(*args: Any) -> list[int]:
        found = due_positions(*args)
        looked.append(len(found))
        if len(looked) == 1:
            replay_all(house)
        return found

    monkeypatch.setattr(verbs, "due_positions", then_somebody_replays)
    await relay.run_once()
    if not looked:  # without a mark nobody looks
        replay_all(house)
        await relay.run_once()
    assert of_k(recorder) == ["k1", "k1", "k2", "k3"]
    assert (house.blocked(), house.dead(), house.waiting()) == ([], [], [])


async def test_until_empty_publishes_what_is_put_back_meanwhile(house: House) -> None:
    recorder = scripted(k1=[IMPOSSIBLE])
    relay = house.relay(recorder)
    house.say("k1", key="k")
    await relay.run_once()
    await passed(house, relay)
    replay_all(house)
    await relay.run_until_empty()
    assert of_k(recorder) == ["k1", "k1"]
    assert house.waiting() == []


async def test_a_key_whose_time_comes_while_a_page_is_read_goes_on_where_it_stopped(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time has not come at the look for it, and has at the read: clocks go on in between."""
    recorder = scripted(k1=[UNCONFIRMED])
    relay = house.relay(recorder)
    house.say("k1", key="k")
    await relay.run_once()
    await passed(house, relay)
    house.say("k2", "k3", key="k")
    due_positions, looked = verbs.due_positions, list[int]()

    def then_a_minute_passes(*args: Any) -> list[int]:
        found = due_positions(*args)
        looked.append(len(found))
        if len(looked) == 1:
            house.advance(61)
        return found

    monkeypatch.setattr(verbs, "due_positions", then_a_minute_passes)
    for _ in range(3):
        await relay.run_once()
    house.advance(61)
    await relay.run_once()
    assert of_k(recorder) == ["k1", "k1", "k2", "k3"]
    assert (house.waiting(), house.blocked()) == ([], [])


async def test_a_key_that_is_due_is_due_for_pages_that_do_not_ask_for_it(house: House) -> None:
    """Else they would leave out what stands behind it, and the mark would pass that."""
    relay = house.relay(scripted(k1=[UNCONFIRMED]))
    house.say("k1", key="k")
    await relay.run_once()
    await passed(house, relay)
    house.advance(61)
    first = await relay.store.exchange([], 10)
    assert words(first) == ["k1"]
    known = [row.position for row in first.rows]
    house.say("k2", key="k")
    assert words(await relay.store.exchange([], 10, known=known, due=False)) == ["k2"]
    failed = Failed(first.rows[0], 30.0, "timeout", "no answer")
    await relay.store.store_failures([failed])
    assert words(await relay.store.exchange([], 10, due=False)) == []


async def test_a_key_whose_time_has_come_waits_for_a_page_that_asks(house: House) -> None:
    relay = house.relay(scripted(k1=[UNCONFIRMED]))
    house.say("k1", key="k")
    await relay.run_once()
    await passed(house, relay)
    house.say("k2", key="k")
    house.advance(61)
    early = await relay.store.exchange([], 10, due=False)
    # without a mark a page begins at the bottom, and goes by the clock
    assert words(early) == ([] if can_exchange(house.database.engine) else ["k1", "k2"])
    assert words(await relay.store.exchange([], 10)) == ["k1", "k2"]


async def test_what_is_due_as_one_owner_was_told_waits_as_the_next_one_stored_it(
    house: House,
) -> None:
    """It gets the partition back, and remembers nothing of what it was told before."""
    relay, other = house.relay(scripted(k1=[UNCONFIRMED])), house.relay(scripted(k1=[UNCONFIRMED]))
    house.say("k1", key="k")
    await relay.run_once()
    house.advance(61)
    assert words(await relay.store.exchange([], 10)) == ["k1"]
    await relay.store.lease.release()
    await other.run_once()
    await other.store.lease.release()
    assert await relay.store.lease.take()
    assert words(await relay.store.exchange([], 10, due=False)) == []
    assert words(await relay.store.exchange([], 10)) == []
    house.advance(61)
    assert words(await relay.store.exchange([], 10)) == ["k1"]
