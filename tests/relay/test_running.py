"""A relay that runs: reading, sending and removing beside each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from outbox_saga.brokers.contract import ACCEPTED, Outcome, Refused, Settled
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import BrokerDown, BrokerUnavailable, PublishUnconfirmed, Unpublishable
from outbox_saga.ids import new_id
from outbox_saga.queries.outbox import write_messages
from outbox_saga.queries.relay import Failed
from outbox_saga.retries import Retry
from outbox_saga_relay import pace
from outbox_saga_relay.relay import Relay
from outbox_saga_relay.store import Page
from tests.relay.house import PATIENCE, House, Recorder, Said, word_of

REFUSED = Refused(BrokerUnavailable("not now", code="full"))
QUICK = Retry(max_attempts=1_000_000, initial=0.01, max_delay=0.05)


def spoken(word: str, key: str) -> Envelope:
    body = Said(word=word).model_dump_json().encode()
    return Envelope(id=new_id(), topic="talk", key=key, type="Said", body=body)


class Broker:
    """Each message is settled by itself, when the test says so or at once."""

    def __init__(self, record: list[str] | None = None) -> None:
        self.attempts: list[str] = []
        self.record = [] if record is None else record  # of several brokers that are one
        self.held: dict[str, asyncio.Event] = {}
        self.refuses: set[str] = set()
        self.no: Outcome = REFUSED
        self.came = asyncio.Condition()
        self.flying = self.most = 0

    def hold(self, word: object) -> asyncio.Event:
        """Until the event is set, this word is not settled."""
        return self.held.setdefault(str(word), asyncio.Event())

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        assert settled is not None
        await asyncio.gather(*(self._one(i, e, settled) for i, e in enumerate(envelopes)))
        return [ACCEPTED] * len(envelopes)

    async def _one(self, index: int, envelope: Envelope, settled: Settled) -> None:
        word = word_of(envelope)
        self.attempts.append(word)
        self.record.append(word)
        self.flying += 1
        self.most = max(self.most, self.flying)
        async with self.came:
            self.came.notify_all()
        if word in self.held:
            await self.held[word].wait()
        self.flying -= 1
        settled(index, self.no if word in self.refuses else ACCEPTED)

    async def until(self, *words: object) -> None:
        """All of these have come."""
        wanted = {str(word) for word in words}
        async with self.came, asyncio.timeout(PATIENCE):
            await self.came.wait_for(lambda: wanted <= set(self.attempts))


@asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(relay.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, PATIENCE)


async def until(house: House, condition: Any, what: str) -> None:
    await asyncio.get_running_loop().run_in_executor(None, house.until, condition, what)


async def test_a_slow_message_holds_up_no_other_of_its_page(house: House) -> None:
    broker = Broker()
    slow = broker.hold("slow")
    house.say("slow", key="a")
    house.say(*(f"b{n}" for n in range(5)), key="b")
    house.say("free")
    async with running(house.relay(broker, poll=0.02)):
        await broker.until("slow", "b4", "free")
        await until(house, lambda: house.waiting() == ["slow"], "the others are removed")
        house.say("later", key="c")
        await broker.until("later")
        slow.set()
    assert house.waiting() == []
    assert len(broker.attempts) == 8


async def test_a_long_backlog_of_one_key_keeps_no_other_waiting(house: House) -> None:
    broker = Broker()
    stuck = broker.hold("hot0")
    house.say(*(f"hot{n}" for n in range(300)), key="hot")
    house.say("cold", key="cold")
    async with running(house.relay(broker, page_rows=40, poll=0.02)):
        await broker.until("cold")
        assert broker.attempts.count("hot0") == 1
        stuck.set()
        await broker.until("hot299")
        house.say("hot300", key="hot")
        await broker.until("hot300")
    hot = [word for word in broker.attempts if word.startswith("hot")]
    assert hot == [f"hot{n}" for n in range(301)]
    assert house.waiting() == []


async def test_many_long_keys_keep_no_others_waiting_and_memory_within_its_bound(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the broker takes what is read of them faster than the database gives more."""
    broker = Broker()
    gates = [broker.hold(f"cold{n}") for n in range(300)]
    for key in range(6):
        house.say(*(f"{key}-{n}" for n in range(150)), key=f"hot{key}")
    house.say(*(f"cold{n}" for n in range(300)))
    relay = house.relay(broker, page_rows=40, poll=0.02)
    lanes, sizes = relay._lanes, list[int]()
    more_of = relay.store.more_of

    async def slower_than_the_broker(*args: Any, **more: Any) -> Page:
        page = await more_of(*args, **more)
        sizes.append(lanes.rows)
        while lanes.ready or any(row.key is not None for row in lanes._flying.values()):
            sizes.append(lanes.rows)
            await asyncio.sleep(0)
        return page

    monkeypatch.setattr(relay.store, "more_of", slower_than_the_broker)
    async with running(relay):
        full = lambda: lanes.flying > 140 or lanes.rows > 160  # noqa: E731
        await until(house, full, "memory is full of messages that wait for the broker")
        for gate in gates:
            gate.set()
        await until(house, lambda: not house.waiting(), "all are published")
    assert max(sizes) <= 4 * 40
    for key in range(6):
        words = [word for word in broker.attempts if word.startswith(f"{key}-")]
        assert words == [f"{key}-{n}" for n in range(150)]
    last = max(broker.attempts.index(f"cold{n}") for n in range(300))
    assert last < broker.attempts.index("5-140"), "cold ones have waited for the long keys"


