"""A database that stops answering: nobody waits for it for ever, and nothing is lost by it."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, cast
from uuid import uuid4

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import ConfigurationError, DatabaseSilent
from outbox_saga.testing.servers import DatabaseServer, MariaDB, Postgres18
from outbox_saga_relay import database_thread, listening
from outbox_saga_relay.cli import main
from outbox_saga_relay.database_thread import AFTER_CUT, HURRIED, LAST_TRY, DatabaseThread
from outbox_saga_relay.housekeeping import Housekeeping
from outbox_saga_relay.listening import Listener
from outbox_saga_relay.relay import Relay
from tests.fixtures.databases import Database as EmptyDatabase
from tests.fixtures.services import PrivateServer
from tests.relay.house import PATIENCE, House, prepare, word_of
from tests.relay.test_running import QUICK, Broker, running

DEADLINE = 0.7
ENDS = HURRIED + AFTER_CUT + LAST_TRY + AFTER_CUT  # what a stop may take, and then it tidies up
GRACE = 4.0  # for a busy machine, and for Python to end

servers = pytest.mark.parametrize("frozen", [Postgres18, MariaDB], indirect=True)


class Frozen:
    """A house on a server of this test's own, which can be stopped in the middle of anything."""

    def __init__(self, server: DatabaseServer) -> None:
        self.server = server
        self.threads: list[DatabaseThread] = []
        self.house = House(prepare(EmptyDatabase(server.name, server.create_database())))

    def database(self, **options: Any) -> Database:
        return self.house.another_database(**{"deadline": DEADLINE, **options})

    def relay(self, broker: Any, **options: Any) -> Relay:
        settings = {"lease": 3600.0, "poll": 0.05, "outage": QUICK, **options}
        database = self.database(deadline=settings.pop("deadline", DEADLINE))
        relay = Relay(database, broker, **settings)
        self.threads.append(relay.store.connection.thread)
        return relay

    async def close(self) -> None:
        """What was left behind has come back, and nothing of it is left."""
        self.server.resume()
        for thread in self.threads:
            thread.close(lambda: None)
            if thread._thread is not None:
                await asyncio.to_thread(thread._thread.join, PATIENCE)
        await self.house.close()
        self.house.eyes.dispose()

    async def until(self, condition: Callable[[], object], what: str) -> None:
        await asyncio.to_thread(self.house.until, condition, what)


@pytest.fixture
async def frozen(
    request: pytest.FixtureRequest, private_server: PrivateServer
) -> AsyncIterator[Frozen]:
    kind = cast("type[DatabaseServer]", request.param)
    server = private_server(kind)
    if server.source == "url":
        pytest.skip(f"{server.name} was given by URL")
    made = Frozen(server)
    yield made
    await made.close()


@servers
@pytest.mark.parametrize("end", ["resumed", "crashed"])
async def test_what_was_acknowledged_meanwhile_is_published_again_under_the_same_id(
    frozen: Frozen, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Envelope] = []

    class Noting(Broker):
        async def _one(self, index: int, envelope: Envelope, settled: Any) -> None:
            sent.append(envelope)
            await super()._one(index, envelope, settled)

    broker = Noting()
    (id_,) = frozen.house.say("secret-word", key="k")
    gate = broker.hold("secret-word")
    relay = frozen.relay(broker)
    async with running(relay):
        await broker.until("secret-word")
        frozen.server.pause()
        gate.set()
        await frozen.until(lambda: caplog.text.count("did not answer") >= 2, "it is given up")
        if end == "resumed":  # and does what it was told last, of which nobody hears
            frozen.server.resume()
        else:
            frozen.server.kill()
            frozen.server.start()
        await frozen.until(lambda: frozen.house.waiting() == [], "removed in the end")
        frozen.house.say("later", key="k")
        await broker.until("later")
        await frozen.until(lambda: frozen.house.waiting() == [], "and goes on")
    first = [envelope for envelope in sent if word_of(envelope) == "secret-word"]
    assert len(first) in ((1, 2) if end == "resumed" else (2,))
    assert {envelope.id for envelope in first} == {id_}
    assert [word_of(envelope) for envelope in sent][-1] == "later"
    assert "secret" not in caplog.text
    assert frozen.house.owners() == {None}


@servers
async def test_told_to_stop_it_ends_soon_though_nothing_answers(frozen: Frozen) -> None:
    broker = Broker()
    relay = frozen.relay(broker, deadline=1000.0)
    stop = asyncio.Event()
    frozen.house.say("a")
    running_ = asyncio.create_task(relay.run(stop))
    await broker.until("a")
    frozen.server.pause()
    began = time.monotonic()
    stop.set()
    await asyncio.wait_for(running_, ENDS + GRACE)
    assert time.monotonic() - began < ENDS + GRACE


