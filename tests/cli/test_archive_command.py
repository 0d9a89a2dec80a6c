"""`outbox-saga archive replay`: a plan, a question, and what was sent."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa

from tests.cli.conftest import Command
from tests.cli.terminal import Terminal
from tests.operating.test_archive import publish
from tests.operating.yard import audited
from tests.relay.house import House

pytestmark = pytest.mark.databases("sqlite", "postgres18")

WHY = ("--reason", "the broker lost its last hour")


def published(house: House, ago: float, *words: str, key: str | None = None) -> None:
    house.say(*words, key=key)
    publish(house)
    archive = house.tables.archive
    with house.eyes.begin() as connection:
        young = archive.c.published_at > house.clock.now(-10)
        connection.execute(
            sa.update(archive).where(young).values(published_at=house.clock.now(-ago))
        )


async def test_a_plan_says_how_many_and_what_inboxes_have_forgotten(
    house: House, command: Command
) -> None:
    published(house, 7200, "old")
    published(house, 600, "a", "b", key="k")
    replay = ("archive", "replay", "-d", house.url, "--since", "3h", "--plan")

    told = json.loads((await command(*replay, "--inbox-window", "1h", "--json")).stdout)
    assert (told["count"], told["forgotten"]) == (3, 1)
    assert [topic["topic"] for topic in told["topics"]] == ["talk"]
    plain = await command(*replay, "--inbox-window", "1h")
    assert "may handle them a second time" in plain.stderr
    assert "give up their place" in plain.stderr
    remembered = await command(*replay)
    assert "second time" not in remembered.stderr
    assert (house.waiting(), audited(house)) == ([], [])


async def test_what_matches_is_sent_again_once_somebody_has_said_yes(
    house: House, command: Command
) -> None:
    published(house, 7200, "old")
    published(house, 600, "a", "b", key="k")
    published(house, 300, "other", key="other")
    replay = ("archive", "replay", "-d", house.url, "--since", "1h", "--key", "k", *WHY)
    asked = await command(*replay)
    assert (asked.exit_code, "pass --yes" in asked.stderr, house.waiting()) == (2, True, [])

    done = await command(*replay, "--yes", "--rate", 1000, "--json")

    assert json.loads(done.stdout)["sent"] == 2
    assert house.waiting() == ["a", "b"]
    assert audited(house) == [("grace", "archive.replay"), ("grace", "archive.replay.ended")]
    again = await command(*replay, "--yes")
    assert again.stdout.splitlines() == ["sent again\t0", "wait already\t2"]


async def test_since_when_has_to_be_said(house: House, command: Command) -> None:
    ended = await command("archive", "replay", "-d", house.url, *WHY)
    assert (ended.exit_code, "--since" in ended.stderr) == (2, True)


async def test_what_is_published_while_a_person_reads_the_plan_is_not_sent_again(
    house: House,
) -> None:
    published(house, 600, "a", "b")
    terminal = Terminal("archive", "replay", "-d", house.url, "--since", "1h", *WHY)
    await terminal.sees("Type 2 to go on")
    house.say("c")
    publish(house)

    terminal.type("2\n")

    assert await terminal.ended() == 0, terminal.shown
    assert house.waiting() == ["a", "b"]


async def test_when_there_was_nothing_to_read_nothing_is_sent_again(house: House) -> None:
    terminal = Terminal("archive", "replay", "-d", house.url, "--since", "1h")
    await terminal.sees("Why")
    house.say("c")
    publish(house)

    terminal.type("the broker lost its last hour\n")

    assert await terminal.ended() == 0, terminal.shown
    assert (house.waiting(), audited(house)) == ([], [])