async def test_a_relay_that_is_told_to_end_sends_nothing_behind_what_is_on_its_way(
    house: House,
) -> None:
    broker = Broker()
    first = broker.hold("first")
    house.say("first", "second", key="k")
    stop = asyncio.Event()
    ending = asyncio.create_task(house.relay(broker, poll=0.02).run(stop))
    await broker.until("first")
    stop.set()
    first.set()
    await asyncio.wait_for(ending, PATIENCE)
    assert broker.attempts == ["first"]
    assert house.waiting() == ["second"]


async def test_what_fails_waits_for_company_as_long_as_something_is_on_its_way(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "COMPANY", 3600.0)
    broker = Broker()
    slow = broker.hold("slow")
    house.say("slow", key="a")
    relay = house.relay(broker, poll=0.02)
    stored: list[int] = []
    store_failures = relay.store.store_failures

    async def counted(failures: Sequence[Failed]) -> list[Failed]:
        done = await store_failures(failures)
        stored.append(len(failures))
        return done

    monkeypatch.setattr(relay.store, "store_failures", counted)
    async with running(relay):
        await broker.until("slow")
        broker.refuses |= {"first", "second", "third"}
        house.say("first", key="b")  # alone: none before it has been stored
        await until(house, lambda: stored == [1], "the first one is stored")
        for word, key in (("second", "c"), ("third", "d")):
            house.say(word, key=key)
            await broker.until(word)
        house.say("free")
        await broker.until("free")
        await until(house, lambda: house.waiting()[-1] != "free", "others have gone their way")
        assert len(house.blocked()) == 1
        slow.set()
        await until(house, lambda: len(house.blocked()) == 3, "all of them are stored")
    assert stored == [1, 2]


