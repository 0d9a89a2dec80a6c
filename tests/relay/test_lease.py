"""One relay works; another takes over when it must, and not before."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

import pytest
from sqlalchemy.exc import DBAPIError

from outbox_saga.brokers.contract import ACCEPTED, Outcome, Refused, Settled
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import LeaseLost, Unpublishable
from outbox_saga.ids import new_id
from outbox_saga.queries.dialects import is_transient
from outbox_saga.retries import Retry
from outbox_saga_relay.relay import Relay
from tests.relay.house import PATIENCE, House, Recorder, accept, word_of

QUICK = Retry(max_attempts=1_000_000, initial=0.01, max_delay=0.05)


async def test_while_one_relay_works_another_waits(house: House) -> None:
    first, second = Recorder(), Recorder()
    working, waiting = house.relay(first, lease=10.0), house.relay(second, lease=10.0)
    house.say("a")
    await working.run_once()
    house.say("b")
    assert await waiting.run_once() == 0
    house.advance(9)
    assert await waiting.run_once() == 0
    assert (second.words, second.opened) == ([], 0)
    await working.run_once()
    assert first.words == ["a", "b"]


async def test_a_relay_that_stopped_renewing_is_followed_when_its_lease_ends(
    house: House,
) -> None:
    first, second = Recorder(), Recorder()
    gone, successor = house.relay(first, lease=10.0), house.relay(second, lease=10.0)
    house.say("a")
    await gone.run_once()
    house.say("b")
    house.advance(11)
    assert await successor.run_once() == 1
    assert second.words == ["b"]


async def test_a_relay_that_renews_keeps_its_lease(house: House) -> None:
    working, waiting = house.relay(Recorder(), lease=10.0), house.relay(Recorder(), lease=10.0)
    await working.run_once()
    for _ in range(5):
        house.advance(8)
        assert (await working.store.renew_lease()).held
        assert await waiting.run_once() == 0
    assert house.owners() == {working.store.lease.owner}


async def test_what_takes_longer_than_the_lease_is_published_to_its_end(house: House) -> None:
    house.say(*range(60))
    recorder = Recorder()
    relay = house.relay(recorder, lease=0.5, page_rows=10, max_rate=40.0)
    assert await relay.run_until_empty() == 60
    assert sorted(recorder.words, key=int) == [str(n) for n in range(60)]
    assert house.waiting() == []


class SlowerThanTheLease(Recorder):
    """Its answer comes once the lease of whoever asks has been renewed."""

    def __init__(self, house: House) -> None:
        super().__init__()
        self._house = house

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> list[Outcome]:
        house = self._house
        lease = house.tables.partition_lease
        before = {row.until for row in house.rows(lease)}
        renewed = lambda: {row.until for row in house.rows(lease)} != before  # noqa: E731
        await asyncio.to_thread(house.until, renewed, "another lease while a page is on its way")
        return await super().publish(envelopes, settled)


async def test_the_lease_is_renewed_while_a_page_is_on_its_way(house: House) -> None:
    house.say("a", "b")
    slow = SlowerThanTheLease(house)
    assert await house.relay(slow, lease=0.5, page_rows=10).run_until_empty() == 2
    assert (sorted(slow.words), house.waiting()) == (["a", "b"], [])


async def test_a_relay_that_ends_gives_its_lease_to_the_next_at_once(house: House) -> None:
    stop, seen = asyncio.Event(), asyncio.Event()

    def answer(_: Envelope) -> Outcome:
        seen.set()
        return ACCEPTED

    house.say("a")
    running = asyncio.create_task(house.relay(Recorder(answer)).run(stop))
    await asyncio.wait_for(seen.wait(), PATIENCE)
    stop.set()
    await asyncio.wait_for(running, PATIENCE)
    assert house.owners() == {None}
    assert house.waiting() == []
    house.say("b")
    assert await house.relay(Recorder()).run_once() == 1


async def test_a_relay_that_cannot_tidy_up_gives_its_lease_back_all_the_same(
    house: House,
) -> None:
    stop, usurper, lease = asyncio.Event(), new_id(), house.tables.partition_lease
    house.say("a", key="a")
    (row,) = house.rows(house.tables.outbox)

    def answer(_: Envelope) -> Outcome:
        stop.set()
        with house.eyes.begin() as connection:
            one = lease.update().where(lease.c.partition == row.partition)
            connection.execute(one.values(owner=usurper))
        return ACCEPTED

    await house.relay(Recorder(answer), page_rows=1).run_until_empty(stop)

    assert house.owners() == {None, usurper}
    assert house.waiting() == ["a"]


async def test_a_relay_without_the_lease_takes_none_away_when_it_ends(house: House) -> None:
    working = house.relay(Recorder())
    await working.run_once()
    waiting = house.relay(Recorder(), poll=0.01)
    stop = asyncio.Event()
    running = asyncio.create_task(waiting.run(stop))
    stop.set()
    await asyncio.wait_for(running, PATIENCE)
    assert house.owners() == {working.store.lease.owner}


async def test_a_relay_that_was_passed_reads_nothing_any_more(house: House) -> None:
    """What stands behind a parked key must not leave through one that has not heard of it."""
    recorder = Recorder()
    passed = house.relay(recorder, lease=10.0)
    await passed.run_once()
    house.advance(11)
    house.say("a1", "a2", key="a")
    successor = house.relay(
        Recorder(lambda _: Refused(Unpublishable("never", code="never"))), lease=10.0
    )
    await successor.run_once()
    assert [word_of(dead.body) for dead in house.dead()] == ["a1"]
    assert await passed.run_once() == 0
    assert recorder.words == []
    assert house.waiting() == ["a2"]


async def test_a_relay_that_was_passed_removes_nothing_any_more_and_counts_it(
    house: House,
) -> None:
    """Its successor has the rows in hand, and removes them after its own ack."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(_: Envelope) -> Outcome:
        begun.set()
        await go.wait()
        return ACCEPTED

    successor = house.relay(Recorder(slow), lease=1000.0)
    passing: list[asyncio.Task[int]] = []

    async def overtaken(_: Envelope) -> Outcome:
        house.advance(1001)
        passing.append(asyncio.create_task(successor.run_once()))
        await asyncio.wait_for(begun.wait(), PATIENCE)
        return ACCEPTED

    house.say("a", "b")
    passed = house.relay(Recorder(overtaken), lease=1000.0, page_rows=1)
    for _ in range(2):
        with contextlib.suppress(LeaseLost):  # where the lease is asked for by itself
            await passed.run_once()
    assert house.waiting() == ["a", "b"]
    assert await passed.run_once() == 0
    assert passed.store.lease.fenced == 1
    go.set()
    assert await asyncio.wait_for(passing[0], PATIENCE) == 2
    assert house.waiting() == []
    assert successor.store.lease.fenced == 0


