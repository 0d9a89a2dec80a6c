"""Schedules that broke a promise once: each keeps it now."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
import sqlalchemy as sa

from outbox_saga.brokers.contract import Outcome, Refused
from outbox_saga.brokers.local import LocalPublisher
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import BrokerUnavailable, Unpublishable
from outbox_saga.queries.outbox import write_messages
from outbox_saga_relay.large_bodies import is_left_out
from outbox_saga_relay.relay import Relay
from outbox_saga_relay.store import Page
from tests.relay.house import House, Recorder, accept, word_of
from tests.relay.test_running import REFUSED, spoken

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "error",
    [Unpublishable("too large", code="too_large"), BrokerUnavailable("not now", code="full")],
)
async def test_a_key_does_not_wait_for_a_message_that_the_owner_before_has_published(
    house: House, error: Unpublishable | BrokerUnavailable
) -> None:
    house.say("n", "n+1", key="k")
    gone: list[UUID] = []

    def refuses_what_an_earlier_owner_had_its_ack_for(envelope: Envelope) -> Outcome:
        if gone:
            return accept(envelope)
        gone.append(envelope.id)
        with house.eyes.begin() as connection:
            outbox = house.tables.outbox
            connection.execute(sa.delete(outbox).where(outbox.c.id == envelope.id))
        return Refused(error)

    relay = house.relay(Recorder(refuses_what_an_earlier_owner_had_its_ack_for))
    await relay.run_once()
    assert (house.blocked(), house.dead()) == ([], [])

    assert await relay.run_once() == 1

    assert house.waiting() == []


@pytest.mark.parametrize(
    "error",
    [Unpublishable("too large", code="too_large"), BrokerUnavailable("not now", code="full")],
)
async def test_what_stands_behind_such_a_message_is_read_again_though_the_mark_has_passed_it(
    house: House, error: Unpublishable | BrokerUnavailable
) -> None:
    (gone, *_) = house.say("n", "n+1", key="k")
    house.say("x")
    recorder = Recorder()
    relay = house.relay(recorder)
    assert await relay.store.lease.take()
    behind = (await relay._turns.exchange([])).rows[1]
    n, x = relay._lanes.take(10)
    assert [word_of(row.body) for row in (n, behind, x)] == ["n", "n+1", "x"]
    relay._lanes.accepted([x])
    await relay._turns.exchange([x])  # a transaction of its own, which is younger than the page
    await relay._turns.exchange([])
    if relay.store.connection.can_exchange:
        assert relay.store.mark.position >= behind.position
    with house.eyes.begin() as connection:  # the owner before was in the middle of this
        outbox = house.tables.outbox
        connection.execute(sa.delete(outbox).where(outbox.c.id == gone))
    relay._sending._fail(n, error)
    await relay._turns.store_all_failures()
    house.say("n+2", key="k")

    await relay.run_until_empty()

    assert recorder.words == ["n+1", "n+2"]
    assert house.waiting() == []


async def test_a_relay_whose_lease_ran_out_takes_it_anew_and_goes_on(house: House) -> None:
    recorder = Recorder()
    relay = house.relay(recorder, lease=30.0)
    house.say("a")
    assert await relay.run_once() == 1
    relay.store.lease._ends = 0.0  # as its own clock would say after 30 seconds
    house.advance(31)
    house.say("b")

    assert await relay.run_once() == 1

    assert house.waiting() == []


@pytest.mark.databases("sqlite")
async def test_a_handler_that_is_cancelled_from_inside_is_refused_and_ends_nothing(
    house: House,
) -> None:
    async def awaits_what_somebody_cancelled(_: Envelope) -> None:
        task = asyncio.ensure_future(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    house.say("a")
    relay = house.relay(LocalPublisher(awaits_what_somebody_cancelled))

    assert await relay.run_once() == 0

    assert [row.error_code for row in house.blocked()] == ["handler_failed"]
    assert house.waiting() == ["a"]


@pytest.mark.databases("sqlite")
async def test_a_handler_that_exits_is_refused_and_ends_nothing(house: House) -> None:
    async def exits(_: Envelope) -> None:
        raise SystemExit(3)

    house.say("a")
    relay = house.relay(LocalPublisher(exits))

    assert await relay.run_once() == 0

    assert [row.error_code for row in house.blocked()] == ["handler_failed"]


def large_ones_go_before_their_bodies_are_read(
    house: House, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner before removes what it sent: its statement began while its lease lasted."""
    outbox, whole = house.tables.outbox, relay.store._whole

    def gone(page: Page, room: int | None) -> Page:
        large = [row.position for row in page.rows if is_left_out(row)]
        with house.eyes.begin() as connection:
            connection.execute(sa.delete(outbox).where(outbox.c.position.in_(large)))
        return whole(page, room)

    monkeypatch.setattr(relay.store, "_whole", gone)


async def test_until_empty_goes_on_behind_a_page_of_which_nothing_is_left(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.say("x" * 40_000, "after")
    recorder = Recorder()
    relay = house.relay(recorder, page_rows=1)
    large_ones_go_before_their_bodies_are_read(house, relay, monkeypatch)
    assert await relay.run_until_empty() == 1
    assert recorder.words == ["after"]


async def test_a_page_of_which_nothing_is_left_when_its_bodies_are_read_is_no_whole_look(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(lambda e: REFUSED if word_of(e) == "k1" else accept(e))
    relay = house.relay(recorder)
    (k1,) = house.say("k1", key="k")
    await relay.run_once()
    assert [blocked.error_code for blocked in house.blocked()] == ["full"]
    writer = house.eyes.connect() if house.name.startswith("postgres") else None
    if writer is not None:  # below what is read next, when it is committed
        writer.begin()
        late = [spoken("x" * 40_000, "x"), spoken("late", "late")]
        write_messages(writer, house.tables, late)
    store, outbox = relay.store, house.tables.outbox
    house.say("before")
    before = await store.exchange([], 1)
    assert [word_of(row.body) for row in before.rows] == ["before"]
    if writer is not None:
        writer.commit()
        writer.close()
    else:
        house.say("x" * 40_000, "late")

    house.advance(61)
    assert (await store.renew_lease()).held  # it knows how late it is
    with house.eyes.begin() as connection:
        connection.execute(sa.delete(outbox).where(outbox.c.id == k1))
    large_ones_go_before_their_bodies_are_read(house, relay, monkeypatch)

    page = await store.exchange(before.rows, 1)

    assert (page.rows, page.full) == ([], True)
    assert house.blocked() == []  # it waited for nothing
    assert [word_of(row.body) for row in (await store.exchange([], 10)).rows] == ["late"]