async def test_a_relay_that_is_told_to_end_waits_for_what_is_on_its_way_and_not_in_circles(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker()
    slow = broker.hold("slow")
    house.say("slow", key="a")
    relay = house.relay(broker, poll=0.02)
    stop, rounds = asyncio.Event(), list[float]()
    patience = relay._serving._patience

    def counted(*args: Any, **kwargs: Any) -> float:
        rounds.append(patience(*args, **kwargs))
        return rounds[-1]

    monkeypatch.setattr(relay._serving, "_patience", counted)
    ending = asyncio.create_task(relay.run(stop))
    await broker.until("slow")
    await until(house, lambda: relay._lanes.flying == 1, "it is on its way")
    stop.set()
    for _ in range(1000):
        await asyncio.sleep(0)
    assert rounds[-1] > 1.0
    slow.set()
    await asyncio.wait_for(ending, PATIENCE)


async def test_a_relay_that_is_cancelled_sends_nothing_it_gives_up_once_more(
    house: House,
) -> None:
    broker = Broker()
    broker.hold("first")
    house.say("first", "second", key="k")
    ending = asyncio.create_task(house.relay(broker, poll=0.02).run(asyncio.Event()))
    await broker.until("first")
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)
    assert broker.attempts == ["first"]
    assert house.waiting() == ["first", "second"]


async def test_what_is_in_memory_has_a_bound(house: House) -> None:
    broker = Broker()
    gates = [broker.hold(n) for n in range(200)]
    house.say(*range(200))
    relay = house.relay(broker, page_rows=10, poll=0.02)
    async with running(relay):
        await broker.until(*range(30))
        await until(house, lambda: relay._lanes.rows >= 35, "the relay has read ahead")
        assert relay._lanes.rows <= 40
        for gate in gates:
            gate.set()
        await broker.until(*range(200))
    assert broker.most <= 40
    assert house.waiting() == []


async def test_what_one_statement_removes_has_a_bound(house: House) -> None:
    """SQLite takes 32,766 parameters, PostgreSQL ends a transaction that outlasts the lease."""
    house.say("a", "b")
    relay = house.relay(Recorder())
    assert await relay.store.lease.take()
    rows = (await relay._turns.exchange([])).rows
    gone = [rows[0]._replace(position=n, id=UUID(int=n)) for n in range(10**6, 10**6 + 20_000)]
    relay._sending.acknowledged = [rows[0], *gone, rows[1]]
    await relay._turns.remove()
    assert (house.waiting(), len(relay._sending.acknowledged)) == (["b"], 15_002)
    await relay._turns.remove_all()
    assert (house.waiting(), relay._sending.acknowledged) == ([], [])


async def test_a_page_of_large_bodies_has_a_bound_in_bytes(house: House) -> None:
    large = "x" * 100_000
    house.say("small")
    house.say(*(f"{n}{large}" for n in range(6)))
    recorder = Recorder()
    relay = house.relay(recorder, page_bytes=250_000)
    counts = []
    while count := await relay.run_once():
        counts.append(count)
    assert counts[:3] == [3, 2, 2]
    assert [word[0] for word in recorder.words] == ["s", *"012345"]
    assert recorder.words[1] == "0" + large
    assert house.waiting() == []