async def removes_too_late(house: House) -> tuple[Relay, Recorder]:
    """A relay whose lease runs out between an ack and its removal; from now on all is quick."""

    def late(_: Envelope) -> Outcome:
        house.advance(11)
        return ACCEPTED

    recorder = Recorder(late)
    relay = house.relay(recorder, lease=10.0)
    house.say("a")
    with contextlib.suppress(LeaseLost):
        await relay.run_once()
    recorder.answer = accept
    return relay, recorder


async def test_a_relay_whose_lease_ran_out_while_nobody_wanted_it_was_not_fenced(
    house: House,
) -> None:
    relay, recorder = await removes_too_late(house)
    await relay.store.renew_lease()
    relay._turns.forget()
    await relay.run_once()
    assert recorder.words == ["a", "a"]
    assert house.waiting() == []


async def test_what_could_not_be_removed_for_a_moment_is_read_again(house: House) -> None:
    """As when the database's clock is set back: the lease was over, and is not."""

    relay, recorder = await removes_too_late(house)
    assert house.waiting() == ["a"]
    house.advance(-11)
    while house.waiting():
        await relay.run_once()
    assert recorder.words == ["a", "a"]


@pytest.mark.databases("postgres18")
async def test_the_server_ends_what_a_relay_that_stands_still_has_begun(house: House) -> None:
    """In the middle of a statement, too, where its session is not idle; since PostgreSQL 17."""
    relay = house.relay(Recorder(), lease=0.5)
    with pytest.raises(DBAPIError) as ended:
        relay.store.connection.write(lambda c: c.exec_driver_sql("select pg_sleep(60)").all())
    assert getattr(ended.value.orig, "sqlstate", None) == "25P04"  # transaction_timeout
    assert is_transient(ended.value)  # it begins anew when it goes on


