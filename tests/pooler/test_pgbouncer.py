"""Everything works where each transaction may be on another session of the server."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError

from outbox_saga import Failure, HandlerContext, Result, Saga, Service, StepContext, Success
from outbox_saga.database import Database
from outbox_saga.envelopes import seal
from outbox_saga.hints import wake_relays
from outbox_saga.testing.servers import PgBouncer
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga_relay.cli import main
from outbox_saga_relay.doctor import examine_database
from outbox_saga_relay.relay import Relay
from tests.pooler.conftest import SHARED
from tests.relay.house import PATIENCE, House, Recorder, Said, till
from tests.relay.test_running import Broker, running, until

pytestmark = [
    pytest.mark.databases("postgres18"),
    pytest.mark.needs_a_session("puts a pooler before the server itself"),
]

HOUR = 3600.0
KEYS = 4


def counted(connection: sa.Connection, key: str) -> int:
    """The next number of this key; numbers are in the order of commits, since the row is locked
    until then."""
    statement = sa.text("update counter set n = n + 1 where key = :key returning n")
    return int(connection.execute(statement, {"key": key}).scalar_one())


@pytest.fixture
def counter(house: House) -> None:
    with house.eyes.begin() as connection:
        connection.exec_driver_sql("create table if not exists counter (key text, n integer)")
        connection.exec_driver_sql("truncate counter")
        for key in range(KEYS):
            connection.exec_driver_sql(f"insert into counter values ('k{key}', 0)")


async def publish_at_once(database: Database, *, writers: int, each: int) -> None:
    """Sync and async writers beside each other; each transaction one message of one key."""

    def sync(writer: int) -> None:
        for n in range(each):
            with database.begin() as connection:
                key = f"k{(writer + n) % KEYS}"
                number = counted(connection, key)
                UnitOfWork(connection).publish(Said(word=f"{key}:{number}"), key=key)

    async def asynchronous(writer: int) -> None:
        for n in range(each):
            async with database.async_begin() as connection:
                key = f"k{(writer + n) % KEYS}"
                number = await connection.run_sync(counted, key)
                UnitOfWork(connection).publish(Said(word=f"{key}:{number}"), key=key)

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(writers) as threads:
        await asyncio.gather(
            *(loop.run_in_executor(threads, sync, writer) for writer in range(writers)),
            *(asynchronous(writer) for writer in range(writers)),
        )


def numbers_by_key(words: list[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for word in words:
        key, _, number = word.partition(":")
        found[key].append(int(number))
    return found


async def test_its_clients_share_a_few_sessions_of_the_server(
    house: House, pooled: Database
) -> None:
    together = threading.Barrier(8)

    def session() -> int:
        with pooled.engine.connect() as connection:
            together.wait(PATIENCE)
            return int(connection.scalar(sa.text("select pg_backend_pid()")) or 0)

    with ThreadPoolExecutor(8) as threads:
        sessions = {s.result() for s in [threads.submit(session) for _ in range(8)]}
    # those that stood at the barrier had begun nothing, so a session served several of them
    assert 1 <= len(sessions) <= SHARED


async def test_many_publish_at_once_and_a_relay_sends_all_of_it_in_order(
    house: House, pooled: Database, counter: None
) -> None:
    broker = Recorder()
    relay = Relay(pooled, broker)
    async with running(relay):
        await publish_at_once(pooled, writers=6, each=20)
        await until(house, lambda: house.waiting() == [], "all of it is sent")
    assert {key: len(found) for key, found in numbers_by_key(broker.words).items()} == {
        f"k{key}": 60 for key in range(KEYS)
    }
    for key, found in numbers_by_key(broker.words).items():
        assert found == list(range(1, 61)), key


@pytest.mark.parametrize("said", [True, False])
async def test_a_relay_leaves_no_limit_of_its_own_in_the_sessions_it_shares(
    house: House, pooler: PgBouncer, said: bool
) -> None:
    """Not even where nobody has said that there is a pooler."""
    database = Database(pooler.through(house.url), clock=house.clock, pooler=said)
    with house.eyes.connect() as connection:
        default = connection.scalar(sa.text("select current_setting('statement_timeout')"))
    house.say("a", "b", key="k")
    relay = Relay(database, Recorder(), listen=False)
    assert await relay.run_once() == 2
    together = threading.Barrier(SHARED)

    def limit() -> tuple[str, int]:
        with database.engine.begin() as connection:
            asked = "select current_setting('statement_timeout'), pg_backend_pid()"
            found = connection.exec_driver_sql(asked).one()
            together.wait(PATIENCE)  # so that each has a session of its own
            return found[0], found[1]

    with ThreadPoolExecutor(SHARED) as threads:
        found = [one.result() for one in [threads.submit(limit) for _ in range(SHARED)]]
    assert len({session for _, session in found}) == SHARED
    assert {limit for limit, _ in found} == {default}
    await relay.store.lease.release()
    relay.store.connection.close()
    await database.close()


async def test_a_relay_is_told_past_the_pooler_of_a_commit_that_came_through_it(
    house: House, pooler: PgBouncer, pooled: Database
) -> None:
    """The NOTIFY itself goes through the pooler; only whoever LISTENs needs a session."""
    broker = Broker()
    engine = sa.create_engine(
        pooler.through(house.url), poolclass=sa.NullPool, connect_args={"prepare_threshold": None}
    )
    elsewhere = sa.make_url(pooler.through(house.url)).set(host="localhost")
    wake_relays(engine, url=elsewhere)  # by another name, so that nothing is told in the process
    relay = Relay(pooled, broker, poll=HOUR, lease=3 * HOUR)
    async with running(relay):
        house.say("first")
        await broker.until("first")
        await until(house, lambda: house.waiting() == [], "removed")
        for n in range(12):  # more often than a driver waits before it prepares
            with engine.begin() as connection:
                UnitOfWork(connection).publish(Said(word=f"{n}"))
            await broker.until(n)
    engine.dispose()


async def test_a_relay_without_a_way_past_the_pooler_says_so_and_polls(
    house: House, pooler: PgBouncer, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(pooler.through(house.url), clock=house.clock, pooler=True)
    broker = Broker()
    async with running(Relay(database, broker, poll=0.05)):
        house.say("hello")
        await broker.until("hello")
        await until(house, lambda: house.waiting() == [], "removed")
    assert caplog.text.count("through a pooler LISTEN hears nothing") == 1
    await database.close()


class Cart(BaseModel):
    name: str
    ends_well: bool


async def reserve(step: StepContext[Cart]) -> Result[dict[str, Any], str]:
    await step.session.execute(sa.insert(till).values(note=f"reserved {step.data.name}"))
    return Success({})


async def release(step: StepContext[Cart]) -> None:
    await step.session.execute(sa.insert(till).values(note=f"released {step.data.name}"))


async def charge(step: StepContext[Cart]) -> Result[dict[str, Any], str]:
    if not step.data.ends_well:
        return Failure("no money")
    await step.session.execute(sa.insert(till).values(note=f"charged {step.data.name}"))
    return Success({})


async def refund(step: StepContext[Cart]) -> None:
    await step.session.execute(sa.insert(till).values(note=f"refunded {step.data.name}"))


buy = (
    Saga("buy", data=Cart)
    .step("reserve", reserve, compensation=release)
    .step("charge", charge, compensation=refund)
)


async def test_handlers_act_once_and_sagas_end_as_they_should(
    house: House, pooled: Database
) -> None:
    service = Service("shop", database=pooled, sagas=[buy], poll=0.05, concurrency=2)

    @service.on(Said)
    async def said(handle: HandlerContext[Said]) -> None:
        await handle.session.execute(sa.insert(till).values(note=handle.message.word))

    async with service.running():
        async with service.unit_of_work() as uow:
            for n in range(20):
                uow.publish(Said(word=f"word {n}"), key=f"k{n % 3}")
            for n in range(5):
                buy.start(uow, Cart(name=f"good {n}", ends_well=True))
                buy.start(uow, Cart(name=f"bad {n}", ends_well=False))
        twice = seal(Said(word="twice"), source="elsewhere")
        await asyncio.gather(*(service.deliver(twice) for _ in range(6)))

        def ended() -> bool:
            states = [row.state for row in house.rows(house.tables.saga)]
            done = states.count("completed") == states.count("compensated") == 5
            return done and len(house.inbox()) == 21

        await until(house, ended, "everything has ended")
    notes = sorted(house.notes())
    assert notes == sorted(
        [f"word {n}" for n in range(20)]
        + ["twice"]
        + [f"{what} good {n}" for n in range(5) for what in ("reserved", "charged")]
        + [f"{what} bad {n}" for n in range(5) for what in ("reserved", "released")]
    )
    await service.close()


async def test_the_tables_are_made_checked_and_taken_away_through_it(
    pooler: PgBouncer, house: House, fresh_database: Any
) -> None:
    empty = pooler.through(fresh_database("postgres18").url) + "?pooler=true"
    # two at once, and others who use the same sessions
    with ThreadPoolExecutor(3) as threads:
        results = [
            threads.submit(CliRunner().invoke, main, ["db", "upgrade", "-d", empty])
            for _ in range(3)
        ]
        assert [r.result().exit_code for r in results] == [0, 0, 0], [r.result() for r in results]
    for command in (["check"], ["current"], ["downgrade", "--yes"], ["upgrade"], ["check"]):
        done = CliRunner().invoke(main, ["db", *command, "-d", empty])
        assert done.exit_code == 0, (command, done.output)


async def test_doctor_sees_it_and_does_not_warn_whoever_has_said_so(
    house: House, pooler: PgBouncer, pooled: Database
) -> None:
    told = [f for f in examine_database(pooled).findings if f.check == "postgresql.pooler"]
    assert [finding.level for finding in told] == ["info"]
    unsaid = Database(pooler.through(house.url))
    told = [f for f in examine_database(unsaid).findings if f.check == "postgresql.pooler"]
    assert [finding.level for finding in told] == ["warning"]
    unsaid.engine.dispose()


@pytest.mark.parametrize("pooler", [0], indirect=True)
async def test_who_does_not_say_that_there_is_a_pooler_fails_where_it_knows_no_statement(
    house: House, pooler: PgBouncer
) -> None:
    unsaid = Database(pooler.through(house.url))

    def publish_in_turn() -> None:
        with unsaid.engine.connect() as one, unsaid.engine.connect() as other:
            for n in range(20):  # psycopg prepares what it has sent five times
                for connection in (one, other):
                    with connection.begin():
                        UnitOfWork(connection).publish(Said(word=str(n)))

    with pytest.raises(DBAPIError, match="prepared statement"):
        publish_in_turn()
    await unsaid.close()
