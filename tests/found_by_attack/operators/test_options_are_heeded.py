"""An option that was given is heeded or refused, and a question changes nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from outbox_saga import Service
from outbox_saga.archive import Archive
from outbox_saga.database import Database
from outbox_saga.errors import ConfigurationError
from outbox_saga.queries.clock import Clock
from outbox_saga.waiting_messages import WaitingMessages
from tests.cli.conftest import Command
from tests.inbox.processes import Moods, processes, said
from tests.operating.yard import ADA, die, letter_of
from tests.relay.house import House, Recorder

pytestmark = pytest.mark.databases("sqlite", "postgres18")

WHY = ("--reason", "mended")
RELAY = ("relay", "--database-url", "sqlite:///x.db", "--broker", "nats://x")
RELAY_ONCE = (*RELAY, "--once", "--inbox-window", "30d")
PRUNE = ("prune", "-d", "sqlite:///x.db")
PLAN = ("--plan", "--rate", "5", "--yes")


async def test_letters_named_by_their_ids_go_no_faster_than_the_rate(
    house: House, command: Command
) -> None:
    house.say("a", "b", "c")
    await die(house, "a", "b", "c")
    ids = [letter_of(house, word).id for word in "abc"]
    begun = time.monotonic()
    run = await command("dead-letter", "replay", *ids, "-d", house.url, "--rate", 5, "--yes", *WHY)
    assert run.exit_code == 0, run.output
    assert house.dead() == []
    assert time.monotonic() - begun >= 0.4  # two pauses between three


@pytest.mark.parametrize(
    "arguments",
    [
        ("waiting", "list"),
        ("waiting", "show", "1"),
        ("waiting", "retry", "1", *WHY),
        ("waiting", "discard", "1", "--yes", *WHY),
        ("saga", "list"),
        ("saga", "show", "0190a0c0-0000-7000-8000-000000000000"),
    ],
    ids=" ".join,
)
async def test_a_question_to_a_file_that_is_not_there_does_not_make_it(
    tmp_path: Path, command: Command, arguments: tuple[str, ...]
) -> None:
    path = tmp_path / "shop.db"
    asked = await command(*arguments, "-d", f"sqlite:///{path}")
    assert asked.exit_code == 1
    assert "there is no file" in asked.output
    assert not path.exists()


@pytest.mark.parametrize("group", ["waiting", "saga"])
async def test_a_database_without_our_tables_is_told_what_to_run(
    tmp_path: Path, command: Command, group: str
) -> None:
    path = tmp_path / "shop.db"
    path.touch()
    asked = await command(group, "list", "-d", f"sqlite:///{path}")
    assert asked.exit_code == 1
    assert "outbox-saga db upgrade" in asked.output


async def test_a_waiting_message_is_acted_on_only_in_the_version_that_was_seen(
    house: House, command: Command
) -> None:
    async with processes(house) as process:
        listener = process(Moods("a").asynchronous)
        await listener.deliver(said("a", key="k"))
        (seen,) = await WaitingMessages(house.database).list()
        await listener.later()  # it fails once more
    place = str(seen.position)
    listed = await command("waiting", "list", "-d", house.url, "--json")
    assert seen.version not in listed.stdout

    of_it = (place, "-d", house.url, *WHY)
    discard = ("waiting", "discard", *of_it, "--yes")
    for arguments in (("waiting", "retry", *of_it), discard):
        stale = await command(*arguments, "--seen", seen.version)
        assert stale.exit_code == 1
        assert "not as you saw it" in stale.output
    many = await command("waiting", "retry", 1, 2, "-d", house.url, *WHY, "--seen", "1-waits")
    assert many.exit_code == 2
    (now,) = await WaitingMessages(house.database).list()
    assert (now.attempts, now.version) == (2, "2-waits")
    done = await command(*discard, "--seen", now.version)
    assert done.exit_code == 0, done.output
    assert house.set_aside() == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (RELAY_ONCE, "prune --once"),
        (
            (*RELAY, "--once", "--poll", "1", "--listen-url", "postgresql://h/d"),
            "leave out --poll, --listen-url",
        ),
        ((*RELAY, "--once", "--no-listen"), "leave out --no-listen"),
        (("dead-letter", "list", "-d", "sqlite:///x.db", "--groups", "--after", "5"), "no pages"),
        (("dead-letter", "list", "-d", "sqlite:///x.db", "--groups", "--limit", "5"), "no pages"),
        ((*PRUNE, "--keep-inbox", "--inbox-window", "1h"), "leave out --inbox-window"),
        ((*PRUNE, "--once", "--interval", "5s"), "leave out --interval"),
        (
            (*PRUNE, "--plan", "--batch", "7", "--pause", "9s", "--interval", "5s"),
            "leave out --batch, --pause, --interval",
        ),
        ((*RELAY, "--no-listen", "--listen-url", "postgresql://h/d"), "leave out --listen-url"),
        (
            ("db", "sql", "--dialect", "mariadb", "-d", "postgresql://h/d"),
            "leave out --database-url",
        ),
        (
            ("db", "roles", "--dialect", "mariadb", "-d", "postgresql://h/d"),
            "leave out --database-url",
        ),
        (("doctor", "--list", "no.such:service"), "leave out SERVICE"),
        (
            ("doctor", "--list", "--role", "relay", "--strict", "-d", "sqlite:///x.db"),
            "leave out --database-url, --role, --strict",
        ),
        (
            (*("archive", "replay", "-d", "sqlite:///x.db", "--since", "1h"), *PLAN),
            "leave out --rate, --yes",
        ),
        (
            (*("dead-letter", "replay", "-d", "sqlite:///x.db", "--all"), *PLAN),
            "leave out --rate, --yes",
        ),
        (("dead-letter", "list", "-d", "sqlite:///x.db", "--since", "999999d"), "no moment"),
        ((*RELAY, "--schema", "a;b"), "use ASCII letters"),
    ],
)
async def test_an_option_that_could_not_be_heeded_is_refused(
    command: Command,
    arguments: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.db").touch()
    refused = await command(*arguments)
    assert refused.exit_code == 2, refused.output
    assert told in refused.output


def test_a_service_with_a_database_takes_no_schema_and_no_clock_beside_it() -> None:
    database = Database("sqlite:///shop.db")
    with pytest.raises(ConfigurationError, match=r"give them to Database"):
        Service("shop", database=database, schema="outbox")
    with pytest.raises(ConfigurationError, match=r"give them to Database"):
        Service("shop", database=database, clock=Clock(60.0))


def test_a_replay_of_the_archive_in_batches_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="batch is 0"):
        Archive(Database("sqlite:///shop.db")).replay(ADA, batch=0)


@pytest.mark.parametrize("url", ["mysql://nobody/none", "sqlite:///x.db", ""])
async def test_a_relay_is_not_told_to_listen_where_nothing_is_said(house: House, url: str) -> None:
    with pytest.raises(ConfigurationError):
        house.relay(Recorder(), listen=url)