@pytest.mark.databases("postgres18", "sqlite")
async def test_a_relay_that_lost_its_lease_leaves_no_task_behind_and_works_again(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    published = asyncio.Queue[str]()

    def answer(envelope: Envelope) -> Outcome:
        published.put_nowait(word_of(envelope))
        return ACCEPTED

    relay = house.relay(Recorder(answer), lease=0.2, poll=0.01)
    usurper = house.relay(Recorder(), lease=0.2)
    stop = asyncio.Event()
    before = asyncio.all_tasks()
    running = asyncio.create_task(relay.run(stop))

    async def until(word: str) -> None:
        while await asyncio.wait_for(published.get(), PATIENCE) != word:
            pass  # what it could not remove any more comes again

    for number in range(3):
        house.say(number)
        await until(str(number))
        # as if the relay had stood still for longer than its lease
        with house.eyes.begin() as connection:
            lease = house.tables.partition_lease
            connection.execute(lease.update().values(owner=usurper.store.lease.owner))
    house.say("last")
    await until("last")
    stop.set()
    await asyncio.wait_for(running, PATIENCE)
    left = {task for task in asyncio.all_tasks() - before if not task.done()}
    assert left == set()
    assert house.owners() == {None}


async def test_stopping_waits_for_what_is_in_flight_and_begins_nothing_new(house: House) -> None:
    house.say(*range(20), key="a")
    stop, reached, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(_: Envelope) -> Outcome:
        reached.set()
        await go.wait()
        return ACCEPTED

    recorder = Recorder(answer)
    running = asyncio.create_task(house.relay(recorder).run(stop))
    await asyncio.wait_for(reached.wait(), PATIENCE)
    stop.set()
    await asyncio.sleep(0)  # the relay hears of it
    go.set()
    await asyncio.wait_for(running, PATIENCE)
    assert recorder.words == ["0"]
    assert house.waiting() == [str(number) for number in range(1, 20)]
    assert house.owners() == {None}


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_database_connection_cut_in_the_middle_loses_nothing(house: House) -> None:
    reached, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(envelope: Envelope) -> Outcome:
        reached.set()
        await go.wait()
        if word_of(envelope) == "last":
            done.set()
        return ACCEPTED

    ids = house.say("a1", "a2", key="a")
    recorder = Recorder(answer)
    relay = house.relay(recorder, outage=QUICK, poll=0.01)
    stop = asyncio.Event()
    running = asyncio.create_task(relay.run(stop))
    await asyncio.wait_for(reached.wait(), PATIENCE)
    assert house.cut_connections() > 0
    go.set()
    ids += house.say("last", key="a")
    await asyncio.wait_for(done.wait(), PATIENCE)
    stop.set()
    await asyncio.wait_for(running, PATIENCE)
    assert house.waiting() == []
    assert list(dict.fromkeys(e.id for e in recorder.attempts)) == ids
    assert house.owners() == {None}


async def test_a_broker_that_is_away_at_the_start_is_waited_for(house: House) -> None:
    from outbox_saga.errors import BrokerUnavailable

    class Late(Recorder):
        async def open(self) -> None:
            await super().open()
            if self.opened < 4:
                raise BrokerUnavailable("nobody there", code="unreachable")

    done = asyncio.Event()

    def answer(_: Envelope) -> Outcome:
        done.set()
        return ACCEPTED

    house.say("a")
    recorder = Late(answer)
    stop = asyncio.Event()
    running = asyncio.create_task(house.relay(recorder, outage=QUICK).run(stop))
    await asyncio.wait_for(done.wait(), PATIENCE)
    stop.set()
    await asyncio.wait_for(running, PATIENCE)
    assert recorder.opened == 4
    assert recorder.words == ["a"]
