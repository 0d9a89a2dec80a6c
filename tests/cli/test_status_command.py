"""`outbox-saga status`: what waits, for whom, and who is at work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import sqlalchemy as sa

from outbox_saga import Retry
from outbox_saga.queries import overview
from outbox_saga.queries.overview import COUNTED
from outbox_saga.unit_of_work import UnitOfWork
from tests.cli.conftest import Command
from tests.inbox.processes import Moods, processes, said
from tests.operating.yard import die
from tests.relay.house import House, Recorder, Said

pytestmark = pytest.mark.databases("sqlite", "postgres18", "mariadb")


async def test_of_an_idle_database_it_says_that_nothing_waits(
    house: House, command: Command
) -> None:
    shown = await command("status", "-d", house.url)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines() == [
        "outbox\t0",
        "delayed\t0, 0 of them due",
        "keys that wait for another attempt\t0",
        "keys that are parked\t0",
        "dead letters no broker took\t0",
    ]
    assert shown.stderr == "no relay has told of itself\n"


async def test_it_says_what_waits_and_who_is_at_work_and_nothing_that_was_said(
    house: House, command: Command
) -> None:
    house.say("secret-dead", "secret-behind", key="k")
    relay = await die(house, "secret-dead")
    house.say("secret-new")
    with house.eyes.begin() as connection:
        uow = UnitOfWork(connection)
        uow.publish(Said(word="secret-soon"), delay=0.000001)
        uow.publish(Said(word="secret-later"), delay=3600)
    await relay.store.renew_lease(relay.counters.as_dict())

    told = json.loads((await command("status", "-d", house.url, "--json")).stdout)
    assert told["outbox"] == {"rows": 2, "more": False}
    assert told["first_waits"] >= 0
    assert (told["delayed"]["rows"], told["due"]["rows"]) == (2, 1)
    assert (told["parked_keys"]["rows"], told["retried_keys"]["rows"]) == (1, 0)
    assert told["dead_letters"]["rows"] == 1
    (process,) = told["processes"]
    assert (process["kind"], process["pid"], process["alive"]) == ("relay", os.getpid(), True)
    assert process["detail"]["partitions"] == 64
    assert process["detail"]["dead"] == 1

    plain = await command("status", "-d", house.url)
    assert "secret" not in plain.output
    fields = plain.stdout.splitlines()[-1].split("\t")
    assert (fields[0], fields[3]) == ("relay", str(os.getpid()))
    assert fields[4].endswith(" ago")
    assert "64 partitions, 0 published, 1 dead letters" in fields[5]


@pytest.mark.databases("postgres18", "postgres15")
async def test_it_names_the_process_that_holds_the_mark_of_a_relay(
    house: House, command: Command
) -> None:
    relay = house.relay(Recorder(), page_rows=2)
    with house.eyes.connect() as writer:
        writer.execute(sa.text("INSERT INTO till (note) VALUES ('open')"))
        pid = writer.scalar(sa.text("SELECT pg_backend_pid()"))
        for word in range(6):
            house.say(word)
            await relay.run_once()
        await relay.store.renew_lease(relay.counters.as_dict())
        held = await command("status", "-d", house.url)
        writer.rollback()
    assert f"mark held by pid {pid}" in held.stdout


@pytest.mark.databases("sqlite", "postgres18")
async def test_it_counts_no_further_than_it_has_to(house: House, command: Command) -> None:
    delayed = house.tables.delayed
    columns = [c.name for c in delayed.c if c.name != "id"]
    house.say("one")
    with house.eyes.begin() as connection:
        UnitOfWork(connection).publish(Said(word="x"), delay=3600)
    with house.eyes.begin() as connection:
        while connection.scalar(sa.select(sa.func.count()).select_from(delayed)) <= COUNTED:  # type: ignore[operator]  # a count is never None
            fresh = (
                sa.func.gen_random_uuid()
                if house.name != "sqlite"
                else sa.func.lower(sa.func.hex(sa.func.randomblob(16)))
            )
            connection.execute(
                sa.insert(delayed).from_select(
                    ["id", *columns], sa.select(fresh, *(delayed.c[c] for c in columns))
                )
            )
    told = json.loads((await command("status", "-d", house.url, "--json")).stdout)
    assert told["delayed"] == {"rows": COUNTED, "more": True}
    plain = await command("status", "-d", house.url)
    assert f"delayed\tmore than {COUNTED:,}, 0 of them due" in plain.stdout


@pytest.mark.databases("sqlite", "postgres18")
async def test_many_of_one_consumer_hide_none_of_another(
    house: House, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "COUNTED", 3)
    async with processes(house) as process:
        busy = process(Moods("poison", "x").asynchronous)
        await busy.deliver(said("poison", key="k"), *(said("x", key="k") for _ in range(5)))
        one = process(Moods("poison").asynchronous, consumer="other", retry=Retry(max_attempts=1))
        await one.deliver(said("poison"))
    plain = await command("status", "-d", house.url)
    assert [line.split("\t") for line in plain.stdout.splitlines()[-2:]] == [
        ["listener", "1", "4 or more", "0"],
        ["other", "0", "0 or more", "1"],
    ]


def looking(house: House, *options: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "outbox_saga_relay", "status", "-d", house.url, *options]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def test_it_looks_again_and_again_until_sigterm(house: House) -> None:
    process = looking(house, "--json", "--every", "0.1")
    try:
        assert process.stdout is not None
        before = json.loads(process.stdout.readline())
        house.say("a")
        while (after := json.loads(process.stdout.readline()))["outbox"]["rows"] == 0:
            pass
        os.kill(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (before["outbox"]["rows"], after["outbox"]["rows"]) == (0, 1)
    assert (process.returncode, errors) == (0, "")
