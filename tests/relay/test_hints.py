"""A relay that looks once in an hour publishes at once, because it is told."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga import hints
from outbox_saga.database import Database
from outbox_saga.errors import ConfigurationError
from outbox_saga.hints import wake_relays
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga_relay.listening import Listener
from tests.doctor.between import something_between
from tests.relay.house import House, Said
from tests.relay.test_running import Broker, running, until

HOUR = 3600.0


@pytest.fixture
def broker() -> Broker:
    return Broker()


async def look_once(house: House, broker: Broker) -> None:
    """The relay has published something, and what follows is left to hints."""
    house.say("first")
    await broker.until("first")
    await until(house, lambda: house.waiting() == [], "removed")


def publish(engine: sa.Engine, word: str) -> None:
    with engine.begin() as connection:
        UnitOfWork(connection).publish(Said(word=word))


async def test_a_commit_of_the_same_process_is_told_directly(house: House, broker: Broker) -> None:
    told = house.another_database()
    relay = house.relay(broker, poll=HOUR, listen=False)
    async with running(relay):
        await look_once(house, broker)
        await until(house, lambda: relay._wake.is_set() is False, "nothing to do")
        publish(told.engine, "second")
        await broker.until("second")
        async with told.async_engine.begin() as connection:
            UnitOfWork(connection).publish(Said(word="third"))
        await broker.until("third")


async def test_an_engine_of_the_users_own_wakes_relays_once_it_is_told_to(
    house: House, broker: Broker
) -> None:
    engine = sa.create_engine(house.url, poolclass=sa.NullPool)
    wake_relays(engine)
    async with running(house.relay(broker, poll=HOUR, listen=False)):
        await look_once(house, broker)
        publish(engine, "second")
        await broker.until("second")
    engine.dispose()


@pytest.mark.needs_a_session("LISTENs, or looks for its session by what it says")
@pytest.mark.databases("postgres18", "postgres15")
async def test_a_commit_of_another_process_is_told_by_notify(house: House, broker: Broker) -> None:
    async with running(house.relay(broker, poll=HOUR)):
        await look_once(house, broker)
        house.say("second")  # by an engine that wakes nobody
        with house.eyes.begin() as connection:
            connection.exec_driver_sql("NOTIFY outbox_saga")
        await broker.until("second")


@pytest.mark.needs_a_session("LISTENs, or looks for its session by what it says")
@pytest.mark.databases("postgres18", "postgres15")
async def test_our_own_engines_send_the_notify_that_others_hear(house: House) -> None:
    heard = asyncio.get_running_loop().create_future()

    def listen() -> None:
        with house.eyes.connect() as connection:
            raw: Any = connection.connection.driver_connection
            raw.rollback()
            raw.autocommit = True
            raw.execute("LISTEN outbox_saga")
            loop.call_soon_threadsafe(ready.set)
            for notify in raw.notifies(timeout=20, stop_after=1):
                loop.call_soon_threadsafe(heard.set_result, notify.payload)

    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    listening = loop.run_in_executor(None, listen)
    await asyncio.wait_for(ready.wait(), 20)
    publish(house.another_database().engine, "told")
    assert await asyncio.wait_for(heard, 20) == ""
    await listening


@pytest.mark.needs_a_session("LISTENs, or looks for its session by what it says")
@pytest.mark.databases("postgres18")
async def test_a_listener_that_was_cut_off_listens_again_and_looks_for_what_it_missed(
    house: House, broker: Broker
) -> None:
    def listeners() -> list[int]:
        with house.eyes.connect() as connection:
            question = (
                "select pid from pg_stat_activity where query like 'LISTEN%' and "
                "datname = current_database() and pid <> pg_backend_pid()"
            )
            return list(connection.scalars(sa.text(question)))

    async with running(house.relay(broker, poll=HOUR)):
        await look_once(house, broker)
        await until(house, lambda: len(listeners()) == 1, "it listens")
        (old,) = listeners()
        with house.eyes.begin() as connection:
            connection.execute(sa.select(sa.func.pg_terminate_backend(old)))
        house.say("missed")
        await broker.until("missed")
        await until(house, lambda: listeners() not in ([], [old]), "it listens again")


@pytest.mark.databases("postgres18", "postgres15")
async def test_a_process_that_publishes_to_a_database_without_relays_goes_on(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection for hints cannot be made: a warning, and the commit stands."""
    engine = sa.create_engine(house.url, poolclass=sa.NullPool)
    wake_relays(engine, url=sa.make_url(house.url).set(port=1))
    publish(engine, "kept")
    publish(engine, "kept too")
    assert house.waiting() == ["kept", "kept too"]
    await until(house, lambda: "relays cannot be told" in caplog.text, "a warning")
    assert "secret" not in caplog.text
    engine.dispose()


@pytest.mark.parametrize("kind", ["sqlite:///x.db", "mysql+pymysql://h/d"])
def test_a_url_for_hints_is_refused_where_no_database_sends_them(kind: str) -> None:
    engine = sa.create_engine(kind)
    with pytest.raises(ConfigurationError, match="only PostgreSQL has NOTIFY"):
        wake_relays(engine, url=kind)
    with pytest.raises(ConfigurationError, match="only PostgreSQL has NOTIFY"):
        wake_relays(engine, url="postgresql://h/d")
    wake_relays(engine)
    engine.dispose()


async def test_a_rolled_back_transaction_tells_nobody(house: House) -> None:
    told: list[str] = []
    database = Database(house.url)
    heard: Callable[[], None] = lambda: told.append("!")  # noqa: E731
    from outbox_saga.hints import listening

    with listening(database.url, None, heard):
        with database.engine.connect() as connection:
            transaction = connection.begin()
            UnitOfWork(connection).publish(Said(word="never"))
            transaction.rollback()
        assert told == []
        publish(database.engine, "said")
        assert told == ["!"]
    publish(database.engine, "said again")
    assert told == ["!"]
    database.engine.dispose()


