"""`outbox-saga breaker`: breakers from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from outbox_saga.breaker import Breaker
from outbox_saga.database import Database
from outbox_saga.queries import breakers as rows
from outbox_saga_migrations import upgrade
from outbox_saga_relay.cli import main
from tests.fixtures.databases import Database as Given

pytestmark = pytest.mark.databases("sqlite", "postgres18", "mariadb")


@pytest.fixture
def ours(database: Given) -> Iterator[Database]:
    ours = Database(database.url)
    with ours.begin() as connection:
        upgrade(connection)
    with ours.begin() as connection:
        stand = rows.lock(connection, ours.tables, ours.clock, "psp")
        rows.note(connection, ours.tables, ours.clock, stand.failed(Breaker("psp", failures=1)))
    yield ours
    ours.dispose()


def run(ours: Database, *words: str) -> Result:
    url = ours.url.render_as_string(hide_password=False)
    return CliRunner().invoke(main, ["breaker", words[0], "-d", url, *words[1:]])


def test_a_breaker_is_seen_planned_and_closed(ours: Database) -> None:
    (told,) = json.loads(run(ours, "list", "--json").stdout)["breakers"]
    assert (told["name"], told["state"], told["failures"], told["trips"]) == ("psp", "open", 1, 1)
    assert run(ours, "list").stdout.startswith("psp\topen\t1\t")

    planned = run(ours, "reset", "psp", "--plan")
    assert (planned.exit_code, planned.stdout) == (0, "psp\topen\t1\tclosed\n")
    assert run(ours, "list").stdout.startswith("psp\topen\t")

    refused = run(ours, "reset", "psp")
    assert refused.exit_code == 2
    assert "--reason" in refused.stderr

    done = run(ours, "reset", "psp", "--reason", "it is back", "--operator", "ada")
    assert (done.exit_code, done.stderr) == (0, "breaker psp: reset\n")
    assert run(ours, "list").stdout.startswith("psp\tclosed\t0\t")


@pytest.mark.parametrize("options", [("--plan",), ("--reason", "why not")])
def test_one_that_never_failed_is_not_there(ours: Database, options: tuple[str, ...]) -> None:
    refused = run(ours, "reset", "ghost", *options)
    assert refused.exit_code != 0
    assert "no breaker called 'ghost'" in str(refused.output) + str(refused.exception)
