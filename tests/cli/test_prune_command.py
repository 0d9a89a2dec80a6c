"""`outbox-saga prune`: what would go, what went, and that it ends when it is told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from outbox_saga_relay.housekeeping import DAY
from tests.cli.conftest import Command
from tests.operating.test_archive import archived, publish
from tests.operating.test_housekeeping import barrier, handle, saga
from tests.relay.house import House

pytestmark = pytest.mark.databases("sqlite", "mariadb")

HOUR = 3600.0


async def test_a_plan_removes_nothing_and_a_round_what_it_said(
    house: House, command: Command
) -> None:
    handle(house, 2, ago=2 * HOUR)
    handle(house, 1, ago=0)
    house.say("a")
    publish(house)
    forever = ("prune", "-d", house.url, "--json", "--keep-inbox")
    prune = ("prune", "-d", house.url, "--inbox-window", "1h", "--json")

    planned = json.loads((await command(*prune, "--plan")).stdout)
    assert (planned["inbox"], planned["archive"], len(house.inbox())) == (2, 0, 3)
    kept = json.loads((await command(*forever, "--plan")).stdout)
    assert kept["inbox"] == 0

    done = json.loads((await command(*prune, "--once", "--archive-window", "0")).stdout)
    assert (done["inbox"], done["archive"]) == (2, 1)
    assert (len(house.inbox()), archived(house)) == (1, [])
    plain = await command("prune", "-d", house.url, "--once", "--pause", "0")
    assert plain.stdout.splitlines()[:2] == ["inbox\t0", "archive\t0"]


async def test_sagas_and_notes_of_commands_go_only_when_they_are_given_a_window(
    house: House, command: Command
) -> None:
    saga(house, "completed", 31 * DAY)
    barrier(house, 31 * DAY)
    prune = ("prune", "-d", house.url, "--once", "--json")

    done = json.loads((await command(*prune)).stdout)
    assert (done["sagas"], done["barriers"]) == (0, 0)
    windows = ("--saga-window", "30d", "--barrier-window", "30d")
    done = json.loads((await command(*prune, *windows)).stdout)
    assert (done["sagas"], done["barriers"]) == (1, 1)
    saga(house, "completed", 31 * DAY, key="order:7")
    assert json.loads((await command(*prune, *windows)).stdout)["sagas"] == 0
    keyed = json.loads((await command(*prune, *windows, "--keyed-sagas")).stdout)
    assert keyed["sagas"] == 1
    alone = await command("prune", "-d", house.url, "--once", "--keyed-sagas")
    assert (alone.exit_code, "--saga-window" in alone.stderr) == (2, True)
    short = await command("prune", "-d", house.url, "--once", "--saga-window", "1h")
    assert (short.exit_code, "a day" in short.stderr) == (1, True)


async def test_a_window_needs_a_unit(house: House, command: Command) -> None:
    ended = await command("prune", "-d", house.url, "--inbox-window", "30")
    assert (ended.exit_code, "is no stretch of time" in ended.stderr) == (2, True)
    both = await command("prune", "-d", house.url, "--once", "--plan")
    assert (both.exit_code, "not both" in both.stderr) == (2, True)


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "outbox_saga_relay", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


async def test_it_goes_on_until_sigterm(house: House) -> None:
    handle(house, 1, ago=2 * HOUR)
    options = ["-d", house.url, "--inbox-window", "1h", "--interval", "0.05s"]
    process = started("prune", *options)
    try:
        house.until(lambda: not house.inbox(), "its first round")
        handle(house, 1, ago=2 * HOUR)
        house.until(lambda: not house.inbox(), "another round")
        os.kill(process.pid, signal.SIGTERM)
        _, told = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, told
    assert told.count("removed 1 notes of the inbox") == 2


async def test_a_round_that_is_told_to_end_in_its_pause_removes_no_more(house: House) -> None:
    handle(house, 5, ago=31 * DAY)
    process = started("prune", "-d", house.url, "--once", "--batch", "2", "--pause", "1h")
    try:
        house.until(lambda: len(house.inbox()) == 3, "its first batch")
        os.kill(process.pid, signal.SIGTERM)
        _, told = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, len(house.inbox())) == (1, 3), told
    assert "stopped" in told
