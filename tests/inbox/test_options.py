"""Each option of a handler does what it says."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from outbox_saga import HandlerContext, Retry, SyncHandlerContext, calling
from outbox_saga.errors import ConfigurationError, HandlerBusy
from outbox_saga.handlers import Handlers
from tests.inbox.processes import LATER, MakeProcess, Moods, note, note_in_thread, said
from tests.relay.house import PATIENCE, House, Said


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"concurrency": 0}, "at least 1"),
        ({"timeout": 0}, "None for no limit"),
        ({"timeout": float("inf")}, "None for no limit"),
        ({"timeout": float("nan")}, "None for no limit"),
        ({"poison": "drop"}, '"park" or "skip"'),
    ],
)
def test_an_option_out_of_its_bounds_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        Handlers("shop").add(Said, note, **options)


async def test_retry_says_when_and_how_often(house: House, process: MakeProcess) -> None:
    moods = Moods("one")
    retry = Retry(max_attempts=4, initial=100.0, factor=2.0, max_delay=300.0)
    listener = process(moods.asynchronous, retry=retry)
    await listener.deliver(said("one"))
    pauses = []
    while (row := house.set_aside()[0]).until is not None:
        pauses.append((row.until - row.failed_at).total_seconds())
        house.advance(301)
        await listener.to_rest()
    assert len(moods.asked) == 4
    for pause, ceiling in zip(pauses, (100, 200, 300), strict=True):
        assert ceiling / 2 - 1 < pause < ceiling + 1


# --- timeout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["between statements", "in a statement"])
async def test_an_async_handler_out_of_time_is_cancelled_rolled_back_and_has_failed(
    house: House, process: MakeProcess, where: str
) -> None:
    cancelled = asyncio.Event()

    async def slow(handle: HandlerContext[Said]) -> None:
        await note(handle)
        handle.publish(Said(word="never"))
        try:
            if where == "between statements" or house.name == "sqlite":
                await asyncio.Event().wait()
            wait = "select sleep(30)" if house.name == "mariadb" else "select pg_sleep(30)"
            await handle.session.execute(sa.text(wait))
        finally:
            cancelled.set()

    listener = process(slow, timeout=0.1)
    await asyncio.wait_for(listener.deliver(said("one", key="k")), PATIENCE)
    assert cancelled.is_set()
    (row,) = house.set_aside()
    assert (row.error_code, row.error, row.attempts) == (
        "handler_timeout",
        "timed out after 0.1 s",
        1,
    )
    assert (house.notes(), house.inbox(), house.waiting()) == ([], [], [])
    pool: Any = listener.service.database.async_engine.pool
    assert pool.checkedout() == 0
    # MariaDB looks for a client that is gone only now and then while a statement sleeps
    await asyncio.to_thread(house.until, lambda: _free(house), "the end of its locks")


def _free(house: House) -> bool:
    try:
        with house.till_locked():
            return True
    except DBAPIError:
        return False


async def test_an_async_handler_that_swallows_its_cancellation_has_failed_and_holds_up_nothing(
    house: House, process: MakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "STUBBORN", 0.02)
    let_go, refused = asyncio.Event(), list[str]()

    async def stubborn(handle: HandlerContext[Said]) -> None:
        await note(handle)
        while not let_go.is_set() and handle.message.word == "one":
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()
        if let_go.is_set():
            try:
                await note(handle)
            except SQLAlchemyError as error:
                refused.append(type(error).__name__)

    listener = process(stubborn, timeout=0.1)
    await asyncio.wait_for(listener.deliver(said("one", key="k")), PATIENCE)
    await asyncio.wait_for(listener.deliver(said("two", key="j")), PATIENCE)
    (row,) = house.set_aside()
    assert row.error_code == "handler_timeout"
    assert "swallowed its cancellation" in row.error
    assert house.notes() == ["two"]
    let_go.set()
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait(set(calling._left_alone))
    assert len(refused) == 1
    assert house.notes() == ["two"]
    pool: Any = listener.service.database.async_engine.pool
    assert pool.checkedout() == 0


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_message_is_delivered_later_when_every_thread_is_held_by_handlers_out_of_time(
    house: House, process: MakeProcess
) -> None:
    over = threading.Event()

    def hang(handle: SyncHandlerContext[Said]) -> None:
        over.wait(PATIENCE)

    listener = process(hang, timeout=0.1)
    listener.service._threads._size = 1
    listener.service._threads._max_workers = 1
    await asyncio.wait_for(listener.deliver(said("one")), PATIENCE)
    with pytest.raises(HandlerBusy, match="all threads are held"):
        await asyncio.wait_for(listener.deliver(said("two")), PATIENCE)
    over.set()
    assert [row.error_code for row in house.set_aside()] == ["handler_timeout"]


async def test_a_timeout_that_a_handler_raises_by_itself_is_its_own_error(
    house: House, process: MakeProcess
) -> None:
    async def impatient(handle: HandlerContext[Said]) -> None:
        raise TimeoutError("the other side")

    await process(impatient, timeout=5).deliver(said("one"))
    (row,) = house.set_aside()
    assert (row.error_code, row.error) == ("handler_failed", "TimeoutError: the other side")


@pytest.mark.databases("postgres18", "postgres15", "mariadb")
async def test_a_plain_handler_out_of_time_keeps_its_thread_but_commits_nothing(
    house: House, process: MakeProcess
) -> None:
    go, hang = threading.Event(), [True]

    def slow(handle: SyncHandlerContext[Said]) -> None:
        note_in_thread(handle)
        handle.publish(Said(word=f"after {handle.message.word}"))
        if hang and hang.pop():
            go.wait(PATIENCE)

    listener = process(slow, timeout=0.1)
    await asyncio.wait_for(listener.deliver(said("one", key="k")), PATIENCE)
    (row,) = house.set_aside()
    assert row.error_code == "handler_timeout"
    go.set()
    listener.service._threads.shutdown()  # it has come to its end
    assert (house.notes(), house.inbox(), house.waiting()) == ([], [], [])
    successor = process(slow, timeout=5)
    await successor.later()
    assert (house.notes(), house.waiting()) == (["one"], ["after one"])


@pytest.mark.databases("postgres18", "postgres15")
@pytest.mark.parametrize("pessimistic", [False, True])
async def test_the_server_ends_the_transaction_of_a_plain_handler_that_hangs(
    house: House, process: MakeProcess, *, pessimistic: bool
) -> None:
    """Its locks do not outlive its timeout, though its thread does."""
    go = threading.Event()

    def hangs(handle: SyncHandlerContext[Said]) -> None:
        note_in_thread(handle)
        go.wait(3 * PATIENCE)  # it does not end before the patience below does

    listener = process(hangs, timeout=0.1, pessimistic=pessimistic)
    try:
        await listener.deliver(said("one", key="k"))
        await asyncio.to_thread(house.until, lambda: _no_locks(house), "the end of its locks")
    finally:
        go.set()
        listener.service._threads.shutdown()
    assert house.notes() == []


def _no_locks(house: House) -> bool:
    question = "select count(*) from pg_stat_activity where state = 'idle in transaction'"
    with house.eyes.connect() as connection:
        return not connection.scalar(sa.text(question))


async def test_without_a_limit_a_handler_takes_as_long_as_it_likes(
    house: House, process: MakeProcess
) -> None:
    assert process(note, timeout=None).service.handlers.longest() is None
    assert process(note, timeout=7).service.handlers.longest() == 7


# --- concurrency ---------------------------------------------------------------------------------


@pytest.mark.databases("postgres18", "mariadb")
@pytest.mark.parametrize("kind", ["asynchronous", "plain"])
async def test_a_handler_never_has_more_in_hand_than_its_concurrency(
    house: House, process: MakeProcess, kind: str
) -> None:
    inside, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2)

    def step(by: int) -> None:
        nonlocal inside, most
        with lock:
            inside += by
            most = max(most, inside)

    async def asynchronous(handle: HandlerContext[Said]) -> None:
        step(1)
        await asyncio.to_thread(both.wait, PATIENCE)  # so there are two at a time
        step(-1)

    def plain(handle: SyncHandlerContext[Said]) -> None:
        step(1)
        both.wait(PATIENCE)
        step(-1)

    listener = process({"asynchronous": asynchronous, "plain": plain}[kind], concurrency=2)
    await asyncio.gather(*(listener.deliver(said(str(n), key=str(n))) for n in range(8)))
    assert most == 2
    assert house.set_aside() == []


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_thread_that_hangs_keeps_its_place_and_deliveries_are_told_so(
    house: House, process: MakeProcess
) -> None:
    go = threading.Event()

    def hangs(handle: SyncHandlerContext[Said]) -> None:
        if handle.message.word == "poison":
            go.wait(PATIENCE)
        note_in_thread(handle)

    listener = process(hangs, concurrency=1, timeout=0.1)
    try:
        await listener.deliver(said("poison", key="a"))
        with pytest.raises(HandlerBusy, match="overdue"):
            await listener.deliver(said("good", key="b"))
        house.advance(LATER)
        assert await listener.room.run_once() == 0  # left alone
        (row,) = house.set_aside()
        assert (row.attempts, row.owner) == (1, None)
    finally:
        go.set()
        listener.service._threads.shutdown()
    await asyncio.sleep(0)  # the loop hears of the thread's end
    assert listener.service.handlers._handlers[0].room is not None
    assert not listener.service.handlers._handlers[0].room.stuck


@pytest.mark.databases("postgres18", "mariadb")
async def test_deliveries_that_wait_for_a_place_are_told_so_when_a_thread_keeps_it(
    house: House, process: MakeProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """They came before it was overdue, and would keep their messages from other processes."""
    go = threading.Event()

    def hangs(handle: SyncHandlerContext[Said]) -> None:
        if handle.message.word == "poison":
            go.wait(PATIENCE)
        note_in_thread(handle)

    listener = process(hangs, concurrency=1, timeout=0.1)
    words = ["poison", "good", "as good"]
    try:
        async with asyncio.timeout(PATIENCE / 2):
            came = await asyncio.gather(
                *(listener.deliver(said(word, key=word)) for word in words),
                return_exceptions=True,
            )
    finally:
        go.set()
        listener.service._threads.shutdown()
    assert [type(each) for each in came] == [type(None), HandlerBusy, HandlerBusy]
    (warning,) = [r.getMessage() for r in caplog.records if "places" in r.getMessage()]
    assert "listener" in warning
    await asyncio.sleep(0)  # the loop hears of the thread's end
    room = listener.service.handlers._handlers[0].room
    assert room is not None
    assert (room.left, room.stuck) == (1, False)


async def test_a_delivery_that_is_cancelled_while_it_waits_for_a_place_takes_none(
    house: House, process: MakeProcess
) -> None:
    inside, go = asyncio.Event(), asyncio.Event()

    async def slow(handle: HandlerContext[Said]) -> None:
        inside.set()
        await go.wait()
        await note(handle)

    listener = process(slow, concurrency=1)
    first = asyncio.create_task(listener.deliver(said("first")))
    await asyncio.wait_for(inside.wait(), PATIENCE)
    waits = [asyncio.create_task(listener.deliver(said(word))) for word in ("gone", "late")]
    for _ in range(3):
        await asyncio.sleep(0)  # both wait for the place
    waits[0].cancel()
    go.set()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(first, *waits, return_exceptions=True)
        await listener.deliver(said("last"))
    assert house.notes() == ["first", "late", "last"]
