"""Handlers that act outside: a claim before they run, one at a time, again after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from outbox_saga import Failure, HandlerContext, Retry, SyncHandlerContext, calling
from outbox_saga.attempts import CLAIM_LEASE
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import HandlerBusy
from outbox_saga.ids import new_id
from outbox_saga.queries import claims
from tests.inbox.processes import LATER, MakeProcess, Process, note, note_in_thread, said
from tests.relay.house import PATIENCE, House, Said


class Outside:
    """The other side: it remembers each call, with its key."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.inside = asyncio.Event()
        self.go = asyncio.Event()
        self.fails: list[Exception] = []

    async def call(self, handle: HandlerContext[Said]) -> None:
        self.calls.append(handle.key)
        if self.fails:
            raise self.fails.pop()
        await note(handle)

    def call_in_thread(self, handle: SyncHandlerContext[Said]) -> None:
        self.calls.append(handle.key)
        if self.fails:
            raise self.fails.pop()
        note_in_thread(handle)

    async def call_slowly(self, handle: HandlerContext[Said]) -> None:
        self.calls.append(handle.key)
        self.inside.set()
        await self.go.wait()
        await note(handle)


@pytest.fixture
def outside() -> Outside:
    return Outside()


def claimed(house: House) -> list[Any]:
    return house.rows(house.tables.inbox_claim)


async def crash_while_claimed(process: Process, envelope: Envelope, times: int = 1) -> None:
    """Processes that claim the message and are not heard of again; their claims have run out."""
    database = process.service.database
    for number in range(1, times + 1):
        took = await database.run(
            claims.take,
            database.tables,
            database.clock,
            new_id(),
            CLAIM_LEASE,
            "listener",
            envelope.id,
            envelope.body,
            key=envelope.key,
            look_for_waiting=True,
        )
        assert took == ("new", number)
        process.house.advance(CLAIM_LEASE + 1)


@pytest.mark.parametrize("kind", ["call", "call_in_thread"])
async def test_it_runs_once_and_nothing_is_left_of_its_claim(
    house: House, process: MakeProcess, outside: Outside, kind: str
) -> None:
    listener, envelope = process(getattr(outside, kind), pessimistic=True), said("one", key="k")
    await listener.deliver(envelope, envelope)
    assert len(outside.calls) == 1
    assert (house.notes(), len(house.inbox()), claimed(house)) == (["one"], 1, [])


@pytest.mark.databases("postgres18", "postgres15", "mariadb")
async def test_a_duplicate_waits_and_never_runs_beside_it(
    house: House, process: MakeProcess, outside: Outside
) -> None:
    envelope = said("one", key="k")
    first, second = (process(outside.call_slowly, pessimistic=True) for _ in range(2))
    running = asyncio.create_task(first.deliver(envelope))
    await asyncio.wait_for(outside.inside.wait(), PATIENCE)
    with pytest.raises(HandlerBusy):
        await second.deliver(envelope)
    outside.go.set()
    await running
    await second.deliver(envelope)
    assert len(outside.calls) == 1
    assert house.notes() == ["one"]


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_duplicate_that_was_given_back_often_makes_no_dead_letter_of_one_that_runs(
    house: House, process: MakeProcess, outside: Outside
) -> None:
    envelope, once = said("one", key="k"), Retry(max_attempts=1)
    first, second = (process(outside.call_slowly, pessimistic=True, retry=once) for _ in range(2))
    running = asyncio.create_task(first.deliver(envelope))
    await asyncio.wait_for(outside.inside.wait(), PATIENCE)
    for attempt in (6, 60):
        with pytest.raises(HandlerBusy):
            await second.service.handling.deliver(envelope, attempt=attempt)
    assert house.set_aside() == []
    outside.go.set()
    await running
    await second.service.handling.deliver(envelope, attempt=61)
    assert len(outside.calls) == 1
    assert (house.notes(), house.set_aside(), claimed(house)) == (["one"], [], [])


async def test_no_transaction_is_open_until_it_uses_its_session(
    house: House, process: MakeProcess, outside: Outside
) -> None:
    """A call outside may be slow; it holds no lock and no snapshot meanwhile."""
    free: list[bool] = []

    async def calls(handle: HandlerContext[Said]) -> None:
        handle.publish(Said(word="after one"))  # which does not begin one either
        pool: Any = listener.service.database.async_engine.pool
        free.append(pool.checkedout() == 0)
        with house.till_locked():  # SQLite too: nobody else writes
            free.append(True)

    listener = process(calls, pessimistic=True)
    await listener.deliver(said("one", key="k"))
    assert free == [True, True]
    assert house.waiting() == ["after one"]
    assert len(house.inbox()) == 1