def hint_threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name == "outbox-saga-hints"}


def hints_sent_by(house: House) -> set[int]:
    """The connections on which the last thing that happened was a NOTIFY."""
    with house.eyes.connect() as connection:
        question = (
            "select pid from pg_stat_activity where query like '%pg_notify(%' and "
            "datname = current_database() and pid <> pg_backend_pid()"
        )
        return set(connection.scalars(sa.text(question)))


@pytest.mark.needs_a_session("LISTENs, or looks for its session by what it says")
@pytest.mark.databases("postgres18")
async def test_a_database_that_is_closed_leaves_no_connection_for_hints_behind(
    house: House,
) -> None:
    database, threads, connections = Database(house.url), hint_threads(), hints_sent_by(house)
    for word in ("before", "and after it was closed"):
        publish(database.engine, word)
        await until(house, lambda: hints_sent_by(house) - connections, "a hint")
        await database.close()
        await until(house, lambda: hints_sent_by(house) <= connections, "no connection")
        assert hint_threads() <= threads


@pytest.mark.needs_a_session("LISTENs, or looks for its session by what it says")
@pytest.mark.databases("postgres18")
async def test_an_engine_that_is_forgotten_leaves_no_connection_for_hints_behind(
    house: House,
) -> None:
    threads, connections = hint_threads(), hints_sent_by(house)
    engine = sa.create_engine(house.url, poolclass=sa.NullPool)
    wake_relays(engine)
    publish(engine, "before")
    await until(house, lambda: hints_sent_by(house) - connections, "a hint")
    del engine
    gc.collect()
    await until(house, lambda: hints_sent_by(house) <= connections, "no connection")
    await until(house, lambda: hint_threads() <= threads, "no thread")


@pytest.mark.databases("postgres18")
async def test_commits_in_the_pause_after_a_hint_do_not_wake_its_thread_and_are_told_after_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "EVERY", HOUR)
    sent: queue.SimpleQueue[set[str | None]] = queue.SimpleQueue()
    monkeypatch.setattr(hints.Sender, "_send", lambda *given: sent.put(given[2]))
    sender = hints.Sender(sa.make_url(house.url))
    sender.committed(None)
    assert sent.get(timeout=20) == {None}
    woken: list[int] = []
    with monkeypatch.context() as watching:
        watching.setattr(sender._ready, "notify_all", lambda: woken.append(1))
        for _ in range(3):
            sender.committed(None)
    assert woken == []
    sender.rest()
    assert sent.get(timeout=20) == {None}


@pytest.mark.databases("postgres18")
async def test_a_hint_waits_for_no_disk(house: House) -> None:
    """Its transaction alone: the session may be a pooler's, and another client's next."""
    database = Database(house.url)
    with database.engine.connect() as connection:
        connection.exec_driver_sql(hints._NOTIFY.format("nobody"))
        assert connection.scalar(sa.text("show synchronous_commit")) == "off"
        connection.rollback()
        assert connection.scalar(sa.text("show synchronous_commit")) == "on"
    database.engine.dispose()


@pytest.mark.databases("postgres18")
async def test_what_was_committed_just_before_the_end_is_told_all_the_same(house: House) -> None:
    database, broker = Database(house.url), Broker()
    async with running(house.relay(broker, poll=HOUR)):
        await look_once(house, broker)
        for word in range(10):  # most of them within the pause after the one before
            publish(database.engine, str(word))
            await database.close()
            await broker.until(str(word))


@pytest.mark.needs_a_session("LISTENs, or looks for its session by what it says")
@pytest.mark.databases("postgres18")
async def test_a_listener_that_is_cancelled_before_it_listens_leaves_no_connection(
    house: House,
) -> None:
    server = sa.make_url(house.url)
    assert server.port is not None
    loop, asked, answered = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    ready = [False]

    def hold_the_answer_to_listen(piece: bytes) -> bytes:
        if ready[0]:
            loop.call_soon_threadsafe(asked.set)
            answered.wait(20)
        ready[0] = ready[0] or piece.endswith(b"I")  # ReadyForQuery, idle
        return piece

    with something_between("127.0.0.1", server.port, hold_the_answer_to_listen) as port:
        url = server.set(port=port).update_query_dict({"sslmode": "disable"})
        task = asyncio.create_task(Listener(url, None, lambda: None).run())
        await asyncio.wait_for(asked.wait(), 20)
        task.cancel()
        loop.call_soon(answered.set)
        await asyncio.gather(task, return_exceptions=True)
    gc.collect()  # a connection that is lost is told of by a warning, and a warning is an error


@pytest.mark.needs_a_session("LISTENs, or looks for its session by what it says")
@pytest.mark.databases("postgres18", "postgres15")
@pytest.mark.parametrize(
    "schema", ["s" * 63, "o'neil", 'the "shop"', "lager_f\u00fc" + "\u00e4" * 25]
)
async def test_a_schema_of_any_name_has_hints_as_well(house: House, schema: str) -> None:
    assert hints.channel(schema) != hints.channel(f"{schema[:-1]}t")  # one letter is another one
    database = house.another_database()
    heard = asyncio.Event()
    listener = Listener(database.url, schema, heard.set)
    ear = asyncio.create_task(listener.run())
    try:
        await asyncio.wait_for(heard.wait(), 20)  # it listens
        heard.clear()
        sender = hints.Sender(database.url)
        sender.committed(schema)
        await asyncio.wait_for(heard.wait(), 20)
        sender.rest()
    finally:
        ear.cancel()
        await asyncio.gather(ear, return_exceptions=True)
