"""What a handler fails on waits, and its key waits behind it; nothing else does."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from outbox_saga import Failure, HandlerContext, Retry
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.errors import HandlerBusy
from outbox_saga.ids import new_id
from outbox_saga.keeping import holding_up_nothing, keep, keep_unread
from outbox_saga.queries.waiting import ASLEEP, Failed, Kind, any_due, lease_due, store
from tests.inbox.processes import FEW, LATER, MakeProcess, Moods, note, said
from tests.relay.house import PATIENCE, House, Said

KINDS = ["asynchronous", "plain"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_message_a_handler_fails_on_waits_as_it_was_with_the_reason(
    house: House, process: MakeProcess, kind: str
) -> None:
    envelope = said("one", key="k")
    await process(getattr(Moods("one"), kind)).deliver(envelope)

    (row,) = house.set_aside()
    kept = Envelope.from_row(row.message_id, row.topic, row.key, row.headers, row.body)
    assert kept == envelope
    assert (row.consumer, row.attempts, row.error_code, row.error_class) == (
        "listener",
        1,
        "handler_failed",
        "LookupError",
    )
    assert row.error == "LookupError: cannot one"
    assert "processes.py" in row.trace
    assert f"in {kind}" in row.trace
    assert "cannot one" not in row.trace, "values stand in the error, not in the trace"
    assert (row.failed_at - row.arrived_at).total_seconds() < 1
    assert 5 <= (row.until - row.arrived_at).total_seconds() <= 11  # FEW, jittered
    assert (house.notes(), house.inbox(), house.waiting()) == ([], [], [])


async def test_a_failure_is_kept_like_an_exception(house: House, process: MakeProcess) -> None:
    async def refuses(handle: HandlerContext[Said]) -> Failure[str]:
        await note(handle)
        return Failure("out of stock")

    await process(refuses).deliver(said("one"))

    (row,) = house.set_aside()
    assert (row.error_code, row.error, row.error_class) == (
        "handler_refused",
        "out of stock",
        "HandlerFailed",
    )
    assert house.notes() == []


@pytest.mark.parametrize("kind", KINDS)
async def test_it_is_tried_again_when_it_is_due_and_not_before(
    house: House, process: MakeProcess, kind: str
) -> None:
    moods = Moods("one")
    listener = process(getattr(moods, kind))
    await listener.deliver(said("one", key="k"))
    moods.poison.clear()
    for _ in range(4):
        await listener.to_rest()
        house.advance(1.2)  # in all less than the shortest pause
    assert moods.asked == ["one"]

    await listener.later()

    assert moods.asked == ["one", "one"]
    assert (house.notes(), house.waiting()) == (["one"], ["after one"])
    assert house.set_aside() == []
    assert len(house.inbox()) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_later_messages_of_its_key_stand_behind_it_and_others_go_on(
    house: House, process: MakeProcess, kind: str
) -> None:
    moods = Moods("a1", "keyless 1")
    listener = process(getattr(moods, kind))
    await listener.deliver(
        said("a1", key="a"),
        said("b1", key="b"),
        said("a2", key="a"),
        said("keyless 1"),
        said("a3", key="a"),
        said("keyless 2"),
        said("b2", key="b"),
    )
    assert house.notes() == ["b1", "keyless 2", "b2"]
    assert [(r.key, r.failed_at is None, r.until == ASLEEP) for r in house.set_aside()] == [
        ("a", False, False),
        ("a", True, True),
        (None, False, False),
        ("a", True, True),
    ]

    moods.poison.clear()
    await listener.later()

    assert [word for word in house.notes() if word[0] == "a"] == ["a1", "a2", "a3"]
    assert len(house.notes()) == 7
    assert house.set_aside() == []


async def test_another_consumer_does_not_wait_with_it(house: House, process: MakeProcess) -> None:
    failing = process(Moods("one").asynchronous)
    other = process(Moods().asynchronous, consumer="other")
    for listener in (failing, other):
        await listener.deliver(said("one", key="k"), said("two", key="k"))
    assert house.notes() == ["one", "two"]


async def test_a_message_that_comes_while_its_key_waits_in_another_process_stands_behind(
    house: House, process: MakeProcess
) -> None:
    moods = Moods("one")
    await process(moods.asynchronous).deliver(said("one", key="k"))
    other = process(moods.asynchronous)
    await other.deliver(said("two", key="k"))
    assert moods.asked == ["one"]
    moods.poison.clear()
    await other.later()
    assert house.notes() == ["one", "two"]


@pytest.mark.parametrize("key", ["k", None])
async def test_a_redelivery_of_what_waits_is_a_duplicate(
    house: House, process: MakeProcess, key: str | None
) -> None:
    moods = Moods("one")
    listener, envelope = process(moods.asynchronous), said("one", key=key)
    second = said("two", key=key)
    await listener.deliver(envelope, second, envelope, second)
    assert moods.asked == ["one"] if key else ["one", "two"]
    assert len(house.set_aside()) == (2 if key else 1)
    moods.poison.clear()
    await listener.later()
    await listener.deliver(envelope, second)
    assert house.notes() == (["one", "two"] if key else ["two", "one"])


async def test_after_its_last_attempt_it_is_a_dead_letter_and_its_key_stays_parked(
    house: House, process: MakeProcess, caplog: pytest.LogCaptureFixture
) -> None:
    moods = Moods("one")
    listener = process(moods.asynchronous)
    await listener.deliver(said("one", key="k"), said("two", key="k"))
    await listener.later(times=5)

    assert moods.asked == ["one"] * FEW.max_attempts
    assert [(r.until, r.attempts) for r in house.set_aside()] == [(None, 3), (ASLEEP, 0)]
    await listener.deliver(said("three", key="k"), said("other", key="l"))
    await listener.later(times=2)
    assert house.notes() == ["other"]
    assert len(house.set_aside()) == 3
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(told) == 1
    assert "is a dead letter of consumer listener after 3 attempts" in told[0]


async def test_with_skip_a_dead_letter_holds_up_nothing(
    house: House, process: MakeProcess
) -> None:
    moods = Moods("one", "two")
    listener = process(moods.asynchronous, poison="skip")
    await listener.deliver(said("one", key="k"), said("two", key="k"), said("three", key="k"))
    assert house.notes() == []
    await listener.later(times=8)
    assert house.notes() == ["three"]
    assert [(r.until, r.key, json.loads(r.headers)["key"]) for r in house.set_aside()] == [
        (None, None, "k")
    ] * 2
    await listener.deliver(said("four", key="k"))
    assert house.notes() == ["three", "four"]


@pytest.mark.parametrize("poison", ["park", "skip"])
async def test_what_gets_one_attempt_only_is_dead_at_once(
    house: House, process: MakeProcess, poison: str
) -> None:
    listener = process(Moods("one").asynchronous, retry=Retry(max_attempts=1), poison=poison)
    await listener.deliver(said("one", key="k"), said("two", key="k"))
    assert house.set_aside()[0].until is None
    assert house.notes() == ([] if poison == "park" else ["two"])


async def test_a_message_that_was_stored_while_another_delivery_handled_it_does_not_run_twice(
    house: House, process: MakeProcess
) -> None:
    """A slow failure meets a redelivery: whichever commits last finds the other's row."""
    inside, go = asyncio.Event(), asyncio.Event()

    async def fails_late(handle: HandlerContext[Said]) -> None:
        inside.set()
        await go.wait()
        raise LookupError

    envelope = said("one")
    slow, quick = process(fails_late), process(note)
    failing = asyncio.create_task(slow.deliver(envelope))
    await asyncio.wait_for(inside.wait(), PATIENCE)
    redelivered = asyncio.create_task(quick.deliver(envelope))  # waits for the inbox row
    go.set()
    await asyncio.gather(failing, redelivered)
    await quick.later()
    assert house.notes() == ["one"]
    assert house.set_aside() == []