async def test_a_claim_whose_process_died_ends_and_the_handler_runs_again_with_the_same_key(
    house: House, process: MakeProcess, outside: Outside
) -> None:
    listener, envelope = process(outside.call, pessimistic=True), said("one", key="k")
    outside.fails.append(LookupError())
    await listener.deliver(envelope)
    await crash_while_waiting(listener, envelope)
    await listener.later(times=2)
    assert len(outside.calls) == 2
    assert len(set(outside.calls)) == 1
    assert (house.notes(), house.set_aside(), claimed(house)) == (["one"], [], [])


async def crash_while_waiting(process: Process, envelope: Envelope) -> None:
    """As `crash_while_claimed`, of a message that waits and is due."""
    database = process.service.database
    process.house.advance(LATER)
    await database.run(
        claims.take,
        database.tables,
        database.clock,
        new_id(),
        CLAIM_LEASE,
        "listener",
        envelope.id,
        envelope.body,
        key=envelope.key,
        look_for_waiting=False,
    )
    assert await process.room.run_once() == 1  # looked at, claimed by somebody, given back
    (row,) = process.house.set_aside()
    assert (row.attempts, row.owner) == (1, None)


async def test_a_delivery_after_a_crash_runs_it_again(
    house: House, process: MakeProcess, outside: Outside
) -> None:
    listener, envelope = process(outside.call, pessimistic=True), said("one", key="k")
    await crash_while_claimed(listener, envelope, times=2)
    await listener.deliver(envelope)
    assert (len(outside.calls), house.notes(), claimed(house)) == (1, ["one"], [])


async def test_a_message_that_kills_its_process_each_time_ends_as_a_dead_letter(
    house: House, process: MakeProcess, outside: Outside
) -> None:
    listener, envelope = process(outside.call, pessimistic=True), said("one", key="k")
    await crash_while_claimed(listener, envelope, times=3)  # as often as FEW allows
    await listener.deliver(envelope)
    assert outside.calls == []
    (row,) = house.set_aside()
    assert (row.error_code, row.until) == ("process_died", None)
    assert claimed(house) == []


@pytest.mark.parametrize("kind", ["call", "call_in_thread"])
async def test_one_that_fails_waits_and_its_claim_is_gone_at_once(
    house: House, process: MakeProcess, outside: Outside, kind: str
) -> None:
    listener, envelope = process(getattr(outside, kind), pessimistic=True), said("one", key="k")
    outside.fails.append(LookupError())
    await listener.deliver(envelope, said("two", key="k"))
    assert [row.attempts for row in house.set_aside()] == [1, 0]
    assert (claimed(house), house.notes()) == ([], [])
    await listener.later()
    assert house.notes() == ["one", "two"]


async def test_a_refusal_undoes_what_it_did_in_the_database(
    house: House, process: MakeProcess
) -> None:
    async def refuses(handle: HandlerContext[Said]) -> Failure[str]:
        await note(handle)
        return Failure("no")

    await process(refuses, pessimistic=True).deliver(said("one"))
    assert (house.notes(), len(house.set_aside()), claimed(house)) == ([], 1, [])


