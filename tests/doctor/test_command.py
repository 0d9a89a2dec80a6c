"""`outbox-saga doctor`: what people see, what programs read, and the exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from outbox_saga_relay.cli import main
from outbox_saga_relay.doctor import SUBJECTS
from tests.fixtures.databases import Database as EmptyDatabase

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `outbox-saga doctor` with these arguments, in this process."""
    for name in ("OUTBOX_SAGA_DATABASE_URL", "OUTBOX_SAGA_SCHEMA", "OUTBOX_SAGA_BROKER"):
        monkeypatch.delenv(name, raising=False)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["doctor", *arguments], prog_name="outbox-saga")

    return invoke


SERVICE = """
from outbox_saga import Event, HandlerContext, Service

class Said(Event, topic="talk"):
    word: str

service = Service("shop", database={database!r}, broker={broker!r})

@service.on(Said, consumer="shop.listener")
async def said(handle: HandlerContext[Said]) -> None: ...
"""


def write_service(folder: Path, *, database: str, broker: str) -> None:
    (folder / "orders.py").write_text(SERVICE.format(database=database, broker=broker))


@pytest.mark.databases("sqlite")
def test_without_errors_it_exits_0_and_with_one_1(prepared: EmptyDatabase, run: Run) -> None:
    good = run("--database-url", prepared.url)
    assert good.exit_code == 0, good.output
    assert good.stdout == ""
    assert good.stderr == "14 checks: 0 error, 0 warning, 0 unknown, 0 info\n"

    engine = sa.create_engine(prepared.url)
    with engine.begin() as connection:
        connection.exec_driver_sql("drop table outbox_saga_inbox")
    engine.dispose()

    bad = run("--database-url", prepared.url)
    assert bad.exit_code == 1
    (line,) = bad.stdout.splitlines()
    level, check, what, why, do = line.split("\t")
    assert (level, check, what) == ("error", "schema.tables", "outbox_saga_inbox: missing")
    assert why
    assert do == "outbox-saga db upgrade"


@pytest.mark.databases("sqlite")
def test_a_warning_fails_only_who_asks_for_it(prepared: EmptyDatabase, run: Run) -> None:
    from outbox_saga import UnitOfWork
    from tests.relay.house import Said

    engine = sa.create_engine(prepared.url)
    with engine.begin() as connection:
        UnitOfWork(connection).publish(Said(word="waits"))
    engine.dispose()

    assert run("-d", prepared.url).exit_code == 0
    strict = run("-d", prepared.url, "--strict")
    assert strict.exit_code == 1
    assert strict.stdout.startswith("warning\tbacklog.outbox\t1 messages wait")


def test_programs_get_one_object_with_everything(
    prepared: EmptyDatabase, nats_url: str, run: Run
) -> None:
    done = run("-d", prepared.url, "--broker", f"{nats_url}?stream=nobody", "--json")

    said = json.loads(done.stdout)
    assert done.exit_code == 1
    assert said["ok"] is False
    assert said["errors"] == sum(f["level"] == "error" for f in said["findings"]) >= 1
    missing = [f for f in said["findings"] if f["check"] == "nats.stream"]
    assert [f["level"] for f in missing] == ["error"]
    assert set(missing[0]) == {"check", "level", "what", "why", "do"}
    assert {"database.reachable", "schema.tables", "nats.losses"} <= set(said["checks"])


@pytest.mark.databases("postgres18", "sqlite")
def test_a_service_is_looked_at_with_its_broker_and_its_consumers(
    prepared: EmptyDatabase, nats_url: str, tmp_path: Path
) -> None:
    broker = f"{nats_url}?stream=orders_doctor&create=1"
    write_service(tmp_path, database=prepared.url, broker=broker)

    ran = subprocess.run(
        [sys.executable, "-m", "outbox_saga_relay", "doctor", "orders:service", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    said = json.loads(ran.stdout)
    assert said["broker"] == nats_url
    assert "nats.consumers" in said["checks"]
    assert "schema.tables" in said["checks"]


def test_no_password_is_shown(run: Run) -> None:
    database = "postgresql://shop:hunter2@127.0.0.1:1/shop?sslpassword=hunter2"
    brokers = ["nats://shop:hunter2@127.0.0.1:1?timeout=1", "nats://hunter2@127.0.0.1:1?timeout=1"]

    for broker in brokers:
        for more in ([], ["--json"]):
            done = run("-d", database, "--broker", broker, *more)
            assert done.exit_code == 1
            assert "database.reachable" in done.stdout
            assert "nats.reachable" in done.stdout
            assert "hunter2" not in done.output


@pytest.mark.databases("postgres18")
def test_a_terminal_gets_paragraphs_and_findings_that_say_the_same_only_once(
    database: EmptyDatabase,
) -> None:
    url = sa.make_url(database.url).set(port=1).render_as_string(hide_password=False)
    leader, follower = pty.openpty()

    done = subprocess.Popen(
        [sys.executable, "-m", "outbox_saga_relay", "doctor", "-d", url],
        stdout=follower,
        stderr=subprocess.DEVNULL,
    )
    os.close(follower)
    shown = ""
    try:
        while piece := os.read(leader, 65536):
            shown += piece.decode()
    except OSError:  # the other end is closed: everything was read
        pass
    os.close(leader)

    assert done.wait() == 1
    assert "why: Nothing works without it." in shown
    assert shown.count("it could not be asked") == 1
    assert shown.count("\x1b[") >= 2  # colours
    assert all(len(line) < 120 for line in shown.splitlines())


def test_the_list_names_every_check_and_makes_none(run: Run) -> None:
    listed = run("--list")
    as_json = json.loads(run("--list", "--json").stdout)

    ids = [check.id for checks in SUBJECTS.values() for check in checks]
    assert [line.split("\t")[0] for line in listed.stdout.splitlines()] == ids
    assert [check["check"] for check in as_json["checks"]] == ids


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["orders:service", "-d", "sqlite:///x.db"],
        ["--database-url", "x", "--role", "nobody"],
        ["--database-url", "sqlite:///x.db", "--role", "relay"],
        ["--broker", "nats://nowhere", "--role", "relay"],
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], run: Run) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.databases("postgres18")
def test_the_role_that_is_asked_for_is_compared(prepared: EmptyDatabase, run: Run) -> None:
    done = run("-d", prepared.url, "--role", "observer")

    assert "roles.role\tthis user may do everything" in done.stdout
