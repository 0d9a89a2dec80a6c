"""`outbox-saga audit`: who did what, and why, the latest first."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Command
from tests.operating.yard import die, replay
from tests.relay.house import House

pytestmark = pytest.mark.databases("sqlite", "postgres18")


async def test_it_lists_what_was_done_and_why_the_latest_first(
    house: House, command: Command
) -> None:
    nothing = await command("audit", "-d", house.url)
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    house.say("a", "b")
    await die(house, "a", "b")
    for word in ("a", "b"):
        replay(house, word)
    plain = await command("audit", "-d", house.url)
    rows = [line.split("\t") for line in plain.stdout.splitlines()]
    assert [row[1:3] for row in rows] == [["ada", "dead_letter.replay"]] * 2
    assert rows[0][4] == "the broker takes them now"
    told = json.loads((await command("audit", "-d", house.url, "--limit", "1", "--json")).stdout)
    (latest,) = told["actions"]
    assert latest["subject"] == rows[0][3]
    assert latest["detail"]["position"] > 0
    assert "word" not in plain.stdout  # no payload


async def test_a_database_without_our_tables_is_told_of(command: Command, house: House) -> None:
    gone = await command("audit", "-d", "sqlite:////nowhere/at/all.db")
    assert gone.exit_code == 1
    assert "no file" in gone.output
