"""A service in one object: what it refuses, how it runs, and what it never says."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy.exc import OperationalError

from outbox_saga import Event, HandlerContext, Service, SyncHandlerContext, UnitOfWork
from outbox_saga.brokers.contract import Accepted, Outcome, Refused
from outbox_saga.brokers.local import LocalPublisher
from outbox_saga.consuming import answer
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.errors import ConfigurationError, OutboxFull, PartEnded
from outbox_saga.testing.servers import Nats
from outbox_saga_relay import programs
from outbox_saga_relay.programs import load_service
from tests.fixtures.services import PrivateServer
from tests.relay.house import PATIENCE, House, Said, till

HERE = Path(__file__).parent


class Nowhere(Event):
    pass


@pytest.fixture
async def service(house: House) -> AsyncIterator[Service]:
    service = Service("shop", database=house.database, poll=0.01)
    yield service
    await service.close()


async def note(handle: HandlerContext[Said]) -> None:
    await handle.session.execute(sa.insert(till).values(note=handle.message.word))


# --- registration --------------------------------------------------------------------------------


def shop(**options: Any) -> Service:
    return Service("shop", **{"database": "sqlite:///never.db", **options})


def test_one_consumer_has_one_handler_for_a_message() -> None:
    service = shop()
    service.on(Said)(note)
    with pytest.raises(ConfigurationError, match=r"shop\.Said.*another name"):
        service.on(Said)(note)
    service.on(Said, consumer="second")(note)
    assert service.handlers.consumers() == {"shop.Said": ("talk",), "second": ("talk",)}


def test_a_handler_of_a_message_without_a_topic_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Nowhere has no topic"):
        shop().on(Nowhere)(note)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_only_one_connection_can_see_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="use a file"):
        _ = shop(database=url).database.engine


def test_neither_the_service_nor_its_errors_show_a_password() -> None:
    service = shop(
        database="postgresql://me:hushhush@127.0.0.1:1/x", broker="nats://me:hushhush@127.0.0.1:1"
    )
    service.on(Said)(note)
    for shown in (repr(service), repr(vars(service.database)), repr(service.publisher())):
        assert "hushhush" not in shown
    with pytest.raises(OperationalError) as refused:
        service.database.engine.connect()
    assert "hushhush" not in str(refused.value)


# --- running -------------------------------------------------------------------------------------


async def test_running_handles_what_is_committed_and_is_drained_at_the_end(
    house: House, service: Service
) -> None:
    handled = asyncio.Event()

    @service.on(Said)
    async def said(handle: HandlerContext[Said]) -> None:
        await note(handle)
        handled.set()

    async with service.running() as same:
        assert same is service
        async with service.unit_of_work() as uow:
            uow.publish(Said(word="hello"), key="k")
        await asyncio.wait_for(handled.wait(), PATIENCE)
    assert house.notes() == ["hello"]
    assert house.waiting() == []
    assert house.owners() == {None}


async def test_its_unit_of_work_takes_the_options_of_any_other(
    house: House, service: Service
) -> None:
    with service.unit_of_work(max_pending=1, commit_timeout=5.0) as uow:
        uow.publish(Said(word="a"))
    with pytest.raises(OutboxFull):
        async with service.unit_of_work(max_pending=1) as uow:
            uow.publish(Said(word="b"))
    with pytest.raises(ConfigurationError, match="commit_timeout"):
        service.unit_of_work(commit_timeout=0)
    assert house.waiting() == ["a"]


async def test_running_is_a_lifespan(house: House, service: Service) -> None:
    """What FastAPI and Starlette do with a lifespan: entered, state kept, left."""

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[dict[str, Service]]:
        async with service.running():
            yield {"outbox": service}

    for _ in range(2):  # and again, as under a reloader
        async with lifespan(object()) as state:
            assert state == {"outbox": service}


@pytest.mark.databases("sqlite")
async def test_an_error_in_the_block_is_raised_as_itself(house: House, service: Service) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with service.running():
            raise LookupError("mine")
    assert house.owners() == {None}


@pytest.mark.databases("sqlite")
async def test_a_part_that_fails_ends_the_block_and_is_raised_as_itself(
    house: House, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(stop: asyncio.Event) -> None:
        raise LookupError("a part")

    monkeypatch.setattr(service, "consume", broken)
    with pytest.raises(LookupError, match="a part"):
        async with service.running():
            await asyncio.wait_for(asyncio.Event().wait(), PATIENCE)
    with pytest.raises(LookupError, match="a part"):
        await asyncio.wait_for(service.run(asyncio.Event()), PATIENCE)
    assert house.owners() == {None}


@pytest.mark.databases("sqlite")
async def test_of_parts_that_fail_together_one_error_is_raised_and_the_others_are_told(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ready = asyncio.Event()

    async def broken(stop: asyncio.Event) -> None:
        await ready.wait()
        raise LookupError("the first")

    async def also_broken(stop: asyncio.Event) -> None:
        ready.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ArithmeticError("could not give its leases back")

    monkeypatch.setattr(service, "consume", broken)
    monkeypatch.setattr(service, "orchestrate", also_broken)
    with pytest.raises(LookupError, match="the first"):
        await asyncio.wait_for(service.run(asyncio.Event()), PATIENCE)
    told = [r.getMessage() for r in caplog.records if r.name == "outbox_saga.service"]
    assert told == ["another part failed as well (ArithmeticError)"]


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("how", ["returns", "is cancelled"])
async def test_a_part_that_ends_unasked_ends_the_service_and_is_told(
    how: str,
    house: House,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def gone(stop: asyncio.Event) -> None:
        if how == "is cancelled":
            raise asyncio.CancelledError

    monkeypatch.setattr(service, "consume", gone)
    with pytest.raises(PartEnded, match="before it was stopped"):
        await asyncio.wait_for(service.run(asyncio.Event()), PATIENCE)
    assert "before it was stopped" in caplog.text
    assert house.owners() == {None}


async def awaits_what_was_cancelled() -> None:
    other = asyncio.create_task(asyncio.Event().wait())
    other.cancel()
    await other


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.Event().wait()


async def exits() -> None:
    raise SystemExit(1)


ODD_ENDS = [awaits_what_was_cancelled, cancels_itself, exits]


@pytest.mark.parametrize("end", ODD_ENDS)
async def test_a_handler_that_ends_oddly_ends_nothing_but_its_own_delivery(
    end: Callable[[], Awaitable[None]], house: House, service: Service
) -> None:
    asked, handled = asyncio.Event(), asyncio.Event()

    @service.on(Said)
    async def said(handle: HandlerContext[Said]) -> None:
        if handle.message.word == "poison":
            asked.set()
            await end()
        await note(handle)
        handled.set()

    house.say("poison", key="a")
    async with service.running():
        await asyncio.wait_for(asked.wait(), PATIENCE)
        await asyncio.to_thread(house.say, "good", key="b")
        await asyncio.wait_for(handled.wait(), PATIENCE)
    assert house.notes() == ["good"]
    assert (house.waiting(), house.blocked()) == ([], [])
    assert [(row.key, row.error_code) for row in house.set_aside()] == [("a", "handler_failed")]


class Delivered:
    """A delivery that remembers what became of it."""

    attempt = 1
    topic = "talk"

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.headers = envelope.to_headers()
        self.body = envelope.body
        self.became: list[str] = []

    async def acknowledge(self) -> None:
        self.became.append("acknowledged")

    async def retry(self, delay: float) -> None:
        self.became.append("retried")

    async def reject(self, reason: str) -> None:
        self.became.append("rejected")


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("end", ODD_ENDS)
async def test_the_message_of_a_handler_that_ended_oddly_is_kept_and_acknowledged(
    end: Callable[[], Awaitable[None]], house: House, service: Service
) -> None:
    @service.on(Said)
    async def said(handle: HandlerContext[Said]) -> None:
        await end()

    delivery = Delivered(seal(Said(word="hello")))
    await answer(service.handling, "shop.Said", delivery)
    assert delivery.became == ["acknowledged"]
    assert [row.message_id for row in house.set_aside()] == [delivery.envelope.id]


async def test_on_the_local_broker_a_failing_handler_keeps_the_message_from_no_other(
    house: House, service: Service
) -> None:
    calls: list[str] = []

    @service.on(Said, consumer="first")
    async def first(handle: HandlerContext[Said]) -> None:
        calls.append("first")
        if calls.count("first") < 3:
            raise LookupError("not yet")

    @service.on(Said, consumer="second")
    async def second(handle: HandlerContext[Said]) -> None:
        calls.append("second")
        await note(handle)

    publisher, room = LocalPublisher(service.deliver), service.waiting_room()
    envelope = seal(Said(word="hello"))
    assert await publisher.publish([envelope]) == [Accepted()]
    assert house.notes() == ["hello"]
    for _ in range(3):
        house.advance(600)
        await room.run_once()
    assert calls == ["first", "second", "first", "first"]
    assert house.set_aside() == []


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_handler_that_hangs_takes_one_thread_however_often_its_message_comes(
    house: House,
) -> None:
    service = Service("shop", database=house.database, concurrency=2)
    entered, go = asyncio.Semaphore(0), threading.Event()
    loop = asyncio.get_running_loop()

    @service.on(Said)
    def said(handle: SyncHandlerContext[Said]) -> None:
        if handle.message.word == "poison":
            loop.call_soon_threadsafe(entered.release)
            go.wait(PATIENCE)
        handle.session.execute(sa.insert(till).values(note=handle.message.word))

    poison, good = seal(Said(word="poison")), seal(Said(word="good"))
    hasty = LocalPublisher(service.deliver, timeout=0.5)
    patient = LocalPublisher(service.deliver, timeout=PATIENCE)
    try:
        codes = [_code(outcome) for outcome in await hasty.publish([poison])]
        await asyncio.wait_for(entered.acquire(), PATIENCE)
        for _ in range(3):
            codes += [_code(outcome) for outcome in await patient.publish([poison])]
        assert codes == ["handler_timeout"] + ["handler_busy"] * 3
        assert [_code(outcome) for outcome in await patient.publish([good])] == [None]
        assert house.notes() == ["good"]
    finally:
        go.set()
        service._threads.shutdown()  # what hung has come to its end, late
    assert house.notes() == ["good", "poison"]
    again = Service("shop", database=house.database, concurrency=2)
    again.handlers = service.handlers  # the same process: nothing counts as running any more
    answers = await LocalPublisher(again.deliver).publish([poison])
    assert [_code(outcome) for outcome in answers] == [None]
    assert house.notes() == ["good", "poison"]
    await again.close()


def _code(outcome: Outcome) -> str | None:
    return outcome.error.code if isinstance(outcome, Refused) else None


@pytest.mark.databases("sqlite")
async def test_a_message_nobody_wants_is_accepted_and_its_type_is_told_once(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="outbox_saga.brokers.local")
    publisher = LocalPublisher(service.deliver)
    for _ in range(3):
        (outcome,) = await publisher.publish([seal(Said(word="hushhush"))])
        assert isinstance(outcome, Accepted)
    (told,) = (r for r in caplog.records if r.name == "outbox_saga.brokers.local")
    assert "Said" in told.getMessage()
    assert "hushhush" not in told.getMessage()


@pytest.mark.databases("sqlite")
async def test_on_the_local_broker_an_unreadable_message_is_a_dead_letter_of_its_consumer(
    house: House, service: Service
) -> None:
    service.on(Said)(note)
    bad = seal(Said(word="hello"))
    object.__setattr__(bad, "body", b'{"word": 7}')

    assert await LocalPublisher(service.deliver).publish([bad]) == [Accepted()]

    (row,) = house.set_aside()
    assert (row.until, row.error_code, row.body) == (None, "unreadable", b'{"word": 7}')


@pytest.mark.databases("sqlite")
async def test_what_can_be_neither_handled_nor_kept_stays_with_the_relay(
    house: House, service: Service
) -> None:
    @service.on(Said)
    async def said(handle: HandlerContext[Said]) -> None:
        raise LookupError

    publisher, envelope = LocalPublisher(service.deliver), seal(Said(word="hello"))
    with house.eyes.begin() as connection:
        connection.exec_driver_sql("alter table outbox_saga_inbox_waiting rename to away")
    try:
        (outcome,) = await publisher.publish([envelope])
    finally:
        with house.eyes.begin() as connection:
            connection.exec_driver_sql("alter table away rename to outbox_saga_inbox_waiting")
    assert isinstance(outcome, Refused)
    assert outcome.error.code == "handler_failed"


@pytest.mark.databases("sqlite")
async def test_no_log_record_shows_a_payload_or_what_a_handler_raised(
    house: House, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    asked = asyncio.Semaphore(0)

    @service.on(Said)
    async def said(handle: HandlerContext[Said]) -> None:
        asked.release()
        raise LookupError(f"cannot handle {handle.message.word}")

    async with service.running():
        house.say("hushhush", key="k")
        for _ in range(2):
            await asyncio.wait_for(asked.acquire(), PATIENCE)
    ours = [r for r in caplog.records if r.name.startswith("outbox_saga")]
    assert ours
    for record in ours:
        assert "hushhush" not in record.getMessage(), record
        assert record.exc_info is None, record


@pytest.mark.databases("sqlite")
async def test_a_consumer_waits_for_a_broker_that_is_away_at_the_start(
    house: House, private_server: PrivateServer
) -> None:
    server = private_server(Nats)
    server.kill()
    service = Service(
        "shop", database=house.database, broker=f"{server.url}?create=1&timeout=1", poll=0.01
    )
    handled = asyncio.Event()

    @service.on(Said)
    async def said(handle: HandlerContext[Said]) -> None:
        handled.set()

    async with service.running():
        house.say("hello")
        await asyncio.to_thread(server.start)
        await asyncio.wait_for(handled.wait(), PATIENCE)
    await service.close()


# --- as a program --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("shop", "module:attribute"),
        ("shop:", "module:attribute"),
        (":service", "module:attribute"),
        ("no_such_shop:service", "no module 'no_such_shop'"),
        ("outbox_saga.no_such:service", "no module 'outbox_saga.no_such'"),
        ("outbox_saga:nothing_here", "has no 'nothing_here'"),
        ("outbox_saga.ids:new_id", "not a Service"),
    ],
)
def test_a_service_that_cannot_be_loaded_is_told_clearly(reference: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        load_service(reference)


def test_the_environment_may_name_a_database_while_a_service_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[object] = []
    monkeypatch.setattr(programs, "load_service", lambda _: shop())
    monkeypatch.setattr(programs, "until_signalled", started.append)
    environment = {"OUTBOX_SAGA_DATABASE_URL": "sqlite:///x.db", "OUTBOX_SAGA_BROKER": "nats://x"}
    runner = CliRunner(env=environment)
    assert runner.invoke(programs.relay, ["shop:service"]).exit_code == 0
    assert len(started) == 1
    both = runner.invoke(programs.relay, ["shop:service", "--database-url", "sqlite:///y.db"])
    assert both.exit_code == 2
    assert "not both" in both.output


@pytest.mark.databases("sqlite", "postgres18")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_program_runs_a_service_until_it_is_told_to_stop(
    house: House, number: signal.Signals
) -> None:
    house.say("before", key="k")
    program = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "outbox_saga_relay", "run", "shop:service"],
        cwd=HERE,
        env={**os.environ, "SHOP_DATABASE": house.url, "OUTBOX_SAGA_DATABASE_URL": "sqlite:///x"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await asyncio.to_thread(house.until, lambda: house.notes() == ["before"], "the note")
        program.send_signal(number)
        said = (await asyncio.to_thread(program.communicate, timeout=PATIENCE))[1]
    finally:
        program.kill()
        program.communicate()
    assert program.returncode == 0, said
    assert house.owners() == {None}
    assert house.waiting() == []


class Silent(Event, topic="talk"):
    n: int = 0


class Deaf(Event, topic="talk"):
    n: int = 0


def _dead(house: House) -> list[Any]:
    return [row for row in house.set_aside() if row.until is None]


@pytest.mark.databases("postgres18")  # in SQLite its failure is stored when the thread ends
async def test_a_plain_handler_that_hangs_beyond_its_time_does_not_keep_the_program(
    house: House,
) -> None:
    with house.eyes.begin() as connection:
        UnitOfWork(connection).publish(Silent())
    program = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "outbox_saga_relay", "run", "shop:service"],
        cwd=HERE,
        env={**os.environ, "SHOP_DATABASE": house.url},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await asyncio.to_thread(house.until, lambda: _dead(house), "the dead letter")
        program.send_signal(signal.SIGTERM)
        said = (await asyncio.to_thread(program.communicate, timeout=PATIENCE))[1]
    finally:
        program.kill()
        program.communicate()
    assert program.returncode == 0, said
    assert "1 plain functions outlived their time" in said


@pytest.mark.databases("postgres18")
@pytest.mark.parametrize(
    ("number", "told"),
    [(0, "1 async functions went on"), (1, "threads of async functions went on")],
    ids=["swallows its cancellation", "waits for a thread that hangs"],
)
async def test_an_async_handler_that_cannot_be_ended_does_not_keep_the_program(
    house: House, number: int, told: str
) -> None:
    with house.eyes.begin() as connection:
        UnitOfWork(connection).publish(Deaf(n=number))
    program = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "outbox_saga_relay", "run", "shop:service"],
        cwd=HERE,
        env={**os.environ, "SHOP_DATABASE": house.url},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await asyncio.to_thread(house.until, lambda: _dead(house), "the dead letter")
        program.send_signal(signal.SIGTERM)
        said = (await asyncio.to_thread(program.communicate, timeout=PATIENCE))[1]
    finally:
        program.kill()
        program.communicate()
    assert program.returncode == 0, said
    assert told in said


@pytest.mark.databases("sqlite", "postgres18", "mariadb")
async def test_no_payload_is_in_the_most_talkative_log(house: House) -> None:
    house.say("hush-hush", key="hush-hush")
    program = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "outbox_saga_relay", "run", "shop:service", "--log-level", "debug"],
        cwd=HERE,
        env={**os.environ, "SHOP_DATABASE": house.url},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await asyncio.to_thread(house.until, lambda: house.notes() == ["hush-hush"], "the note")
        program.send_signal(signal.SIGTERM)
        said = (await asyncio.to_thread(program.communicate, timeout=PATIENCE))[1]
    finally:
        program.kill()
        program.communicate()
    assert [line for line in said.splitlines() if "hush-hush" in line] == []
    assert "outbox_saga" in said