async def test_when_nothing_waits_a_delivery_makes_one_statement_of_ours(
    house: House, process: MakeProcess
) -> None:
    listener = process(note)
    await listener.deliver(
        said("first", key="k")
    )  # the pool and the compiled statements are there
    seen: list[str] = []
    engine = listener.service.database.async_engine.sync_engine

    @event.listens_for(engine, "before_cursor_execute")
    def executing(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    await listener.deliver(said("second", key="k"))
    ours = [s for s in seen if not s.startswith("BEGIN")]
    assert len(ours) == 2, ours
    assert "outbox_saga_inbox" in ours[0]
    assert "till" in ours[1]


@pytest.mark.databases("postgres18", "postgres15", "mariadb")
async def test_the_look_for_waiting_messages_waits_for_no_lock(
    house: House, process: MakeProcess
) -> None:
    """Also on MariaDB, whose INSERT … SELECT would lock what it reads at REPEATABLE READ."""
    listener = process(Moods("one").asynchronous)
    await listener.deliver(said("one", key="k"))
    with house.eyes.begin() as connection:
        connection.execute(sa.select(house.tables.inbox_waiting.c.position).with_for_update())
        await asyncio.wait_for(listener.deliver(said("other", key="l")), PATIENCE)
    assert house.notes() == ["other"]


# --- several processes ---------------------------------------------------------------------------


async def test_processes_share_what_is_due_and_try_each_once(
    house: House, process: MakeProcess
) -> None:
    moods = Moods(*(str(n) for n in range(20)))
    many = [process(moods.asynchronous) for _ in range(3)]
    for number in range(20):
        await many[0].deliver(said(str(number), key=f"key {number % 7}"))
    moods.poison.clear()
    moods.asked.clear()
    house.advance(LATER)
    while any(await asyncio.gather(*(one.room.run_once() for one in many))):
        pass
    assert sorted(moods.asked, key=int) == [str(n) for n in range(20)]
    for key in range(7):
        mine = [int(word) for word in house.notes() if int(word) % 7 == key]
        assert mine == sorted(mine)
    assert house.set_aside() == []


async def test_what_a_process_died_of_is_taken_over_when_its_lease_ends_and_counts(
    house: House, process: MakeProcess
) -> None:
    moods = Moods("one")
    listener = process(moods.asynchronous)
    await listener.deliver(said("one", key="k"))
    for attempts in (1, 2):
        house.advance(LATER)
        database = process(note).service.database
        leased = await database.run(  # and that is the last that is heard of it
            _lease, house, database
        )
        assert leased == 1
        assert await listener.room.run_once() == 0, "its lease is not over"
        house.advance(31)
        assert await listener.room.run_once() == 1
        assert moods.asked == ["one"], "not before its pause is over"
        (row,) = house.set_aside()
        assert (row.attempts, row.error_code) == (attempts + 1, "process_died")
    assert house.set_aside()[0].until is None


def _lease(connection: sa.Connection, house: House, database: Any) -> int:
    found = lease_due(connection, house.tables, house.clock, new_id(), 30.0, ["listener"], 9)
    return len(found)


async def test_a_lease_that_ran_out_while_its_message_is_in_hand_is_no_death(
    house: House, process: MakeProcess
) -> None:
    """Its renewals came too late, and nobody else was there to take it over."""
    inside, go = asyncio.Event(), asyncio.Event()

    async def slow(handle: HandlerContext[Said]) -> None:
        if not inside.is_set():
            inside.set()
            raise LookupError
        go.set()
        await finish.wait()
        await note(handle)

    finish = asyncio.Event()
    # it acts outside the database, so that on SQLite others can write meanwhile
    listener = process(slow, timeout=None, pessimistic=True)
    await listener.deliver(said("one", key="k"))
    house.advance(LATER)
    trying = asyncio.create_task(listener.room.run_once())
    await asyncio.wait_for(go.wait(), PATIENCE)
    house.advance(31)
    assert await listener.room.run_once() == 0
    (row,) = house.set_aside()
    assert (row.attempts, row.error_code) == (1, "handler_failed")
    finish.set()
    assert await asyncio.wait_for(trying, PATIENCE) == 1
    assert (house.notes(), house.set_aside()) == (["one"], [])


async def test_a_message_that_could_not_be_given_back_is_tried_again_and_not_counted(
    house: House, process: MakeProcess
) -> None:
    moods = Moods("one")
    listener = process(moods.asynchronous)
    await listener.deliver(said("one", key="k"))
    house.advance(LATER)
    database, owner = listener.service.database, listener.room.owner
    args = (house.tables, house.clock, owner, 30.0, ["listener"], 9)
    assert len(await database.run(lease_due, *args)) == 1  # and then nothing could be written
    house.advance(31)
    moods.poison.clear()
    assert await listener.room.run_once() == 1
    assert (house.notes(), house.set_aside()) == (["one"], [])


@pytest.mark.databases("postgres18", "postgres15", "mariadb")
async def test_a_process_that_stood_still_changes_nothing_once_it_was_taken_over(
    house: House, process: MakeProcess
) -> None:
    inside, go = asyncio.Event(), asyncio.Event()

    async def stands_still(handle: HandlerContext[Said]) -> None:
        if not inside.is_set():
            inside.set()
            raise LookupError
        await note(handle)
        go.set()
        await asyncio.Event().wait()

    # seen from its successor: leased, running, and silent
    still, successor = process(stands_still, timeout=None), process(note)
    await still.deliver(said("one", key="k"))
    house.advance(LATER)
    standing = asyncio.create_task(still.room.run_once())
    await asyncio.wait_for(go.wait(), PATIENCE)
    house.advance(31)
    taken = asyncio.create_task(successor.room.run_once())  # counts the death, and waits
    await asyncio.wait_for(taken, PATIENCE)
    (row,) = house.set_aside()
    assert (row.attempts, row.error_code, row.owner) == (2, "process_died", None)
    standing.cancel()
    await asyncio.gather(standing, return_exceptions=True)
    (after,) = house.set_aside()
    assert after == row
    await successor.later()
    assert house.notes() == ["one"]


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_handler_that_comes_to_its_end_after_its_lease_commits_nothing(
    house: House, process: MakeProcess, caplog: pytest.LogCaptureFixture
) -> None:
    inside, go, first = asyncio.Event(), asyncio.Event(), [True]

    async def slow(handle: HandlerContext[Said]) -> None:
        if first.pop() if first else False:
            raise LookupError
        await note(handle)
        inside.set()
        await go.wait()

    late, successor = process(slow), process(note)
    await late.deliver(said("one", key="k"))
    house.advance(LATER)
    running = asyncio.create_task(late.room.run_once())
    await asyncio.wait_for(inside.wait(), PATIENCE)
    house.advance(31)
    await successor.room.run_once()
    go.set()
    await asyncio.wait_for(running, PATIENCE)
    assert house.notes() == []
    assert "was taken over; this attempt was rolled back" in caplog.text
    await successor.later()
    assert house.notes() == ["one"]


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_lease_is_renewed_while_its_handler_runs(
    house: House, process: MakeProcess
) -> None:
    inside, go, fails = asyncio.Event(), asyncio.Event(), [True]
    renewed = asyncio.Semaphore(0)

    async def slow(handle: HandlerContext[Said]) -> None:
        if fails and fails.pop():
            raise LookupError
        await note(handle)
        inside.set()
        await go.wait()

    listener = process(slow)
    await listener.deliver(said("one", key="k"))
    house.advance(LATER)
    engine = listener.service.database.lease_engine.sync_engine

    @event.listens_for(engine, "commit")
    def committed(connection: sa.Connection) -> None:
        renewed.release()

    room = listener.service.waiting_room(lease=0.6)
    running = asyncio.create_task(room.run_once())
    await asyncio.wait_for(inside.wait(), PATIENCE)
    for _ in range(6):  # which take longer together than it lasts
        await asyncio.wait_for(renewed.acquire(), PATIENCE)
    go.set()
    await asyncio.wait_for(running, PATIENCE)
    assert (house.notes(), house.set_aside()) == (["one"], [])


async def test_a_message_whose_handler_is_only_in_another_release_is_left_alone(
    house: House, process: MakeProcess
) -> None:
    class Sung(Said, name="Sung"):
        pass

    await process(Moods("one").asynchronous).deliver(said("one", key="k"))
    old = process(note)
    old.service.handlers._handlers.clear()
    old.service.on(Sung, consumer="listener")(note)
    room = old.service.waiting_room()
    house.advance(LATER)
    assert await room.run_once() == 1
    (row,) = house.set_aside()
    assert (row.attempts, row.owner, row.error_code) == (1, None, "handler_failed")
    new = process(note)
    await new.later()
    assert house.notes() == ["one"]


async def test_the_loop_goes_on_with_a_key_at_once_and_gives_all_back_at_the_end(
    house: House, process: MakeProcess
) -> None:
    moods, done = Moods("0"), asyncio.Event()

    async def listening(handle: HandlerContext[Said]) -> None:
        await moods.asynchronous(handle)
        if handle.message.word == "9":
            done.set()

    listener = process(listening)
    await listener.deliver(*(said(str(n), key="k") for n in range(10)))
    moods.poison.clear()
    house.advance(LATER)
    stop = asyncio.Event()
    running = asyncio.create_task(listener.room.run(stop))
    await asyncio.wait_for(done.wait(), PATIENCE)
    stop.set()
    await asyncio.wait_for(running, PATIENCE)
    assert house.notes() == [str(n) for n in range(10)]
    assert house.set_aside() == []


async def test_a_handler_that_outlives_the_grace_is_cancelled_and_its_message_given_back(
    house: House, process: MakeProcess
) -> None:
    inside, fail = asyncio.Event(), [True]

    async def never(handle: HandlerContext[Said]) -> None:
        if fail and fail.pop():
            raise LookupError
        inside.set()
        await asyncio.Event().wait()

    listener = process(never)
    await listener.deliver(said("one", key="k"))
    house.advance(LATER)
    stop = asyncio.Event()
    room = listener.service.waiting_room(grace=0.01)
    running = asyncio.create_task(room.run(stop))
    await asyncio.wait_for(inside.wait(), PATIENCE)
    stop.set()
    await asyncio.wait_for(running, PATIENCE)
    (row,) = house.set_aside()
    assert (row.owner, row.lease_until, row.attempts) == (None, None, 1)
    successor = process(note)
    assert await successor.room.run_once() == 1
    assert house.notes() == ["one"]


@pytest.mark.databases("postgres18", "mariadb")
@pytest.mark.parametrize("consumer", ["listener", "clock"])
async def test_a_taken_place_costs_no_transactions_for_what_waits_for_it(
    house: House, process: MakeProcess, consumer: str
) -> None:
    """Another kind, of this consumer or of another, is the clock: it is tried meanwhile."""

    class Tick(Said, name="Tick"):
        pass

    fails, go, inside, rung = [True], asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(handle: HandlerContext[Said]) -> None:
        if fails:
            raise LookupError
        inside.set()
        await go.wait()

    async def tick(handle: HandlerContext[Tick]) -> None:
        if fails:
            raise LookupError
        if handle.message.word == "19":
            rung.set()

    listener = process(slow, concurrency=1)
    listener.service.on(Tick, consumer=consumer, retry=FEW)(tick)
    await listener.deliver(*(said(str(n)) for n in range(100)))
    await listener.deliver(*(seal(Tick(word=str(n)), key="k") for n in range(20)))
    fails.clear()
    house.advance(LATER)
    commits = 0
    engine = listener.service.database.async_engine.sync_engine

    @event.listens_for(engine, "commit")
    def committed(connection: sa.Connection) -> None:
        nonlocal commits
        commits += 1

    stop = asyncio.Event()
    running = asyncio.create_task(listener.service.waiting_room().run(stop))
    await asyncio.wait_for(inside.wait(), PATIENCE)
    await asyncio.wait_for(rung.wait(), PATIENCE)
    stop.set()
    go.set()
    await asyncio.wait_for(running, PATIENCE)
    assert commits <= 5 * 20, "a lease, the handling, and few looks for each"
    assert [row.owner for row in house.set_aside()] == [None] * 99


@pytest.mark.parametrize("how", ["as it came", "answering", "holding up nothing", "raw"])
async def test_the_type_of_what_waits_is_told_by_its_row(
    house: House, process: MakeProcess, how: str
) -> None:
    envelope = said("one", key="k")
    delivered = keep("listener", envelope, answers_as="shop" if how == "answering" else None)
    if how == "holding up nothing":
        delivered = holding_up_nothing(delivered)
    if how == "raw":  # what cannot be read is of no type, and goes with all else
        unread = keep_unread("listener", "talk", envelope.to_headers(), envelope.body)
        assert unread is not None
        delivered = unread
    database = house.database
    failed = Failed("handler_failed", "no")
    await database.run(store, house.tables, house.clock, delivered, failed)

    async def due(**which: Any) -> bool:
        return await database.look(any_due, house.tables, house.clock, ["listener"], **which)

    mine = Kind("listener", "talk", envelope.type)
    others = [
        Kind("listener", "talk", envelope.type[:-1]),
        Kind("listener", "talk", envelope.type + "x"),
        Kind("listener", "shout", envelope.type),
        Kind("other", "talk", envelope.type),
    ]
    assert await due(but=others)
    assert [await due(only=kind) for kind in others] == [False] * 4
    assert await due(only=mine) is (how != "raw")
    assert await due(but=[*others, mine]) is (how == "raw")


@pytest.mark.databases("postgres18")
async def test_a_place_that_comes_free_is_taken_by_what_waits_for_it(
    house: House, process: MakeProcess
) -> None:
    moods, done = Moods(*(str(n) for n in range(30))), asyncio.Event()

    async def slow(handle: HandlerContext[Said]) -> None:
        await moods.asynchronous(handle)
        if len(moods.asked) == 60:
            done.set()

    listener = process(slow, concurrency=2)
    for number in range(30):
        await listener.deliver(said(str(number)))
    moods.poison.clear()
    house.advance(LATER)
    stop = asyncio.Event()
    running = asyncio.create_task(listener.service.waiting_room().run(stop))
    await asyncio.wait_for(done.wait(), PATIENCE)
    stop.set()
    await asyncio.wait_for(running, PATIENCE)
    assert sorted(house.notes(), key=int) == [str(n) for n in range(30)]
    assert house.set_aside() == []


# --- what costs no attempt, and what does --------------------------------------------------------


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_connection_the_server_ends_costs_no_attempt(
    house: House, process: MakeProcess
) -> None:
    asked: list[str] = []

    async def unlucky(handle: HandlerContext[Said]) -> None:
        asked.append(handle.message.word)
        await note(handle)
        if len(asked) < 3:
            end = (
                "kill connection_id()"
                if house.name == "mariadb"
                else "select pg_terminate_backend(pg_backend_pid())"
            )
            await handle.session.execute(sa.text(end))

    await process(unlucky).deliver(said("one", key="k"))
    assert asked == ["one"] * 3
    assert house.notes() == ["one"]
    assert house.set_aside() == []


@pytest.mark.databases("postgres18")
async def test_a_handler_whose_own_trouble_with_a_database_does_not_end_has_failed(
    house: House, process: MakeProcess
) -> None:
    async def unlucky(handle: HandlerContext[Said]) -> None:
        await handle.session.execute(sa.text("select pg_terminate_backend(pg_backend_pid())"))

    await process(unlucky).deliver(said("one", key="k"))
    (row,) = house.set_aside()
    assert (row.attempts, row.error_code) == (1, "database")


@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_message_that_is_delivered_again_and_again_is_stored_first_and_then_runs(
    house: House, process: MakeProcess, attempts: int
) -> None:
    """Its process may die of it, or it was only given back: the broker counts both. From the table
    deaths are counted alone, so nothing is charged.
    """
    moods = Moods()
    listener = process(moods.asynchronous, retry=Retry(max_attempts=attempts))
    await listener.service.handling.deliver(said("one", key="k"), attempt=6)
    assert moods.asked == []
    (row,) = house.set_aside()
    assert (row.error_code, row.attempts, row.until is None) == ("no_answer", 0, False)
    await listener.to_rest()
    assert house.notes() == ["one"]
    assert house.set_aside() == []


async def test_a_message_that_kills_each_process_it_is_stored_in_ends_as_a_dead_letter(
    house: House, process: MakeProcess
) -> None:
    moods = Moods()
    listener = process(moods.asynchronous)
    await listener.service.handling.deliver(said("one", key="k"), attempt=6)
    database = listener.service.database
    for _ in range(3):  # as often as FEW allows
        house.advance(LATER)
        leased = await database.run(
            lease_due, database.tables, database.clock, new_id(), 30.0, ["listener"], 1
        )
        assert len(leased) == 1
        house.advance(31)
        assert await listener.room.run_once() == 1
    (row,) = house.set_aside()
    assert (row.error_code, row.attempts, row.until) == ("process_died", 3, None)
    assert moods.asked == []


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_message_that_is_still_in_a_thread_is_not_begun_again_there(
    house: House, process: MakeProcess
) -> None:
    go = threading.Event()

    def hangs(handle: Any) -> None:
        go.wait(PATIENCE)

    listener, envelope = process(hangs, timeout=0.05), said("one", key="k")
    try:
        await listener.deliver(envelope)
        (row,) = house.set_aside()
        assert (row.error_code, row.attempts) == ("handler_timeout", 1)
        with pytest.raises(HandlerBusy):
            await listener.deliver(envelope)
        house.advance(LATER)
        assert await listener.room.run_once() == 1
        (row,) = house.set_aside()
        assert (row.attempts, row.owner) == (1, None)
    finally:
        go.set()
        listener.service._threads.shutdown()