class SlowForOne:
    """Of each call the first message is not settled until the test says so, all others at once."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.came = 0
        self.kept = self.most = 0  # bytes of all calls that are not over

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        assert settled is not None
        size = sum(len(envelope.body) for envelope in envelopes)
        self.came += len(envelopes)
        self.kept += size
        self.most = max(self.most, self.kept)
        for index in range(1, len(envelopes)):
            settled(index, ACCEPTED)
        await self.go_on.wait()
        self.kept -= size
        return [ACCEPTED] * len(envelopes)


async def test_what_calls_hold_that_one_slow_message_keeps_open_counts_as_memory(
    house: House,
) -> None:
    house.say(*(f"{n}{'x' * 100_000}" for n in range(100)))
    broker = SlowForOne()
    relay = house.relay(broker, page_bytes=500_000, poll=0.02)
    async with running(relay):
        await until(
            house, lambda: broker.came and not relay._turns.has_room, "it reads no more for now"
        )
        assert broker.most <= 3 * 500_000
        broker.go_on.set()
        await until(house, lambda: house.waiting() == [], "all are published")
    assert broker.came == 100


async def test_the_next_rows_of_a_long_key_have_a_bound_in_bytes(house: House) -> None:
    # 16 rows of a key are kept: the large ones are read when all that is known of it is small
    house.say(*range(40), *(f"{n}{'x' * 100_000}" for n in range(40, 80)), key="hot")
    sizes: list[int] = []

    async def measured(_: Envelope) -> Outcome:
        sizes.append(relay._lanes.size)
        return ACCEPTED

    recorder = Recorder(measured)
    relay = house.relay(recorder, page_rows=40, page_bytes=300_000, poll=0.02)
    async with running(relay):
        await until(house, lambda: house.waiting() == [], "all are published")
    assert [int(word.rstrip("x")) for word in recorder.words] == list(range(80))
    assert max(sizes) <= 3 * 300_000


async def test_a_long_body_that_was_acknowledged_is_in_memory_no_longer(house: House) -> None:
    house.say("x" * 100_000, "short")
    relay = house.relay(Recorder())
    await relay.store.lease.take()
    page = await relay._turns.exchange([])
    await relay._sending.send(relay._lanes.take(10))
    assert len(page.rows) == 2
    assert sum(len(row.body) for row in relay._sending.acknowledged) < 1_000
    await relay._turns.remove()
    assert house.waiting() == []


async def test_while_the_broker_is_down_one_message_at_a_time_asks_for_it(house: House) -> None:
    house.say(*range(50))
    down, asked, most = True, asyncio.Queue[int](), 0

    class Dying(Recorder):
        async def publish(
            self, envelopes: Sequence[Envelope], settled: Settled | None = None
        ) -> list[Outcome]:
            self.attempts += envelopes
            asked.put_nowait(len(envelopes))
            if down:
                return [Refused(BrokerDown("nobody", code="unreachable"))] * len(envelopes)
            return [ACCEPTED] * len(envelopes)

    broker = Dying()
    async with running(house.relay(broker, outage=QUICK, poll=0.02)):
        first = await asyncio.wait_for(asked.get(), PATIENCE)
        probes = [await asyncio.wait_for(asked.get(), PATIENCE) for _ in range(5)]
        assert first == 50
        assert probes == [1] * 5
        assert (house.blocked(), house.dead()) == ([], [])
        down = False
        while most < 40:
            most += (count := await asyncio.wait_for(asked.get(), PATIENCE))
            probes.append(count)
        await until(house, lambda: house.waiting() == [], "drained")
    ramp = [count for count in probes[5:] if count > 1]
    assert all(later <= 2 * sum(probes[: 5 + i + 2]) for i, later in enumerate(ramp))


async def test_a_message_that_takes_the_connection_with_it_is_blamed_once_it_goes_alone(
    house: House,
) -> None:
    lost = Refused(PublishUnconfirmed("lost", code="connection_lost"))
    house.say("bomb", key="bomb")
    house.say("good1", "good2", key="good")

    class Fragile(Recorder):
        async def publish(
            self, envelopes: Sequence[Envelope], settled: Settled | None = None
        ) -> list[Outcome]:
            self.attempts += envelopes
            bomb = any(word_of(e) == "bomb" for e in envelopes)
            return [lost if bomb else ACCEPTED] * len(envelopes)

    broker = Fragile()
    async with running(house.relay(broker, outage=QUICK, poll=0.02)):
        await until(house, house.blocked, "it is blamed")
        await until(house, lambda: house.waiting() == ["bomb"], "the others have gone")
    assert [b.error_code for b in house.blocked()] == ["connection_lost"]


async def test_a_topic_may_say_that_its_keys_go_on_without_a_dead_letter(house: House) -> None:
    no = Refused(Unpublishable("never", code="never"))
    house.say("a1", "a2", "a3", key="a")
    recorder = Recorder(lambda e: no if word_of(e) == "a1" else ACCEPTED)
    relay = house.relay(recorder, skip_poison=["talk"])
    await relay.run_once()
    assert recorder.words == ["a1", "a2", "a3"]
    assert [word_of(d.body) for d in house.dead()] == ["a1"]
    assert (house.blocked(), house.waiting()) == ([], [])


async def test_until_empty_publishes_all_there_is_and_gives_the_lease_back(house: House) -> None:
    house.say(*range(120), key="a")
    house.say(*range(120, 150))
    recorder = Recorder()
    assert await house.relay(recorder, page_rows=40).run_until_empty() == 150
    assert recorder.words[-1] == "119" or len(recorder.words) == 150
    assert [w for w in recorder.words if int(w) < 120] == [str(n) for n in range(120)]
    assert house.waiting() == []
    assert house.owners() == {None}


async def test_a_publisher_that_raises_leaves_its_messages_for_another_attempt(
    house: House,
) -> None:
    class Broken(Recorder):
        async def publish(
            self, envelopes: Sequence[Envelope], settled: Settled | None = None
        ) -> list[Outcome]:
            self.attempts += envelopes
            if len(self.attempts) == 1:
                raise RuntimeError("a bug in the adapter, with a secret")
            return [ACCEPTED] * len(envelopes)

    house.say("a")
    broker = Broken()
    relay = house.relay(broker)
    await relay.run_once()
    (blocked,) = house.blocked()
    assert (blocked.error_code, "secret" in blocked.error) == ("publisher_failed", False)
    house.advance(61)
    await relay.run_once()
    assert house.waiting() == []


async def test_two_relays_share_the_partitions_and_a_third_gets_its_own(house: House) -> None:
    record: list[str] = []
    brokers = [Broker(record) for _ in range(3)]
    relays = [house.relay(broker, lease=1.5, poll=0.02) for broker in brokers]

    def shares() -> list[int]:
        held = [row.owner for row in house.rows(house.tables.partition_lease)]
        return [held.count(relay.store.lease.owner) for relay in relays]

    async with running(relays[0]):
        await until(house, lambda: shares() == [64, 0, 0], "one has all")
        async with running(relays[1]):
            await until(house, lambda: shares() == [32, 32, 0], "two halves")
            async with running(relays[2]):
                await until(house, lambda: sorted(shares()) == [20, 22, 22], "three shares")
                for n in range(60):
                    house.say(f"{n}a", f"{n}b", key=f"key{n}")
                await until(house, lambda: house.waiting() == [], "published")
                assert all(broker.attempts for broker in brokers)
            await until(house, lambda: sorted(shares()) == [0, 32, 32], "two again")
        await until(house, lambda: shares() == [64, 0, 0], "and one")
    # on a machine that stands still a lease may run out, and two relays send the same message; the
    # first delivery of each comes in order all the same
    assert set(record) == {f"{n}{x}" for n in range(60) for x in "ab"}
    for n in range(60):
        assert record.index(f"{n}a") < record.index(f"{n}b")


async def test_a_partition_is_handed_over_when_nothing_of_it_is_on_its_way(house: House) -> None:
    first, second = Broker(), Broker()
    gates = [first.hold(n) for n in range(64)]
    for n in range(64):
        house.say(n, f"after{n}", key=f"key{n}")
    one = house.relay(first, lease=0.6, poll=0.02)
    two = house.relay(second, lease=0.6, poll=0.02)
    async with running(one):
        await first.until(*range(64))
        async with running(two):
            await until(house, lambda: bool(one.store.lease.leaving), "asked to leave some")
            assert second.attempts == []
            for gate in gates:
                gate.set()
            await until(house, lambda: house.waiting() == [], "all published")
    assert set(first.attempts) | set(second.attempts) == {
        word for n in range(64) for word in (str(n), f"after{n}")
    }
    assert not [word for word in second.attempts if word.isdigit()], "sent twice without need"


async def test_what_comes_back_from_a_lost_broker_is_not_sent_once_it_was_handed_over(
    house: House,
) -> None:
    words = {str(n) for n in range(64)}
    first, second = Broker(), Broker()
    first.refuses, first.no = words, Refused(BrokerDown("gone", code="gone"))
    gates = [first.hold(word) for word in words]
    for word in words:
        house.say(word, key=f"key{word}")
    partition_of = {word_of(row.body): row.partition for row in house.rows(house.tables.outbox)}
    one = house.relay(first, lease=3.0, poll=0.02, outage=QUICK)
    two = house.relay(second, lease=3.0, poll=0.02)

    def of_two() -> set[int]:
        leases = house.rows(house.tables.partition_lease)
        return {row.partition for row in leases if row.owner == two.store.lease.owner}

    async with running(one):
        await first.until(*words)
        async with running(two):
            await until(house, lambda: bool(one.store.lease.leaving), "asked to leave some")
            for gate in gates:
                gate.set()
            await until(house, lambda: len(of_two()) == 32, "handed over")
            gone, tried = of_two(), len(first.attempts)
            first.refuses = set()
            await until(house, lambda: house.waiting() == [], "all published")
    assert not [word for word in first.attempts[tried:] if partition_of[word] in gone]


@pytest.mark.databases("postgres18", "postgres15")
async def test_an_old_snapshot_holds_nothing_up_and_an_open_writer_only_the_mark(
    house: House,
) -> None:
    relay = house.relay(Recorder(), page_rows=5)
    with house.eyes.connect() as reader, house.eyes.connect() as writer:
        reader.exec_driver_sql("begin isolation level repeatable read")
        reader.exec_driver_sql("select 1")
        house.say(*range(20))
        while await relay.run_once():
            pass
        house.say("x")
        await relay.run_once()
        passed = relay.store.mark.position
        assert passed >= 20
        writer.execute(sa.text("select pg_current_xact_id()"))
        house.say(*range(20))
        while await relay.run_once():
            pass
        await relay.run_once()
        assert relay.store.mark.lowest <= passed + 1
        assert relay.store.mark.holder is not None
        writer.rollback()
        for _ in range(3):
            house.say("y")
            await relay.run_once()
        assert relay.store.mark.lowest >= passed + 20
    assert house.waiting() == []


@pytest.mark.databases("postgres18", "postgres15")
async def test_what_an_open_writer_wrote_comes_before_what_waited_for_its_end(
    house: House,
) -> None:
    recorder = Recorder()
    relay = house.relay(recorder, page_rows=5)

    async def all_there_is() -> None:
        while await relay.run_once():
            pass

    with house.eyes.connect() as writer, house.eyes.connect() as other:
        transaction = writer.begin()
        write_messages(writer, house.tables, [spoken("late", key="k")])
        unrelated = other.begin()
        other.execute(sa.text("select pg_current_xact_id()"))
        house.say(*range(20))
        await all_there_is()
        house.say(*range(20, 40))
        await all_there_is()
        mark = relay.store.mark
        assert mark.position >= 20, "the mark passes what an open writer may show"
        assert mark.lowest == 0
        unrelated.rollback()  # that one of them has ended says nothing of the other
        house.say("between")
        await all_there_is()
        assert recorder.words == [*map(str, range(40)), "between"]
        transaction.commit()
        house.say("after", key="k")
        await all_there_is()
        assert recorder.words[-2:] == ["late", "after"]
        for word in "xyz":
            house.say(word)
            await all_there_is()
        assert mark.open == {}
        assert mark.lowest >= 40
    assert house.waiting() == []


async def test_what_was_published_is_kept_in_the_archive_where_that_is_wanted(
    house: House,
) -> None:
    ids = house.say("a1", "a2", key="a") + house.say("b")
    plain, keeping = house.relay(Recorder()), house.relay(Recorder(), archive=True)
    assert await keeping.run_once() == 3
    archive = house.tables.archive
    kept = house.rows(archive, archive.c.position)
    assert [row.id for row in kept] == ids
    assert [word_of(row.body) for row in kept] == ["a1", "a2", "b"]
    await keeping.store.lease.release()
    house.say("c")
    assert await plain.run_once() == 1
    assert len(house.rows(archive)) == 3
