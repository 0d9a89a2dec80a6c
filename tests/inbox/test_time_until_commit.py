"""A handler's time holds for what its session has still to say; COMMIT has a time of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import registry

from outbox_saga import HandlerContext, SyncHandlerContext, inbox
from outbox_saga.database import Database
from outbox_saga.errors import CommitUnknown
from outbox_saga.inbox import handle_once
from outbox_saga.worker_threads import WorkerThreads
from tests.inbox.processes import MakeProcess, said
from tests.relay.house import PATIENCE, House, Said, till
from tests.write_path.between import Between, between

KINDS = pytest.mark.parametrize("kind", ["def", "async def"])


class Note:
    """A row of the till, as an ORM has it."""

    id: int
    note: str


@pytest.fixture(autouse=True)
def mapped() -> Iterator[None]:
    orm = registry()
    orm.map_imperatively(Note, till)
    yield
    orm.dispose()


def adding(kind: str) -> Callable[[Any], Any]:
    """A handler that leaves the flush to its end."""

    def add(session: Any) -> None:
        note = Note()
        note.id, note.note = 1000, "mine"
        session.add(note)

    async def in_loop(handle: HandlerContext[Said]) -> None:
        add(handle.session)

    def in_thread(handle: SyncHandlerContext[Said]) -> None:
        add(handle.session)

    return in_thread if kind == "def" else in_loop


def answering(kind: str, then: Callable[[], object] = str) -> Callable[[Any], Any]:
    """A handler that sends something."""

    async def in_loop(handle: HandlerContext[Said]) -> Said:
        then()
        return Said(word="sent")

    def in_thread(handle: SyncHandlerContext[Said]) -> Said:
        then()
        return Said(word="sent")

    return in_thread if kind == "def" else in_loop


@asynccontextmanager
async def held(house: House, *statements: str) -> AsyncIterator[None]:
    """Somebody has done this, and neither commits nor gives up until the block ends."""
    with house.eyes.connect() as other:
        for statement in statements:
            other.exec_driver_sql(statement)
        try:
            yield
        finally:
            other.rollback()
            if house.name == "mariadb":
                other.exec_driver_sql("unlock tables")


async def ends(task: asyncio.Task[Any]) -> bool:
    done, _ = await asyncio.wait({task}, timeout=PATIENCE)
    return bool(done)


TAKEN = "insert into till (id, note) values (1000, 'theirs')"


@KINDS
@pytest.mark.databases("postgres18", "mariadb")
async def test_the_timeout_holds_for_the_flush_of_what_a_handler_has_added(
    house: House, process: MakeProcess, kind: str
) -> None:
    listener = process(adding(kind), timeout=0.3)
    async with held(house, TAKEN):
        delivery = asyncio.create_task(listener.deliver(said("one", key="k")))
        in_time = await ends(delivery)
    await delivery
    listener.service._threads.shutdown()
    assert in_time
    (row,) = house.set_aside()
    assert (row.error_code, row.error) == ("handler_timeout", "timed out after 0.3 s")
    assert (house.notes(), house.inbox()) == ([], [])


@KINDS
@pytest.mark.databases("postgres18")
async def test_a_handler_that_is_told_to_end_in_its_flush_ends(
    house: House, process: MakeProcess, kind: str
) -> None:
    listener = process(adding(kind), timeout=None)
    async with held(house, TAKEN):
        delivery = asyncio.create_task(listener.deliver(said("one", key="k")))
        await asyncio.to_thread(house.until, lambda: _waits(house), "its wait for the row")
        delivery.cancel()
        in_time = await ends(delivery)
    with pytest.raises(asyncio.CancelledError):
        await delivery
    listener.service._threads.shutdown()  # it ends with the lock, and commits what it did
    assert in_time


def _waits(house: House) -> bool:
    question = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
    with house.eyes.connect() as connection:
        return bool(connection.scalar(sa.text(question)))


@KINDS
@pytest.mark.databases("postgres18", "mariadb")
async def test_what_comes_before_commit_has_a_deadline_and_the_message_waits(
    house: House, process: MakeProcess, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "COMMIT_TIMEOUT", 0.3)
    listener = process(answering(kind), timeout=PATIENCE)
    lock = {"mariadb": "lock tables outbox_saga_outbox write"}.get(
        house.name, "lock table outbox_saga_outbox in access exclusive mode"
    )
    async with held(house, lock):
        delivery = asyncio.create_task(listener.deliver(said("one", key="k")))
        in_time = await ends(delivery)
    await delivery
    assert in_time
    (row,) = house.set_aside()
    assert row.error_code == "handler_timeout"
    assert "COMMIT had not been sent" in row.error
    assert (house.waiting(), house.inbox()) == ([], [])


@pytest.fixture
def line(house: House) -> Iterator[Between]:
    with between(house.url) as made:
        yield made


@KINDS
@pytest.mark.databases("postgres18", "mariadb")
async def test_a_commit_whose_answer_hangs_is_unknown_and_the_message_is_handled_once(
    house: House, line: Between, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "COMMIT_TIMEOUT", 0.5)
    database, envelope = Database(line.url), said("one", key="k")
    # from then on: the beginning of the transaction says READ COMMITTED
    handler = answering(kind, lambda: setattr(line, "lose", "the answer hangs"))
    with WorkerThreads(1, "test") as threads:

        async def deliver() -> Any:
            return await handle_once(
                database, threads, "listener", envelope, Said, handler, source="t"
            )

        with pytest.raises(CommitUnknown):
            await asyncio.wait_for(deliver(), PATIENCE)
        line.lose = None
        assert await deliver() == "repeat"
    await database.close()
    assert house.waiting() == ["sent"]
