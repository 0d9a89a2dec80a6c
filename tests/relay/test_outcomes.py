"""What becomes of a message: published and gone, waiting, or a dead letter; and of its key."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from uuid import UUID

import pytest
import sqlalchemy as sa

from outbox_saga.brokers import open_publisher
from outbox_saga.brokers.contract import ACCEPTED, Outcome, Refused, Settled
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import (
    BrokerDown,
    BrokerUnavailable,
    LeaseLost,
    PublishUnconfirmed,
    Unpublishable,
)
from outbox_saga.retries import Retry
from outbox_saga.testing.servers import Nats
from tests.brokers.nats_under_test import NatsUnderTest
from tests.fixtures.services import Services
from tests.relay.house import House, Recorder, word_of

REFUSED = Refused(BrokerUnavailable("not now", code="full"))
UNCONFIRMED = Refused(PublishUnconfirmed("no answer", code="timeout"))
IMPOSSIBLE = Refused(Unpublishable("too large", code="too_large"))
DOWN = Refused(BrokerDown("nobody there", code="unreachable"))


class Script:
    """Answers by word, one for each attempt; then everything is accepted."""

    def __init__(self, answers: Mapping[str, list[Outcome]]) -> None:
        self._left = {word: list(outcomes) for word, outcomes in answers.items()}

    def __call__(self, envelope: Envelope) -> Outcome:
        left = self._left.get(word_of(envelope))
        return left.pop(0) if left else ACCEPTED


def scripted(**answers: list[Outcome]) -> Recorder:
    return Recorder(Script(answers))


async def test_what_was_committed_is_published_as_committed_and_then_gone(house: House) -> None:
    ids = house.say("a", "b", key="k") + house.say("c")
    recorder = Recorder()

    assert await house.relay(recorder).run_once() == 3

    assert {e.id: (word_of(e), e.key) for e in recorder.attempts} == {
        ids[0]: ("a", "k"),
        ids[1]: ("b", "k"),
        ids[2]: ("c", None),
    }
    assert house.waiting() == []
    assert house.blocked() == []


async def test_a_message_is_in_the_outbox_until_its_own_ack(house: House) -> None:
    house.say("a", "b", "c", key="k")
    seen: dict[str, bool] = {}

    def answer(envelope: Envelope) -> Outcome:
        seen[word_of(envelope)] = word_of(envelope) in house.waiting()
        return ACCEPTED

    await house.relay(Recorder(answer)).run_once()
    assert seen == {"a": True, "b": True, "c": True}


async def test_a_relay_that_dies_between_ack_and_removal_publishes_again_under_the_same_id(
    house: House,
) -> None:
    house.say("a", "b")
    first, second = Recorder(), Recorder()
    dying = house.relay(first, page_rows=2)
    assert await dying.run_once() == 2  # acknowledged, and nothing removed before the next look
    assert house.waiting() == ["a", "b"]

    await dying.store.lease.release()
    await house.relay(second).run_once()

    assert [e.id for e in second.attempts] == [e.id for e in first.attempts]
    assert house.waiting() == []


async def test_after_a_refusal_the_key_waits_and_other_keys_flow(house: House) -> None:
    house.say("a1", "a2", "a3", key="a")
    house.say("b1", "b2", key="b")
    house.say("free")
    recorder = scripted(a1=[REFUSED])
    relay = house.relay(recorder)

    await relay.run_once()
    assert sorted(recorder.words) == ["a1", "b1", "b2", "free"]
    assert house.waiting() == ["a1", "a2", "a3"]
    (blocked,) = house.blocked()
    assert (blocked.key, blocked.attempts, blocked.error_code) == ("a", 1, "full")
    assert blocked.until is not None

    assert await relay.run_once() == 0  # it is not yet time
    assert recorder.words.count("a1") == 1

    house.advance(61)
    await relay.run_once()
    assert [w for w in recorder.words if w.startswith("a")] == ["a1", "a1", "a2", "a3"]
    assert (house.waiting(), house.blocked()) == ([], [])


async def test_what_is_committed_while_its_key_waits_keeps_its_place_behind_it(
    house: House,
) -> None:
    recorder = scripted(a1=[REFUSED, REFUSED, UNCONFIRMED], a2=[REFUSED])
    relay = house.relay(recorder)
    house.say("a1", key="a")
    for round_ in range(2, 6):
        await relay.run_once()
        house.say(f"a{round_}", key="a")
        house.advance(61)
    await relay.run_once()
    house.advance(61)
    await relay.run_once()
    assert recorder.words == ["a1", "a1", "a1", "a1", "a2", "a2", "a3", "a4", "a5"]
    assert (house.waiting(), house.blocked()) == ([], [])


async def test_every_attempt_of_one_message_counts_and_waits_longer(house: House) -> None:
    (id_,) = house.say("a", key="a")
    recorder = scripted(a=[REFUSED] * 6)
    retry = Retry(initial=20.0, max_delay=300.0)
    relay = house.relay(recorder, retry=retry)
    for attempt in range(1, 7):
        await relay.run_once()
        (blocked,) = house.blocked()
        assert blocked.attempts == attempt
        with house.eyes.connect() as connection:
            wait = (blocked.until - house.clock.read(connection)).total_seconds()
        assert wait == pytest.approx(retry.delay(attempt, seed=str(id_)), abs=5.0)
        house.advance(wait - 5.0)
        await relay.run_once()
        assert len(recorder.words) == attempt  # never early
        house.advance(5.1)


async def test_attempts_are_remembered_by_the_next_relay(house: House) -> None:
    house.say("a", key="a")
    for attempt in (1, 2, 3):
        relay = house.relay(scripted(a=[REFUSED]))
        await relay.run_once()
        assert [b.attempts for b in house.blocked()] == [attempt]
        await relay.store.lease.release()
        house.advance(61)


async def test_an_unconfirmed_message_is_sent_again_under_the_same_id_before_later_ones(
    house: House,
) -> None:
    house.say("a1", "a2", key="a")
    recorder = scripted(a1=[UNCONFIRMED])
    relay = house.relay(recorder)
    await relay.run_once()
    house.advance(61)
    await relay.run_once()
    assert recorder.words == ["a1", "a1", "a2"]
    assert recorder.attempts[0].id == recorder.attempts[1].id


async def test_an_impossible_message_is_a_dead_letter_with_everything_and_its_key_is_parked(
    house: House,
) -> None:
    ids = house.say("a1", "a2", key="a")
    house.say("b1", key="b")
    (row, *_) = house.rows(house.tables.outbox, house.tables.outbox.c.position)
    recorder = scripted(a1=[IMPOSSIBLE])
    relay = house.relay(recorder)
    await relay.run_once()

    (dead,) = house.dead()
    assert dead.id == ids[0]
    for column in ("position", "partition", "topic", "key", "headers", "body", "created_at"):
        assert getattr(dead, column) == getattr(row, column), column
    assert (dead.attempts, dead.error_code, dead.error) == (1, "too_large", "too large")
    (blocked,) = house.blocked()
    assert (blocked.key, blocked.until) == ("a", None)

    house.advance(1_000_000)
    await relay.run_once()
    await relay.store.lease.release()
    await house.relay(recorder).run_once()  # and the next relay knows it, too
    assert sorted(recorder.words) == ["a1", "b1"]
    assert house.waiting() == ["a2"]


async def test_an_impossible_message_without_a_key_parks_nothing(house: House) -> None:
    house.say("x")
    house.say("y")
    relay = house.relay(scripted(x=[IMPOSSIBLE]))
    await relay.run_once()
    assert [d.error_code for d in house.dead()] == ["too_large"]
    assert (house.blocked(), house.waiting()) == ([], [])


async def test_a_failing_message_without_a_key_waits_alone(house: House) -> None:
    house.say("x", "y", "z")
    recorder = scripted(x=[REFUSED])
    relay = house.relay(recorder)
    await relay.run_once()
    assert house.waiting() == ["x"]
    house.say("later")
    await relay.run_once()
    assert house.waiting() == ["x"]
    house.advance(61)
    await relay.run_once()
    assert recorder.words == ["x", "y", "z", "later", "x"]
    assert (house.waiting(), house.blocked()) == ([], [])


async def test_a_broker_that_is_down_burns_no_attempts_and_gets_one_page_at_most(
    house: House,
) -> None:
    house.say("a1", "a2", key="a")
    house.say("b1", key="b")
    recorder = Recorder(lambda _: DOWN)
    relay = house.relay(recorder)
    for _ in range(3):
        with pytest.raises(BrokerDown):
            await relay.run_once()
    assert "a2" not in recorder.words
    assert (house.blocked(), house.dead()) == ([], [])
    assert sorted(house.waiting()) == ["a1", "a2", "b1"]

    recorder.answer = Script({})
    await relay.run_once()
    assert house.waiting() == []


async def test_what_was_acknowledged_before_the_broker_went_down_is_not_sent_again(
    house: House,
) -> None:
    house.say("a1", "a2", key="a")
    house.say("free")
    recorder = scripted(a2=[DOWN])
    relay = house.relay(recorder)
    with pytest.raises(BrokerDown):
        await relay.run_once()
    assert house.waiting() == ["a2"]
    await relay.run_once()
    assert sorted(recorder.words) == ["a1", "a2", "a2", "free"]


async def test_a_page_of_poison_does_not_hide_what_stands_behind_it(house: House) -> None:
    for number in range(12):
        house.say(f"poison{number}", key=f"key{number}")
    house.say(*(f"loose{number}" for number in range(10)))
    house.say("good", key="good")
    bad = ("poison", "loose")
    recorder = Recorder(lambda e: REFUSED if word_of(e).startswith(bad) else ACCEPTED)
    relay = house.relay(recorder, page_rows=5)
    for _ in range(5):
        await relay.run_once()
    assert recorder.words.count("good") == 1
    assert len(recorder.words) == 23  # each poison once
    assert len(house.waiting()) == 22


async def test_rows_of_a_waiting_key_do_not_fill_the_page(house: House) -> None:
    house.say(*(f"a{number}" for number in range(50)), key="a")
    house.say("good")
    recorder = scripted(a0=[REFUSED])
    relay = house.relay(recorder, page_rows=10)
    await relay.run_once()
    await relay.run_once()
    assert recorder.words == ["a0", "good"]


async def test_a_row_nobody_can_read_is_a_dead_letter_and_stops_no_other(house: House) -> None:
    house.say("a1", "a2", key="a")
    house.say("b1", key="b")
    outbox = house.tables.outbox
    (first, *_) = house.rows(outbox, outbox.c.position)
    with house.eyes.begin() as connection:
        connection.execute(
            sa.update(outbox)
            .where(outbox.c.position == first.position)
            .values(headers='{"type": "secret-in-row"')
        )
    recorder = Recorder()
    relay = house.relay(recorder)
    await relay.run_once()
    assert recorder.words == ["b1"]
    (dead,) = house.dead()
    assert (dead.error_code, dead.headers) == ("unreadable", '{"type": "secret-in-row"')
    assert "secret" not in dead.error
    assert house.waiting() == ["a2"]


NOT_UTF8 = {"mariadb": "x'ff'", "sqlite": "cast(x'ff' as text)"}


def _write_over(house: House, word: str, column: str, value: str) -> None:
    """As somebody does who writes rows of the outbox by SQL of their own."""
    name = house.eyes.dialect.identifier_preparer.quote(column)
    outbox = house.tables.outbox
    with house.eyes.begin() as connection:
        rows = connection.execute(sa.select(outbox.c.position, outbox.c.body)).all()
        (row,) = (r for r in rows if word_of(r.body) == word)
        connection.exec_driver_sql(
            f"update outbox_saga_outbox set {name} = {value} where position = {row.position}"
        )


@pytest.mark.databases("mariadb", "sqlite")
@pytest.mark.parametrize("column", ["key", "topic"])
async def test_text_that_is_none_is_a_dead_letter_and_stops_no_other(
    house: House, column: str
) -> None:
    house.say("bad", key="a")
    house.say("b1", "b2", key="b")
    house.say("loose")
    _write_over(house, "bad", column, NOT_UTF8[house.name])
    recorder = Recorder()
    await house.relay(recorder).run_until_empty()
    assert sorted(recorder.words) == ["b1", "b2", "loose"]
    (dead,) = house.dead()
    assert (dead.error_code, word_of(dead.body)) == ("unreadable", "bad")
    assert "xff" in dead.error
    assert dead.key == (None if column == "key" else "a")
    assert house.waiting() == []
    assert len(house.blocked()) == (column == "topic")


@pytest.mark.databases("mariadb", "sqlite")
async def test_an_id_that_is_none_is_a_dead_letter_and_holds_up_its_own_key(house: House) -> None:
    house.say("a1", "bad", "a2", key="a")
    house.say("b1", key="b")
    _write_over(house, "bad", "id", "'z'")
    recorder = Recorder()
    await house.relay(recorder).run_until_empty()
    assert sorted(recorder.words) == ["a1", "b1"]
    (dead,) = house.dead()
    assert (dead.error_code, dead.key, word_of(dead.body)) == ("unreadable", "a", "bad")
    assert "'z'" in dead.error
    assert [blocked.until for blocked in house.blocked()] == [None]
    assert house.waiting() == ["a2"]


@pytest.mark.databases("mariadb", "sqlite")
async def test_unreadable_rows_with_long_bodies_and_of_held_keys_stop_no_other_either(
    house: House,
) -> None:
    house.say("x" * 50_000, key="a")
    house.say(*(f"b{number}" for number in range(40)), key="b")
    _write_over(house, "x" * 50_000, "id", "'z'")
    _write_over(house, "b30", "id", "'y'")
    recorder = Recorder()
    await house.relay(recorder, page_rows=20).run_until_empty()
    assert recorder.words == [f"b{number}" for number in range(30)]
    assert sorted(len(word_of(dead.body)) for dead in house.dead()) == [3, 50_000]


async def test_a_row_of_no_partition_stops_no_other(house: House) -> None:
    house.say("nowhere", "b", key="b")
    house.say("a")
    _write_over(house, "nowhere", "partition", "64")
    recorder = Recorder()
    relay = house.relay(recorder)
    for _ in range(3):
        await relay.run_once()
    assert sorted(recorder.words) == ["a", "b"]
    assert house.waiting() == ["nowhere"]


@pytest.mark.databases("mariadb", "sqlite")
@pytest.mark.parametrize("archive", [False, True])
async def test_an_id_in_capitals_is_published_once(house: House, archive: bool) -> None:
    house.say("a")
    _write_over(house, "a", "id", "upper(id)")
    recorder = Recorder()
    relay = house.relay(recorder, archive=archive)
    for _ in range(3):
        await relay.run_once()
    assert recorder.words == ["a"]
    assert house.waiting() == []


@pytest.mark.databases("sqlite")
async def test_a_body_that_was_written_as_text_is_sent_as_its_bytes(house: House) -> None:
    house.say("short", "x" * 50_000)
    for word in ("short", "x" * 50_000):
        _write_over(house, word, "body", "cast(body as text)")
    recorder = Recorder()
    await house.relay(recorder).run_until_empty()
    assert sorted(map(len, recorder.words)) == [5, 50_000]
    assert house.waiting() == []


@pytest.mark.databases("sqlite", "postgres18")
async def test_what_an_adapter_fails_on_as_a_whole_is_not_the_fault_of_others_in_the_call(
    house: House,
) -> None:
    class Careless(Recorder):
        async def publish(
            self, envelopes: Sequence[Envelope], settled: Settled | None = None
        ) -> list[Outcome]:
            for envelope in envelopes:
                envelope.to_headers()
            return await super().publish(envelopes, settled)

    house.say("bad", key="a")
    house.say("b1", "b2", key="b")
    house.say("loose")
    _write_over(house, "bad", "headers", f"'{json.dumps(ILL_TYPED)}'")
    recorder = Careless()
    await house.relay(recorder).run_until_empty()
    assert sorted(recorder.words) == ["b1", "b2", "loose"]
    (dead,) = house.dead()
    assert (dead.error_code, json.loads(dead.headers)) == ("unreadable", ILL_TYPED)
    assert [blocked.key for blocked in house.blocked()] == ["a"]
    assert house.waiting() == []


ILL_TYPED = {
    "type": "test.Said",
    "kind": "event",
    "version": 1,
    "content_type": "application/json",
    "source": "test",
    "correlation_id": "",
    "headers": {"a": 1},
}


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    "wrong",
    [
        {"headers": {"a": 1}},
        {"headers": ["a"]},
        {"headers": None},
        {"type": None},
        {"content_type": 5},
        {"source": {}},
        {"kind": 1},
        {"replay": "\r\n+OK"},
        {"causation_id": 7},
    ],
)
async def test_metadata_of_another_shape_harms_no_neighbour_at_nats(
    house: House, services: Services, wrong: dict[str, object]
) -> None:
    house.say("bad", key="a")
    house.say("b1", "b2", key="b")
    house.say("loose")
    entries = ILL_TYPED | {"headers": {}} | wrong
    _write_over(house, "bad", "headers", f"'{json.dumps(entries)}'")
    broker = NatsUnderTest(services.get(Nats), private=False)
    await house.relay(open_publisher(broker.url())).run_until_empty()
    (dead,) = house.dead()
    assert (dead.error_code, word_of(dead.body)) == ("unreadable", "bad")
    assert sorted(word_of(stored.body) for stored in await broker.stored()) == [
        "b1",
        "b2",
        "loose",
    ]
    assert [blocked.until for blocked in house.blocked()] == [None]
    assert house.waiting() == []


async def test_the_next_page_is_as_long_as_the_size_of_bodies_allows(house: House) -> None:
    house.say(*("x" * 1000 for _ in range(60)))
    recorder = Recorder()
    relay = house.relay(recorder, page_rows=50, page_bytes=10_000)
    for _ in range(8):
        await relay.run_once()
    assert recorder.calls[0] == 50
    assert recorder.calls[1:] == [9, 1]
    house.say(*("x" for _ in range(110)))
    recorder.calls.clear()
    for _ in range(8):
        await relay.run_once()
    assert recorder.calls[0] == 9
    assert recorder.calls[1:] == [50, 50, 1]
    assert house.waiting() == []


async def test_failures_are_kept_by_nobody_who_lost_the_lease(house: House) -> None:
    house.say("a1", key="a")
    house.say("x")
    usurper = house.relay(Recorder())

    async def answer(envelope: Envelope) -> Outcome:
        if not usurper.store.lease.epochs:
            house.advance(20)
            assert await usurper.store.lease.take()
        return IMPOSSIBLE if word_of(envelope) == "x" else REFUSED

    late = house.relay(Recorder(answer), lease=10.0)
    with pytest.raises(LeaseLost):
        await late.run_once()
    assert (house.blocked(), house.dead()) == ([], [])
    assert house.waiting() == ["a1", "x"]
    assert house.owners() == {usurper.store.lease.owner}


async def test_an_interrupted_publish_leaves_everything_for_the_next_relay(house: House) -> None:
    ids: list[UUID] = house.say("a1", "a2", key="a")
    reached = asyncio.Event()

    async def answer(envelope: Envelope) -> Outcome:
        reached.set()
        await asyncio.Event().wait()
        return ACCEPTED

    relay = house.relay(Recorder(answer))
    running = asyncio.create_task(relay.run(asyncio.Event()))
    await asyncio.wait_for(reached.wait(), 20)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert house.owners() == {None}
    second = Recorder()
    await house.relay(second).run_once()
    assert [e.id for e in second.attempts] == ids