@pytest.mark.databases("postgres18", "mariadb")
async def test_one_that_comes_back_after_its_claim_was_taken_over_commits_nothing(
    house: House, process: MakeProcess, outside: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    envelope = said("one", key="k")
    late = process(outside.call_slowly, pessimistic=True)
    running = asyncio.create_task(late.deliver(envelope))
    await asyncio.wait_for(outside.inside.wait(), PATIENCE)
    house.advance(CLAIM_LEASE + 1)
    await process(outside.call, pessimistic=True).deliver(envelope)
    outside.go.set()
    with pytest.raises(Exception, match="taken over"):
        await running
    assert house.notes() == ["one"]
    assert (house.set_aside(), claimed(house)) == ([], [])


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_claim_is_renewed_while_its_handler_runs(
    house: House, process: MakeProcess, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox_saga.attempts.CLAIM_LEASE", 0.3)
    envelope, renewed = said("one", key="k"), asyncio.Semaphore(0)
    listener = process(outside.call_slowly, pessimistic=True)
    engine = listener.service.database.lease_engine.sync_engine

    @event.listens_for(engine, "commit")
    def committed(connection: sa.Connection) -> None:
        renewed.release()

    running = asyncio.create_task(listener.deliver(envelope))
    await asyncio.wait_for(outside.inside.wait(), PATIENCE)
    (first,) = claimed(house)
    for _ in range(8):  # which take longer together than it lasts
        await asyncio.wait_for(renewed.acquire(), PATIENCE)
    with pytest.raises(HandlerBusy):
        await process(outside.call, pessimistic=True).deliver(envelope)
    (last,) = claimed(house)
    assert last.until > first.until
    assert (last.owner, last.attempts) == (first.owner, 1)
    outside.go.set()
    await running
    assert len(outside.calls) == 1


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_plain_one_out_of_time_keeps_its_claim_as_long_as_its_thread_acts(
    house: House, process: MakeProcess
) -> None:
    go, calls = threading.Event(), []

    def hangs(handle: SyncHandlerContext[Said]) -> None:
        calls.append(handle.key)
        if len(calls) == 1:
            go.wait(PATIENCE)
        note_in_thread(handle)

    envelope = said("one", key="k")
    listener, other = (process(hangs, pessimistic=True, timeout=t) for t in (0.1, PATIENCE))
    try:
        await listener.deliver(envelope)
        (row,) = house.set_aside()
        assert row.error_code == "handler_timeout"
        assert len(claimed(house)) == 1
    finally:
        go.set()
        listener.service._threads.shutdown()
    assert house.notes() == []
    house.advance(CLAIM_LEASE + 1)
    await other.later()
    assert house.notes() == ["one"]
    assert len(set(calls)) == 1


async def let_end(go: asyncio.Event) -> None:
    """What was left to itself is told to end, and does."""
    go.set()
    async with asyncio.timeout(PATIENCE):
        while calling._left_alone:
            await asyncio.wait(set(calling._left_alone))


@pytest.mark.databases("postgres18", "mariadb")
async def test_an_async_one_that_swallows_its_cancellation_keeps_its_claim_and_its_place(
    house: House, process: MakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "STUBBORN", 0.02)
    go, calls = asyncio.Event(), list[str]()

    async def stubborn(handle: HandlerContext[Said]) -> None:
        calls.append(handle.message.word)
        while handle.message.word == "one" and not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()

    envelope = said("one", key="k")
    listener = process(stubborn, pessimistic=True, timeout=0.1, concurrency=1)
    try:
        await asyncio.wait_for(listener.deliver(envelope), PATIENCE)
        (row,) = house.set_aside()
        assert row.error_code == "handler_timeout"
        assert len(claimed(house)) == 1
        with pytest.raises(HandlerBusy):
            await process(stubborn, pessimistic=True).deliver(envelope)
        with pytest.raises(HandlerBusy, match="places"):
            await listener.deliver(said("two", key="j"))
        house.advance(LATER)
        assert await listener.room.run_once() == 0  # it has no place to lease any for
        assert calls == ["one"]
    finally:
        await let_end(go)
    await listener.later()
    assert calls == ["one", "one"]
    assert (house.set_aside(), claimed(house)) == ([], [])


@pytest.mark.databases("postgres18", "mariadb")
async def test_one_that_goes_on_when_its_process_stops_keeps_its_claim(
    house: House, process: MakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "STUBBORN", 0.02)
    go, inside = asyncio.Event(), asyncio.Event()

    async def stubborn(handle: HandlerContext[Said]) -> None:
        inside.set()
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()

    envelope = said("one", key="k")
    running = asyncio.create_task(process(stubborn, pessimistic=True).deliver(envelope))
    await asyncio.wait_for(inside.wait(), PATIENCE)
    running.cancel()
    try:
        with pytest.raises(asyncio.CancelledError):
            await running
        assert len(claimed(house)) == 1
        with pytest.raises(HandlerBusy):
            await process(stubborn, pessimistic=True).deliver(envelope)
    finally:
        await let_end(go)


async def test_its_session_is_lent_as_any_other(house: House, process: MakeProcess) -> None:
    async def commits(handle: HandlerContext[Said]) -> None:
        await note(handle)
        await handle.session.run_sync(lambda session: session.connection().commit())

    await process(commits, pessimistic=True, retry=Retry(max_attempts=1)).deliver(said("one"))
    (row,) = house.set_aside()
    assert row.error_class == "CommitRefused"
    assert house.notes() == []
    house.advance(LATER)


async def test_the_key_is_the_same_for_every_attempt_and_another_for_each_consumer(
    house: House, process: MakeProcess, outside: Outside
) -> None:
    envelope = said("one")
    await process(outside.call).deliver(envelope)
    await process(outside.call, consumer="other").deliver(envelope)
    await process(outside.call).deliver(said("one"))
    assert len(set(outside.calls)) == 3
