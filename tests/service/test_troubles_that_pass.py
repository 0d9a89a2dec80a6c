"""What another moment mends ends no program, as real servers say it; what a person must, does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import sqlalchemy as sa
from pydantic import BaseModel
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from outbox_saga import Event, HandlerContext, Retry, Saga, Service, StepContext, nothing_to_undo
from outbox_saga.brokers import Subscription
from outbox_saga.consuming import consume
from outbox_saga.ids import new_id
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.dialects import is_transient, leaves_commit_open
from outbox_saga.queries.passing import is_read_only, passes
from outbox_saga.queries.schema import require_tables
from outbox_saga.testing.servers import MariaDB
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database
from tests.fixtures.services import PrivateServer
from tests.relay.house import PATIENCE

OFTEN = Retry(max_attempts=1_000_000, initial=0.05, max_delay=0.1)
RELAY = "trouble with the database"
ORCHESTRATOR = "did not let us claim"
WAITING_ROOM = "waiting messages were not leased"


class Said(Event, topic="talk"):
    word: str


class Order(BaseModel):
    number: int


class World:
    """A database of this test's own, and a service on it that has something to do all the time."""

    def __init__(self, owner_url: str, url: str) -> None:
        self.owner = sa.create_engine(owner_url, poolclass=sa.NullPool)
        self.name = cast("str", self.owner.url.database)
        with self.owner.begin() as connection:
            upgrade(connection)
        self.url = url
        self.clock = Clock()
        self.failing = True
        self.handled: list[str] = []
        self.completed: list[int] = []

    def advance(self, seconds: float) -> None:
        """What could not be given back waits no longer for the end of its lease."""
        object.__setattr__(self.clock, "shift", self.clock.shift + seconds)

    def execute(self, statement: str) -> None:
        with self.owner.connect() as connection:
            if connection.dialect.name == "postgresql":  # our own session may be read-only
                connection.exec_driver_sql("set transaction read write")
            connection.exec_driver_sql(statement)
            connection.commit()

    def cut(self) -> None:
        """Who is connected has to connect again."""
        self.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )

    def service(self, broker: str) -> tuple[Service, Saga[Order]]:
        async def act(step: StepContext[Order]) -> None:
            if self.failing:
                raise LookupError
            self.completed.append(step.data.number)

        saga = Saga("order", data=Order).step(
            "act", act, compensation=nothing_to_undo, retry=OFTEN, timeout=1
        )
        service = Service(
            "shop",
            database=self.url,
            broker=broker,
            sagas=[saga],
            clock=self.clock,
            poll=0.02,
            lease=2.0,
        )

        @service.on(Said, retry=OFTEN)
        async def said(handle: HandlerContext[Said]) -> None:
            if self.failing:
                raise LookupError
            self.handled.append(handle.message.word)

        return service, saga


async def until(condition: Callable[[], object], what: str) -> None:
    """Returns once it holds: for what a program or a server does unasked."""

    def wait() -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"never came: {what}"
            time.sleep(0.01)

    await asyncio.to_thread(wait)


async def goes_on(
    world: World,
    broker: str,
    caplog: pytest.LogCaptureFixture,
    trouble: Any,
    told_by: tuple[str, ...],
    **options: Any,
) -> None:
    """All programs in one process; each tells of the trouble, and works when it is over."""
    service, saga = world.service(broker)
    async with service.unit_of_work() as uow:
        uow.publish(Said(word="one"))
        saga.start(uow, Order(number=1), business_key="one")
    stop = asyncio.Event()
    running = asyncio.create_task(service.run(stop))

    def waits() -> bool:
        with world.owner.connect() as connection:
            waiting = service.database.tables.inbox_waiting
            return bool(connection.execute(sa.select(waiting.c.position)).all())

    await until(lambda: running.done() or waits(), "a message that waits")
    with trouble(world):
        world.advance(31)
        told = [*told_by]
        await until(
            lambda: running.done() or all(each in caplog.text for each in told), f"all of {told}"
        )
        if running.done():
            running.result()
    world.failing = False
    world.advance(31)
    await until(lambda: running.done() or (world.handled and world.completed), "its end")
    if running.done():
        running.result()
    async with service.unit_of_work() as uow:
        uow.publish(Said(word="two"))
    await until(lambda: running.done() or "two" in world.handled, "another message")
    stop.set()
    await asyncio.wait_for(running, PATIENCE)
    assert set(world.handled) == {"one", "two"}
    await service.close()