def a_relay(frozen: Frozen, nats_url: str) -> Any:
    name = f"test{uuid4().hex[:12]}"
    return asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "outbox_saga_relay", "relay", "--database-url", frozen.house.url),
        *("--broker", f"{nats_url}?stream={name}&prefix={name}&create=1", "--inbox-window", "30d"),
        stderr=asyncio.subprocess.PIPE,
    )


@servers
async def test_a_process_told_to_stop_ends_though_the_database_stands_still(
    frozen: Frozen, nats_url: str
) -> None:
    """Its housekeeping, its LISTEN and its own statements: none keeps it."""
    frozen.house.say("a")
    process = await a_relay(frozen, nats_url)
    try:
        await frozen.until(lambda: frozen.house.waiting() == [], "it works")
        frozen.server.pause()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = await asyncio.wait_for(process.communicate(), ENDS + PATIENCE)
        took = time.monotonic() - began
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said.decode()
    assert took < ENDS + GRACE, said.decode()


@pytest.mark.parametrize("frozen", [Postgres18], indirect=True)
async def test_a_second_signal_ends_it_at_once_though_the_database_stands_still(
    frozen: Frozen, nats_url: str
) -> None:
    frozen.house.say("a")
    process = await a_relay(frozen, nats_url)
    assert process.stderr is not None
    try:
        await frozen.until(lambda: frozen.house.waiting() == [], "it works")
        frozen.server.pause()
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.stderr.readuntil(b"signal again"), PATIENCE)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 1
    assert time.monotonic() - began < HURRIED


@servers
async def test_housekeeping_gives_a_round_up_and_keeps_house_in_the_next_one(
    frozen: Frozen, caplog: pytest.LogCaptureFixture
) -> None:
    keeping = Housekeeping(frozen.database(), interval=0.05)
    frozen.threads.append(keeping._thread)
    await keeping.run_once()
    frozen.server.pause()
    with pytest.raises(DatabaseSilent):
        await keeping.run_once()
    stop = asyncio.Event()
    loop = asyncio.create_task(keeping.run(stop))
    await frozen.until(lambda: "housekeeping: the database did not answer" in caplog.text, "told")
    frozen.server.resume()
    began = time.monotonic()
    stop.set()
    await asyncio.wait_for(loop, PATIENCE)
    assert time.monotonic() - began < ENDS + GRACE
    await keeping.run_once()


@pytest.mark.needs_a_session("LISTENs")
@pytest.mark.parametrize("frozen", [Postgres18], indirect=True)
async def test_a_listener_that_is_not_answered_makes_another_connection(
    frozen: Frozen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listening, "HEARTBEAT", 0.05)
    monkeypatch.setattr(listening, "ANSWER", 0.5)
    heard = asyncio.Event()
    ear = Listener(sa.make_url(frozen.house.url), None, heard.set)
    task = asyncio.create_task(ear.run())
    await asyncio.wait_for(heard.wait(), PATIENCE)
    frozen.server.pause()
    await frozen.until(lambda: "cannot be told at once" in caplog.text, "it has noticed")
    heard.clear()
    frozen.server.resume()
    await asyncio.wait_for(heard.wait(), PATIENCE)
    assert ear.connections == 2
    frozen.server.pause()
    began = time.monotonic()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert time.monotonic() - began < GRACE


# --- what the server ends by itself --------------------------------------------------------------


