"""The servers that every other test stands on: real, private, killable, never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, inspect, text

from outbox_saga.testing.servers import (
    SERVERS,
    DatabaseServer,
    Kafka,
    Nats,
    PgBouncer,
    Postgres18,
    Redis,
    Server,
    ServerFailed,
    ServerUnavailable,
    choice,
    choose,
    environment_variable,
    keeper,
)
from outbox_saga.testing.servers.process import LocalProcess
from tests.fixtures.databases import Database
from tests.fixtures.memories import MEMORIES
from tests.fixtures.services import PrivateServer, Services

every_server = pytest.mark.parametrize("kind", SERVERS, ids=lambda kind: kind.name)
every_lasting_server = pytest.mark.parametrize(
    "kind", [kind for kind in SERVERS if kind is not Kafka], ids=lambda kind: kind.name
)
every_database_server = pytest.mark.parametrize(
    "kind", [k for k in SERVERS if issubclass(k, DatabaseServer)], ids=lambda kind: kind.name
)


DIALECTS = {
    "sqlite": "sqlite",
    "postgres18": "postgresql",
    "postgres15": "postgresql",
    "mariadb": "mysql",
}


def private(server: Server) -> Server:
    """Only what is ours can be killed: a server given by URL is not."""
    if server.source == "url":
        pytest.skip(f"{server.name} was given by URL")
    return server


@every_lasting_server
async def test_a_server_keeps_address_and_data_when_it_is_killed_and_when_it_restarts(
    kind: type[Server], private_server: PrivateServer
) -> None:
    server = private(private_server(kind))
    address = server.url
    await MEMORIES[kind].keep(address, "plum")

    server.kill()
    with pytest.raises(Exception, match=r"refused|failed|connect"):
        server.probe()
    server.start()
    assert await MEMORIES[kind].recall(address) == "plum"

    server.restart()
    assert await MEMORIES[kind].recall(address) == "plum"
    assert server.url == address


async def test_kafka_keeps_the_word_it_acknowledged(kafka_bootstrap: str) -> None:
    await MEMORIES[Kafka].keep(kafka_bootstrap, "plum")

    assert await MEMORIES[Kafka].recall(kafka_bootstrap) == "plum"


def test_the_mock_kafka_cluster_starts_again_empty_and_elsewhere(
    private_server: PrivateServer,
) -> None:
    server = private(private_server(Kafka))
    address = server.url

    server.kill()
    server.start()

    assert server.url != address


def test_a_durable_server_restarts_too(private_server: PrivateServer) -> None:
    for kind in (Postgres18, Nats, Redis):
        server = private(private_server(kind, durable=True))
        server.restart()
        server.probe()


@pytest.mark.parametrize("kind", [Nats, Redis, Kafka], ids=lambda kind: kind.name)
def test_a_paused_server_is_silent_and_goes_on_when_resumed(
    kind: type[Server], private_server: PrivateServer
) -> None:
    server = private(private_server(kind))

    server.pause()
    with pytest.raises(TimeoutError):
        server.probe(patience=0.2)
    server.resume()

    server.probe()


def test_pausing_postgresql_freezes_open_connections_too(private_server: PrivateServer) -> None:
    server = private(private_server(Postgres18))
    assert isinstance(server, Postgres18)
    with create_engine(server.url, poolclass=NullPool).connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None

        server.pause()
        raw.pgconn.send_query(b"select 1")
        assert select.select([raw.fileno()], [], [], 0.2)[0] == []
        server.resume()

        assert select.select([raw.fileno()], [], [], 20)[0] == [raw.fileno()]


def test_postgresql_is_set_up_for_logical_decoding_and_many_connections(
    private_server: PrivateServer,
) -> None:
    url = private_server(Postgres18).url
    with create_engine(url, poolclass=NullPool).connect() as connection:
        shown = {
            name: connection.scalar(text(f"show {name}"))
            for name in ("wal_level", "max_connections", "fsync", "server_encoding")
        }

    assert shown == {
        "wal_level": "logical",
        "max_connections": "200",
        "fsync": "off",
        "server_encoding": "UTF8",
    }


@every_database_server
def test_databases_of_two_tests_share_nothing(
    kind: type[DatabaseServer], services: Services
) -> None:
    server = services.get(kind)
    urls = [server.create_database(), server.create_database()]

    with create_engine(urls[0], poolclass=NullPool).begin() as connection:
        connection.execute(text("create table mine (id integer)"))

    assert inspect(create_engine(urls[1], poolclass=NullPool)).get_table_names() == []
    for url in urls:
        server.drop_database(url)


def test_a_postgresql_database_can_be_copied_from_a_template(services: Services) -> None:
    server = services.get(Postgres18)
    template = server.create_database()
    with create_engine(template, poolclass=NullPool).begin() as connection:
        connection.execute(text("create table mine (id integer)"))

    copy = server.create_database(template=template)

    assert inspect(create_engine(copy, poolclass=NullPool)).get_table_names() == ["mine"]
    for url in (template, copy):
        server.drop_database(url)


@every_database_server
def test_a_database_is_dropped_while_somebody_is_connected(
    kind: type[DatabaseServer], services: Services
) -> None:
    server = services.get(kind)
    url = server.create_database()
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.execute(text("select 1"))

        server.drop_database(url)

        connection.invalidate()  # PostgreSQL has ended it
    engine.dispose()


def test_each_database_fixture_is_an_empty_database_of_its_kind(database: Database) -> None:
    engine = create_engine(database.url, poolclass=NullPool)

    assert inspect(engine).get_table_names() == []
    assert DIALECTS[database.name] == engine.dialect.name


@pytest.mark.databases("sqlite", "mariadb")
def test_the_marker_chooses_the_databases(database: Database) -> None:
    assert database.name in {"sqlite", "mariadb"}


# What is left behind ---------------------------------------------------------------------------

# A process that starts a server, tells what it started, and waits to be killed.
OWNER = """
import json, sys
from outbox_saga.testing.servers import SERVERS, choose, keeper
kind = next(kind for kind in SERVERS if kind.name == sys.argv[1])
server = choose(kind, services="wheel").start()
print(json.dumps([str(server.place.directory), list(keeper.descendants())]), flush=True)
sys.stdin.read()
"""


class Ends:
    """Waits for processes that are not our children."""

    def __init__(self, pids: list[int]) -> None:
        self.waiting: dict[int, int] = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # PostgreSQL's come and go
                self.waiting[os.pidfd_open(pid)] = pid

    def all(self, seconds: float) -> bool:
        """Have all of them ended within that time?"""
        while self.waiting:
            ended = select.select(list(self.waiting), [], [], seconds)[0]
            if not ended:
                return False
            for file in ended:
                del self.waiting[file]
                os.close(file)
        return True


class Owner:
    """A process with a server of its own."""

    def __init__(self, kind: type[Server]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, kind.name],
            env={k: v for k, v in os.environ.items() if not k.startswith("OUTBOX_SAGA_TEST_")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def started(self) -> tuple[Path, list[int]]:
        """The server's directory and its processes, the keeper first."""
        assert self.process.stdout is not None
        directory, pids = json.loads(self.process.stdout.readline())
        assert len(pids) >= 2
        return Path(directory), pids


