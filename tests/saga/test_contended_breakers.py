"""Breakers that several transactions want at the same moment."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga import Service
from outbox_saga.breaker import Breaker, Stand
from outbox_saga.queries import breakers as rows
from outbox_saga.queries import transition
from outbox_saga.queries.clock import Clock
from outbox_saga.saga.breaking import note_outcome
from outbox_saga.saga.happened import Done, Errored, Happened
from outbox_saga.testing.interleaving import Play, Run, explore, replay
from tests.fixtures.databases import Database
from tests.saga.test_breakers import Payer

SERVERS = ("postgres18", "postgres15", "mariadb")  # SQLite has one writer
AJAR = 70.0  # seconds after which a breaker that has opened lets one call through


@pytest.fixture
def payer(database: Database) -> Payer:
    return Payer(database.url)


@pytest.fixture
def service(payer: Payer) -> Iterator[Service]:
    service = payer.later(AJAR)
    yield service
    service.database.dispose()


def opened(service: Service, *names: str, ago: float = AJAR) -> Stand:
    """They opened so many seconds ago; how the last one stands."""
    tables, clock = service.database.tables, Clock(service.database.clock.shift - ago)
    stand = None
    for name in names:
        with service.database.begin() as connection:
            closed = rows.lock(connection, tables, clock, name)
            stand = closed.failed(Breaker(name, failures=1, seconds=60.0))
            rows.note(connection, tables, clock, stand)
    assert stand is not None
    return stand


def take(connection: sa.Connection, service: Service, name: str) -> bool:
    database = service.database
    return rows.take_probe(connection, database.tables, database.clock, name, 30.0)


@pytest.mark.databases(*SERVERS)
async def test_a_probe_that_was_taken_is_sent_though_the_instance_had_moved(
    payer: Payer, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event, an answer, a person or a parallel branch moved it: it is decided again."""
    (id_,) = await payer.start()
    opened(service, "psp")
    saga, moves = service.database.tables.saga, [1]
    original = transition.record

    def moved_meanwhile(*args: Any, **kwargs: Any) -> bool:
        if moves:
            moves.pop()
            with service.database.begin() as another:
                another.execute(
                    sa.update(saga).where(saga.c.id == id_).values(revision=saga.c.revision + 1)
                )
        return original(*args, **kwargs)

    monkeypatch.setattr(transition, "record", moved_meanwhile)
    assert await payer.carry_on(after=AJAR) == 1
    assert await payer.state(id_) == "completed"
    assert (await payer.stand(after=AJAR)).state == "closed"


@pytest.mark.parametrize("said", ["that it failed", "that it was done"])
def test_a_call_from_before_it_opened_leaves_the_probe_that_is_on_its_way_alone(
    payer: Payer, service: Service, said: str
) -> None:
    before = opened(service, "psp")
    assert before.opened_at is not None
    began = before.opened_at - dt.timedelta(seconds=1)
    happened: Happened = (
        Errored("pay", "do", 1, "no answer", unknown=True, started_at=began)
        if said == "that it failed"
        else Done("pay", "do", 1, None, began)
    )
    database = service.database
    with database.begin() as connection:
        assert take(connection, service, "psp")
        (probing,) = rows.read(connection, database.tables, database.clock)
        note_outcome(connection, database.tables, database.clock, payer.saga, happened)
        (after,) = rows.read(connection, database.tables, database.clock)
        assert (after.state, after.probe_until) == ("half-open", probing.probe_until)
        assert not take(connection, service, "psp")


@pytest.mark.databases(*SERVERS)
def test_two_that_want_the_probe_of_each_others_breaker_do_not_wait_in_a_circle(
    service: Service,
) -> None:
    database = service.database

    def one(has: str, wants: str) -> Callable[[], None]:
        def act() -> None:
            with database.begin() as connection:
                rows.lock(connection, database.tables, database.clock, has)
                take(connection, service, wants)

        return act

    def play() -> Play:
        with database.begin() as connection:
            connection.execute(sa.delete(database.tables.breaker))
        opened(service, "a", "b")
        return Play({"one": one("a", "b"), "other": one("b", "a")}, _no_error)

    found = explore(play, [database.engine])
    assert not found.problems, found.problems[0].report()
    assert found.exhausted


@pytest.mark.databases(*SERVERS)
def test_first_failures_at_the_same_moment_do_not_wait_in_a_circle(service: Service) -> None:
    database = service.database

    def fail() -> None:
        with database.begin() as connection:
            rows.lock(connection, database.tables, database.clock, "psp")

    def play() -> Play:
        with database.begin() as connection:
            connection.execute(sa.delete(database.tables.breaker))
        return Play({"one": fail, "another": fail, "third": fail}, _no_error)

    looks = "one another third"
    run = replay(play, [database.engine], f"{looks} {looks}")  # and then whoever can
    assert run.problem is None, run.report()


def _no_error(run: Run) -> str | None:
    return repr(run.errors) if run.errors else None


@pytest.mark.databases("sqlite", *SERVERS)
def test_trouble_of_this_process_says_nothing_of_the_other_side(
    payer: Payer, service: Service
) -> None:
    database = service.database
    told = Errored("pay", "do", 1, "NoThread: all threads are taken", asked=False)
    with database.begin() as connection:
        for _ in range(5):
            found = note_outcome(connection, database.tables, database.clock, payer.saga, told)
            assert found is None
        assert rows.read(connection, database.tables, database.clock) == []


@pytest.mark.databases("sqlite")
async def test_data_that_does_not_load_does_not_open_a_breaker(payer: Payer) -> None:
    ids = await payer.start(3)
    service = payer.later(0)
    saga = service.database.tables.saga
    with service.database.begin() as connection:
        connection.execute(sa.update(saga).values(data='{"receipt": 7}'))
    await payer.carry_on()
    stands = await payer.look(0, rows.read, service.database.clock)
    assert (stands, payer.calls) == ([], [])
    assert [await payer.state(id_) for id_ in ids] == ["running"] * 3  # they are tried again
    service.database.dispose()