@pytest.mark.needs_a_session("a session has limits, and through a pooler none is given any")
async def test_a_relay_that_waits_for_a_lock_stops_waiting_and_goes_on_later(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    database = house.another_database(deadline=2.0)
    relay = Relay(database, Broker(), lease=3.0, poll=0.05, outage=QUICK)
    lock = {
        "sqlite": "BEGIN IMMEDIATE",
        "mariadb": "select * from outbox_saga_partition_lease for update",
    }.get(house.name, "lock table outbox_saga_partition_lease in access exclusive mode")
    async with running(relay):
        await asyncio.to_thread(house.until, lambda: house.owners() != {None}, "it has begun")
        with house.eyes.connect() as holder:
            if house.name == "sqlite":
                holder.connection.dbapi_connection.isolation_level = None  # type: ignore[union-attr]
            holder.exec_driver_sql(lock)
            await asyncio.to_thread(
                house.until, lambda: "trouble with the database" in caplog.text, "it has given up"
            )
            holder.rollback()
        house.say("a")
        await asyncio.to_thread(house.until, lambda: house.waiting() == [], "and goes on")
    assert "did not answer" not in caplog.text  # the server, or the driver, was first to say no


@pytest.mark.needs_a_session("a session has limits, and through a pooler none is given any")
@pytest.mark.databases("postgres18", "mariadb")
async def test_only_the_sessions_of_programs_have_limits(house: House) -> None:
    database = house.another_database(deadline=5.0)
    asked = (
        "select current_setting('statement_timeout') || ' ' || current_setting('lock_timeout')"
        if house.name == "postgres18"
        else "select concat(round(@@max_statement_time), 's ', @@innodb_lock_wait_timeout, 's')"
    )

    def limits(engine: sa.Engine) -> str:
        with engine.connect() as connection:
            return str(connection.scalar(sa.text(asked)))

    assert limits(database.program_engine) == "4s 4s"
    assert limits(database.engine) in ("0 0", "0s 50s")


# --- the thread ----------------------------------------------------------------------------------


@pytest.fixture
def stuck() -> threading.Event:
    """For work that comes back when it is told to."""
    return threading.Event()


async def test_a_call_that_cannot_be_cut_is_left_behind_and_holds_up_those_after_it(
    stuck: threading.Event,
) -> None:
    cuts: list[float] = []
    thread = DatabaseThread("test", limit=0.05, cut=lambda: cuts.append(time.monotonic()))
    done: list[str] = []

    def waits() -> str:
        stuck.wait(PATIENCE)
        done.append("first")
        return "late"

    with pytest.raises(DatabaseSilent, match="did not answer within"):
        await thread.run(waits)
    assert len(cuts) == 1
    with pytest.raises(DatabaseSilent):  # never two at once
        await thread.run(lambda: done.append("second"))
    stuck.set()
    await thread.run(lambda: done.append("third"))
    assert done == ["first", "third"]
    thread.close(lambda: done.append("last"))
    assert done[-1] == "last"
    with pytest.raises(RuntimeError, match="was closed"):
        await thread.run(lambda: None)


async def test_a_call_whose_connection_is_cut_ends_with_why(stuck: threading.Event) -> None:
    thread = DatabaseThread("test", limit=0.05, cut=stuck.set)

    def waits() -> None:
        stuck.wait(PATIENCE)
        raise OSError("the line is cut")

    with pytest.raises(DatabaseSilent) as silent:
        await thread.run(waits)
    assert isinstance(silent.value.__cause__, OSError)
    with pytest.raises(TimeoutError):  # the work's own is passed on as it is
        await thread.run(_times_out)
    thread.close(lambda: None)


def _times_out() -> None:
    raise TimeoutError


async def test_who_is_asked_to_end_waits_for_seconds_and_then_for_less(
    stuck: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_thread, "AFTER_CUT", 0.01)
    monkeypatch.setattr(database_thread, "LAST_TRY", 0.02)
    thread = DatabaseThread("test", limit=3600.0, cut=lambda: None)
    call = asyncio.create_task(thread.run(lambda: stuck.wait(PATIENCE)))
    await asyncio.sleep(0)
    thread.hurry(0.3)
    with pytest.raises(DatabaseSilent):
        await asyncio.wait_for(call, PATIENCE)
    began = time.monotonic()
    with pytest.raises(DatabaseSilent):
        await thread.run(lambda: None)
    assert time.monotonic() - began < 0.3
    thread.hurry(None)
    stuck.set()
    assert await thread.run(lambda: "again") == "again"
    thread.close(lambda: None)


async def test_a_caller_that_is_cancelled_leaves_its_call_to_end_before_the_next(
    stuck: threading.Event,
) -> None:
    thread = DatabaseThread("test", limit=PATIENCE, cut=lambda: None)
    done: list[str] = []
    begun = threading.Event()

    def waits() -> None:
        begun.set()
        stuck.wait(PATIENCE)
        done.append("first")

    call = asyncio.create_task(thread.run(waits))
    await asyncio.to_thread(begun.wait, PATIENCE)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    stuck.set()
    await thread.run(lambda: done.append("second"))
    assert done == ["first", "second"]
    thread.close(lambda: None)


@pytest.mark.databases("sqlite")
async def test_what_a_call_that_was_left_behind_finds_is_not_believed(
    house: House, stuck: threading.Event
) -> None:
    """The lease it took is in its memory when nobody waits for it any more."""
    database = house.another_database(deadline=0.2)
    relay = Relay(database, Broker(), lease=3600.0)
    take = relay.store.lease._take

    def late(detail: Any) -> bool:
        stuck.wait(PATIENCE)
        return take(detail)

    relay.store.lease._take = late  # type: ignore[method-assign]
    house.say("a")
    with pytest.raises(DatabaseSilent):
        await relay.run_once()
    stuck.set()
    await asyncio.to_thread(house.until, lambda: relay.store.lease.epochs, "the late one has it")
    assert not relay._turns.owns_any
    relay.store.lease._take = take  # type: ignore[method-assign]
    database.deadline = PATIENCE
    assert await relay.run_once() == 1
    assert house.waiting() == []
    relay.store.connection.close()


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("deadline", [0, -1, float("inf"), float("nan")])
def test_a_deadline_that_cannot_be_meant_is_refused(deadline: float) -> None:
    with pytest.raises(ConfigurationError, match="deadline is"):
        Database("sqlite:///x", deadline=deadline)


def test_a_deadline_beside_a_service_is_refused() -> None:
    done = CliRunner().invoke(main, ["relay", "shop:service", "--deadline", "3"])
    assert done.exit_code == 2
    assert "deadline" in done.output
