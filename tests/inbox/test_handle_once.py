"""Once per (consumer, id), with everything it does or not at all."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga.envelopes import Envelope, seal
from outbox_saga.errors import AlteredMessage, CommitRefused, HandlerFailed, MessageRefused
from outbox_saga.handler_context import HandlerContext, SyncHandlerContext
from outbox_saga.ids import new_id
from outbox_saga.inbox import handle_once
from outbox_saga.queries.inbox import Arrival
from outbox_saga.results import Failure, Success
from outbox_saga.worker_threads import WorkerThreads
from tests.relay.house import PATIENCE, House, Said, till

Deliver = Callable[..., Any]


def hello(word: str = "hello") -> Envelope:
    return seal(Said(word=word), correlation_id="the talk")


@pytest.fixture
async def deliver(house: House) -> AsyncIterator[Deliver]:
    """`await deliver(envelope, handler)`, through one database and one pool of threads."""
    with WorkerThreads(8, "test") as threads:

        async def through(envelope: Envelope, handler: Any, consumer: str = "listener") -> Arrival:
            return await handle_once(
                house.database, threads, consumer, envelope, Said, handler, source="test"
            )

        yield through


async def note(handle: HandlerContext[Said]) -> None:
    await handle.session.execute(sa.insert(till).values(note=handle.message.word))


def note_in_thread(handle: SyncHandlerContext[Said]) -> None:
    handle.session.execute(sa.insert(till).values(note=handle.message.word))


both = pytest.mark.parametrize("handler", [note, note_in_thread])


@both
async def test_a_repeat_has_no_effect(house: House, deliver: Deliver, handler: Any) -> None:
    envelope = hello()
    assert [await deliver(envelope, handler) for _ in range(3)] == ["new", "repeat", "repeat"]
    assert house.notes() == ["hello"]


@both
async def test_the_same_words_under_another_id_are_another_message(
    house: House, deliver: Deliver, handler: Any
) -> None:
    assert [await deliver(hello(), handler) for _ in range(2)] == ["new", "new"]
    assert house.notes() == ["hello", "hello"]


async def test_each_consumer_handles_a_message_once(house: House, deliver: Deliver) -> None:
    envelope = hello()
    for consumer in ("one", "two", "one", "two", "ONE"):
        await deliver(envelope, note, consumer)
    assert sorted(row.consumer for row in house.inbox()) == ["ONE", "one", "two"]
    assert len(house.notes()) == 3


@both
async def test_deliveries_of_one_id_at_the_same_time_have_one_effect(
    house: House, deliver: Deliver, handler: Any
) -> None:
    envelope = hello()
    arrivals = await asyncio.gather(*(deliver(envelope, handler) for _ in range(6)))
    assert sorted(arrivals) == ["new"] + ["repeat"] * 5
    assert house.notes() == ["hello"]


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_second_delivery_waits_and_handles_it_if_the_first_one_fails(
    house: House, deliver: Deliver
) -> None:
    envelope = hello()
    first_in, go = asyncio.Event(), asyncio.Event()

    async def fail(handle: HandlerContext[Said]) -> None:
        await note(handle)
        first_in.set()
        await go.wait()
        raise RuntimeError("no")

    first = asyncio.create_task(deliver(envelope, fail))
    await asyncio.wait_for(first_in.wait(), PATIENCE)
    second = asyncio.create_task(deliver(envelope, note))
    await asyncio.to_thread(house.until, lambda: len(house.others()) >= 2, "a second connection")
    go.set()
    with pytest.raises(RuntimeError):
        await first
    assert await asyncio.wait_for(second, PATIENCE) == "new"
    assert house.notes() == ["hello"]


async def test_two_processes_with_the_same_deliveries_have_one_effect_each(house: House) -> None:
    ids = [str(new_id()) for _ in range(40)]
    program = [sys.executable, str(Path(__file__).with_name("deliverer.py")), house.url, *ids]
    processes = [
        subprocess.Popen(  # noqa: ASYNC220  # it is waited for in turn
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert sum(int(number) for number in said) == 40, said
    assert sorted(house.notes()) == sorted(ids)


async def test_the_same_id_with_another_body_is_an_error_that_does_nothing(
    house: House, deliver: Deliver
) -> None:
    envelope = hello()
    await deliver(envelope, note)
    altered = Envelope(envelope.id, "talk", None, "Said", Said(word="other").to_body())
    with pytest.raises(AlteredMessage, match=str(envelope.id)):
        await deliver(altered, note)
    assert house.notes() == ["hello"]


async def test_a_body_that_does_not_fit_is_refused_before_anything_is_written(
    house: House, deliver: Deliver
) -> None:
    envelope = Envelope(new_id(), "talk", None, "Said", b'{"word": 7}')
    with pytest.raises(MessageRefused):
        await deliver(envelope, note)
    assert house.inbox() == []


def _raise(handle: Any) -> Any:
    raise LookupError("no")


@pytest.mark.parametrize(
    ("end", "error"),
    [(_raise, LookupError), (lambda _: Failure("no"), HandlerFailed)],
    ids=["raises", "Failure"],
)
async def test_a_handler_that_raises_or_says_no_leaves_nothing(
    house: House, deliver: Deliver, end: Any, error: type[Exception]
) -> None:
    envelope = hello()

    async def handler(handle: HandlerContext[Said]) -> Any:
        await note(handle)
        handle.publish(Said(word="never"))
        return end(handle)

    def in_thread(handle: SyncHandlerContext[Said]) -> Any:
        note_in_thread(handle)
        handle.publish(Said(word="never"))
        return end(handle)

    for one in (handler, in_thread):
        with pytest.raises(error):
            await deliver(envelope, one)
        assert (house.notes(), house.inbox(), house.waiting()) == ([], [], [])
    assert await deliver(envelope, note) == "new"


async def test_a_success_commits_like_none(house: House, deliver: Deliver) -> None:
    async def handler(handle: HandlerContext[Said]) -> Success[dict[str, int]]:
        await note(handle)
        return Success({"notes": 1})

    assert await deliver(hello(), handler) == "new"
    assert house.notes() == ["hello"]


async def test_what_a_handler_publishes_goes_on_with_the_conversation(
    house: House, deliver: Deliver
) -> None:
    def in_thread(handle: SyncHandlerContext[Said]) -> None:
        handle.publish(Said(word="answer"), key="k")

    async def handler(handle: HandlerContext[Said]) -> None:
        handle.publish(Said(word="answer"), key="k")

    for one in (in_thread, handler):
        house.empty()
        envelope = hello()
        await deliver(envelope, one)
        await deliver(envelope, one)
        (row,) = house.rows(house.tables.outbox)
        sent = Envelope.from_row(row.id, row.topic, row.key, row.headers, row.body)
        assert (sent.correlation_id, sent.causation_id, sent.source, sent.key) == (
            "the talk",
            str(envelope.id),
            "test",
            "k",
        )


async def test_a_handler_that_publishes_what_cannot_travel_failed_and_the_message_did_not(
    house: House, deliver: Deliver
) -> None:
    """Its own message is refused; the one it got is fine, and comes again when it is mended."""

    async def handler(handle: HandlerContext[Said]) -> None:
        handle.publish(Said(word="\0"))

    envelope = hello()
    with pytest.raises(HandlerFailed):
        await deliver(envelope, handler)
    assert house.inbox() == []


class Noting:
    async def __call__(self, handle: HandlerContext[Said]) -> None:
        await note(handle)


async def test_an_object_with_an_async_call_is_an_async_handler(
    house: House, deliver: Deliver
) -> None:
    assert await deliver(hello(), Noting()) == "new"
    assert house.notes() == ["hello"]


def partial_note(handle: HandlerContext[Said]) -> Any:
    return note(handle)


async def test_a_plain_function_that_answers_with_a_coroutine_has_not_handled_anything(
    house: House, deliver: Deliver
) -> None:
    with pytest.raises(HandlerFailed, match="async def"):
        await deliver(hello(), partial_note)
    assert house.inbox() == []


async def test_plain_functions_run_in_threads_of_the_pool(house: House, deliver: Deliver) -> None:
    seen = []

    def handler(handle: SyncHandlerContext[Said]) -> None:
        seen.append(threading.current_thread())

    await deliver(hello(), handler)
    assert seen[0] is not threading.main_thread()


# --- the session is lent ---------------------------------------------------------------------


def _nested_left_open(session: Any) -> None:
    session.begin_nested()


def _rolled_back_to_a_savepoint(session: Any, statement: str) -> None:
    with session.begin_nested():
        name = session.connection().get_nested_transaction()._savepoint
        session.execute(sa.text(statement.format(name)))


ENDINGS: dict[str, Callable[[Any], Any]] = {
    "commit": lambda s: s.commit(),
    "rollback": lambda s: s.rollback(),
    "close": lambda s: s.close(),
    "reset": lambda s: s.reset(),
    "invalidate": lambda s: s.invalidate(),
    "connection.commit": lambda s: s.connection().commit(),
    "connection.rollback": lambda s: s.connection().rollback(),
    "COMMIT": lambda s: s.execute(sa.text("COMMIT")),
    "commit in lower case after a comment": lambda s: s.execute(sa.text("/* x */ commit ")),
    "ROLLBACK": lambda s: s.execute(sa.text("ROLLBACK")),
    "SAVEPOINT": lambda s: s.execute(sa.text("SAVEPOINT a")),
    "ROLLBACK TO": lambda s: _rolled_back_to_a_savepoint(s, "ROLLBACK TO SAVEPOINT {}"),
    "ROLLBACK WORK TO": lambda s: _rolled_back_to_a_savepoint(s, "rollback work to {}"),
    "RELEASE": lambda s: _rolled_back_to_a_savepoint(s, "RELEASE SAVEPOINT {}"),
    "SAVEPOINT by the connection": lambda s: s.connection().exec_driver_sql("SAVEPOINT a"),
    "nested left open": _nested_left_open,
}
endings = pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())


@endings
async def test_a_handler_in_a_thread_cannot_end_its_transaction(
    house: House, deliver: Deliver, ending: Callable[[Any], Any]
) -> None:
    def handler(handle: SyncHandlerContext[Said]) -> None:
        note_in_thread(handle)
        ending(handle.session)

    envelope = hello()
    with pytest.raises(CommitRefused):
        await deliver(envelope, handler)
    assert (house.notes(), house.inbox()) == ([], [])
    assert await deliver(envelope, note) == "new"


@endings
async def test_an_async_handler_cannot_end_its_transaction(
    house: House, deliver: Deliver, ending: Callable[[Any], Any]
) -> None:
    async def handler(handle: HandlerContext[Said]) -> None:
        await note(handle)
        await handle.session.run_sync(ending)

    envelope = hello()
    with pytest.raises(CommitRefused):
        await deliver(envelope, handler)
    assert (house.notes(), house.inbox()) == ([], [])
    assert await deliver(envelope, note) == "new"


async def test_a_handler_that_swallows_the_refusal_commits_everything_or_nothing(
    house: House, deliver: Deliver
) -> None:
    async def handler(handle: HandlerContext[Said]) -> None:
        await note(handle)
        with pytest.raises(CommitRefused):
            await handle.session.commit()

    assert await deliver(hello(), handler) == "new"
    assert (house.notes(), len(house.inbox())) == (["hello"], 1)


async def test_part_of_a_handler_can_be_undone_in_a_nested_transaction(
    house: House, deliver: Deliver
) -> None:
    async def handler(handle: HandlerContext[Said]) -> None:
        await note(handle)
        with pytest.raises(LookupError):  # noqa: PT012
            async with handle.session.begin_nested():
                await note(handle)
                handle.publish(Said(word="never"))
                raise LookupError
        async with handle.session.begin_nested():
            await note(handle)
            handle.publish(Said(word="kept"))

    assert await deliver(hello(), handler) == "new"
    assert house.notes() == ["hello", "hello"]
    assert house.waiting() == ["kept"]


# --- cancellation ----------------------------------------------------------------------------


@pytest.mark.parametrize("middle", ["between statements", "in a statement"])
async def test_a_handler_cancelled_in_the_middle_leaves_no_connection_and_no_lock(
    house: House, deliver: Deliver, middle: str
) -> None:
    reached = asyncio.Event()

    async def handler(handle: HandlerContext[Said]) -> None:
        await note(handle)
        reached.set()
        if middle == "between statements" or house.name == "sqlite":
            await asyncio.Event().wait()
        slow = "select sleep(30)" if house.name == "mariadb" else "select pg_sleep(30)"
        await handle.session.execute(sa.text(slow))

    envelope = hello()
    delivering = asyncio.create_task(deliver(envelope, handler))
    await asyncio.wait_for(reached.wait(), PATIENCE)
    await asyncio.sleep(0)
    delivering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(delivering, PATIENCE)
    pool: Any = house.database.async_engine.pool
    assert pool.checkedout() == 0
    # ends before the statement would have: its locks did not outlive the handler
    assert await asyncio.wait_for(deliver(envelope, note), PATIENCE) == "new"
    assert house.notes() == ["hello"]