@pytest.fixture
def owner(kind: type[Server], services: Services) -> Iterator[Owner]:
    try:
        kind.local(durable=False)
    except ServerUnavailable as reason:
        services.miss(reason)
    owner = Owner(kind)
    with owner.process:
        yield owner
        owner.process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")
@every_server
def test_a_server_is_gone_with_its_data_when_its_owner_is_killed(owner: Owner) -> None:
    directory, pids = owner.started()
    processes = Ends(pids)

    owner.process.kill()

    assert processes.all(seconds=20)
    assert not directory.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
@every_server
def test_a_server_is_gone_when_its_keeper_is_killed(owner: Owner) -> None:
    directory, pids = owner.started()
    processes = Ends(pids)

    os.kill(pids[0], signal.SIGKILL)

    assert processes.all(seconds=20)
    owner.process.communicate("")  # the owner ends of itself, and deletes the data
    assert not directory.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads command lines where Linux has them")
def test_a_server_has_our_environment_and_shows_it_in_no_command_line(
    private_server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI_TOKEN", "s3cret")
    server = private(private_server(Nats))
    server.stop()
    server.start()
    family = [Path(f"/proc/{pid}") for pid in keeper.descendants()]
    ours = [entry for entry in family if b"CI_TOKEN=s3cret" in (entry / "environ").read_bytes()]
    assert len(ours) >= 2  # the keeper and the server
    assert not [entry for entry in family if b"s3cret" in (entry / "cmdline").read_bytes()]


def test_a_server_that_cannot_start_says_what_its_log_says(private_server: PrivateServer) -> None:
    server = private(private_server(Nats))
    assert isinstance(server.place, LocalProcess)
    server.stop()
    (server.place.directory / "nats.conf").write_text("not a configuration {")

    with pytest.raises(ServerFailed, match=r"ended while starting(?s:.*)Parse error"):
        server.start()


# Where servers come from -----------------------------------------------------------------------


@pytest.fixture
def no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in SERVERS:
        monkeypatch.delenv(environment_variable(kind), raising=False)


def missing(**_: object) -> None:
    raise ServerUnavailable("no such program")


def test_a_server_given_by_url_is_used_before_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_SAGA_TEST_NATS", "nats://broker.example:4222")

    server = choose(Nats)

    assert (server.source, server.url) == ("url", "nats://broker.example:4222")
    with pytest.raises(ServerUnavailable, match="not ours"):
        server.kill()


@pytest.mark.usefixtures("no_url")
def test_a_container_is_used_where_no_program_is_found_and_docker_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Redis, "local", missing)
    monkeypatch.setattr(choice, "why_no_docker", lambda: None)

    assert choose(Redis).source == "docker"
    with pytest.raises(ServerUnavailable, match="no such program"):
        choose(Redis, services="wheel")


@pytest.mark.usefixtures("no_url")
def test_programs_are_not_looked_for_when_docker_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choice, "why_no_docker", lambda: "the engine sleeps")

    with pytest.raises(ServerUnavailable, match="the engine sleeps"):
        choose(Nats, services="docker")


@pytest.mark.usefixtures("no_url")
def test_what_cannot_be_had_is_refused_with_every_reason_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Redis, "local", missing)
    monkeypatch.setattr(choice, "why_no_docker", lambda: "the engine sleeps")

    with pytest.raises(ServerUnavailable) as refusal:
        choose(Redis)

    assert str(refusal.value) == (
        "redis: no such program; the engine sleeps; or set OUTBOX_SAGA_TEST_REDIS to a URL"
    )


def test_a_pooler_by_itself_is_refused_with_the_way_to_get_one(
    monkeypatch: pytest.MonkeyPatch, services: Services
) -> None:
    monkeypatch.setattr(choice, "why_no_docker", lambda: "the engine sleeps")
    with pytest.raises(ServerUnavailable, match=r"PgBouncer\.before\(postgres\)"):
        choose(PgBouncer)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(ServerUnavailable, match="package pgbouncer"):
        PgBouncer.before(services.get(Postgres18))