@contextmanager
def statements_too_slow(world: World) -> Iterator[None]:
    """The user has a limit, and somebody locks our tables, as a migration of theirs may."""
    world.execute(f'alter database "{world.name}" set statement_timeout = 200')
    world.cut()
    with world.owner.connect() as connection:
        connection.exec_driver_sql("set statement_timeout = 0")
        connection.exec_driver_sql(
            "lock table outbox_saga_inbox_waiting, outbox_saga_saga in access exclusive mode"
        )
        yield
        connection.rollback()
    world.execute(f'alter database "{world.name}" reset statement_timeout')


@contextmanager
def demoted(world: World) -> Iterator[None]:
    """Who connects now gets to a server that takes no writes, and stays connected to it."""
    world.execute(f'alter database "{world.name}" set default_transaction_read_only = on')
    world.cut()
    yield
    world.execute(f'alter database "{world.name}" reset default_transaction_read_only')


@contextmanager
def demoted_mariadb(world: World) -> Iterator[None]:
    world.execute("set global read_only = 1")
    yield
    world.execute("set global read_only = 0")


@pytest.fixture
def broker(nats_url: str) -> str:
    name = f"test{new_id().hex[:12]}"
    return f"{nats_url}?create=1&stream={name}&prefix={name}"


@pytest.mark.databases("postgres18", "postgres15")
async def test_statements_that_a_limit_ends_are_waited_out(
    database: Database, broker: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(database.url, database.url)
    told_by = (f"{ORCHESTRATOR} (QueryCanceled 57014", f"{WAITING_ROOM} (QueryCanceled 57014")
    await goes_on(world, broker, caplog, statements_too_slow, told_by)


@pytest.mark.databases("postgres18", "postgres15")
async def test_a_server_that_takes_no_writes_for_a_while_is_waited_out(
    database: Database, broker: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(database.url, database.url)
    error = "ReadOnlySqlTransaction 25006"
    told_by = tuple(f"{each} ({error}" for each in (RELAY, ORCHESTRATOR, WAITING_ROOM))
    await goes_on(world, broker, caplog, demoted, told_by)


async def test_a_mariadb_that_takes_no_writes_for_a_while_is_waited_out(
    private_server: PrivateServer, broker: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = private_server(MariaDB)
    owner_url = server.create_database()
    url = sa.make_url(owner_url)
    server.execute("create user clerk")
    server.execute(f"grant all on `{url.database}`.* to clerk")
    world = World(owner_url, url.set(username="clerk").render_as_string(hide_password=False))
    told_by = tuple(f"{each} (OperationalError 1290" for each in (RELAY, ORCHESTRATOR))
    await goes_on(world, broker, caplog, demoted_mariadb, (*told_by, f"{WAITING_ROOM} ("))


@pytest.mark.databases("postgres18")
async def test_a_consumer_waits_until_the_database_answers_in_time(
    database: Database,
    broker: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(database.url, database.url)
    slow, stop = [True], asyncio.Event()

    def looks(connection: sa.Connection, tables: Any) -> None:
        if slow:
            connection.exec_driver_sql("set local statement_timeout = 50")
            connection.exec_driver_sql("select pg_sleep(60)")
        require_tables(connection, tables)

    monkeypatch.setattr("outbox_saga.consuming.require_tables", looks)
    service, _ = world.service(broker)
    world.failing = False
    subscription = Subscription("shop.Said", ("talk",), 2)
    consuming = asyncio.create_task(consume(broker, subscription, service.handling, stop))
    await until(
        lambda: consuming.done() or "consumer shop.Said: QueryCanceled 57014" in caplog.text,
        "a warning",
    )
    slow.clear()
    async with service.unit_of_work() as uow:
        uow.publish(Said(word="one"))
    await service.relay_program(listen=False).run_until_empty()
    await until(lambda: consuming.done() or world.handled, "the message")
    stop.set()
    await asyncio.wait_for(consuming, PATIENCE)
    await service.close()


@pytest.mark.databases("postgres18", "mariadb")
@pytest.mark.parametrize("part", ["orchestrate", "consume", "relay"])
async def test_a_right_that_is_missing_ends_a_program(
    database: Database, broker: str, part: str
) -> None:
    world = World(database.url, database.url)
    user = f"u{new_id().hex[:12]}"
    if database.name == "mariadb":
        world.execute(f"create user {user}")
        world.execute(f"grant select on `{world.name}`.* to {user}")
    else:
        world.execute(f"create role {user} login")
        world.execute(f"grant select on all tables in schema public to {user}")
    url = world.owner.url.set(username=user).render_as_string(hide_password=False)
    owners, saga = world.service(broker)
    async with owners.unit_of_work() as uow:
        saga.start(uow, Order(number=1), business_key="one")
    waiting = owners.database.tables.inbox_waiting
    with owners.database.begin() as connection:
        now = owners.database.clock.now()
        connection.execute(
            sa.insert(waiting).values(
                consumer="shop.Said",
                message_id=new_id(),
                topic="talk",
                headers="{}",
                body=b"{}",
                arrived_at=now,
                until=now,
                attempts=0,
                error_code="x",
                error="x",
            )
        )
    world.url = url
    service, _ = world.service(broker)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(DBAPIError) as ended:
            await getattr(service, part)(asyncio.Event())
    assert not passes(ended.value)
    await service.close()
    await owners.close()
    world.execute(f"drop owned by {user}" if database.name != "mariadb" else "do 0")
    world.execute(f"drop user {user}")


async def test_a_commit_that_a_read_only_server_refuses_is_certainly_not_committed(
    private_server: PrivateServer,
) -> None:
    """MariaDB asks again at COMMIT; the connection is none that was lost then."""
    server = private_server(MariaDB)
    owner_url = server.create_database()
    url = sa.make_url(owner_url)
    server.execute("create user clerk")
    server.execute(f"grant all on `{url.database}`.* to clerk")
    world = World(owner_url, url.set(username="clerk").render_as_string(hide_password=False))
    service, _ = world.service("local")

    @event.listens_for(service.database.engine, "after_cursor_execute")
    def written(_: Any, __: Any, statement: str, *___: Any) -> None:
        if "outbox_saga_outbox" in statement:
            world.execute("set global read_only = 1")

    with pytest.raises(DBAPIError) as refused, service.unit_of_work() as uow:
        uow.publish(Said(word="one"))
    assert is_read_only(refused.value)
    assert passes(refused.value)
    assert not leaves_commit_open(refused.value)
    world.execute("set global read_only = 0")
    await service.close()


@pytest.mark.databases("mariadb")
@pytest.mark.parametrize(
    ("number", "expected"),
    [
        *((number, True) for number in (1021, 1114, 1203, 1226, 1290, 1792, 1317, 1969, 3024)),
        *((number, False) for number in (1044, 1045, 1049, 1054, 1064, 1142, 1146, 1406, 1644)),
    ],
)
def test_mariadb_is_read_by_its_number(database: Database, number: int, expected: bool) -> None:
    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    with pytest.raises(DBAPIError) as told, engine.connect() as connection:
        connection.exec_driver_sql(
            f"signal sqlstate 'HY000' set mysql_errno = {number}, message_text = 'no'"
        )
    assert passes(told.value) is expected


@pytest.mark.databases("postgres18")
@pytest.mark.parametrize(
    ("state", "expected"),
    [
        *((state, True) for state in ("57014", "25006", "53100", "53200", "53300", "58030")),
        *((state, True) for state in ("40001", "40P01", "40003", "55P03", "57P03", "08006")),
        *((state, False) for state in ("42501", "42P01", "42703", "23505", "22001", "28000")),
    ],
)
def test_postgresql_is_read_by_its_sqlstate(
    database: Database, state: str, expected: bool
) -> None:
    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    with pytest.raises(DBAPIError) as told, engine.connect() as connection:
        connection.exec_driver_sql(
            f"do $$ begin raise exception 'no' using errcode = '{state}'; end $$"
        )
    assert passes(told.value) is expected
    if state in ("57014", "25006"):
        assert not is_transient(told.value), "of somebody's own unit it may last"
