"""The whole demo with real processes, small; and that nothing is left of it, however it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox_saga.testing.servers import Nats, Postgres18
from tests.fixtures.services import Services

pytestmark = pytest.mark.timeout(400)

DEMO = [sys.executable, "-m", "outbox_saga_relay", "demo"]
FIGURES = {
    "orders", "completed", "compensated", "stuck", "refunds", "published", "handled", "duplicates",
    "kills", "kills_in_flight", "seconds", "checks",
}  # fmt: skip


def run_demo(*options: str, folder: Path | None = None) -> dict[str, Any]:
    """What it prints; its temporary files go to that folder, if one is given."""
    done = subprocess.run(
        [*DEMO, "--json", *options],
        env=dict(os.environ) if folder is None else {**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def assert_good(result: dict[str, Any], *, kills: int) -> None:
    assert result.keys() >= FIGURES
    assert [check for check in result["checks"] if not check["ok"]] == []
    assert result["orders"] == result["completed"] + result["compensated"] == 20
    assert result["stuck"] == 0
    assert result["completed"] > 0
    assert result["compensated"] > 0
    assert result["published"] == result["handled"] > 20
    assert result["kills"] == kills
    assert 2 * result["kills_in_flight"] >= kills


def test_twenty_orders_survive_two_kills_on_sqlite(tmp_path: Path) -> None:
    assert_good(run_demo("--count", "20", "--kill", "2", folder=tmp_path), kills=2)
    assert list(tmp_path.iterdir()) == []


def test_twenty_orders_survive_three_kills_on_postgresql_and_nats(services: Services) -> None:
    services.get(Postgres18)
    services.get(Nats)
    options = ("--count", "20", "--kill", "3", "--postgres", "--nats")
    assert_good(run_demo(*options), kills=3)


def test_one_after_the_other_without_faults_the_stock_alone_decides(tmp_path: Path) -> None:
    quietly = ("--concurrency", "1", "--no-faults", "--kill", "0")
    result = run_demo("--count", "20", *quietly, folder=tmp_path)
    assert_good(result, kills=0)
    assert (result["refunds"], result["duplicates"]) == (0, 0)


@pytest.fixture
def demo_under_way(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo that is far from its end, with all of its processes running."""
    demo = subprocess.Popen(
        [*DEMO, "--count", "2000", "--kill", "0"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore SIGINT, and so would what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no thread runs here
    )
    assert demo.stderr is not None
    with demo.stderr:
        for line in demo.stderr:
            if line.startswith("customers"):
                break
        yield demo
        demo.kill()
        demo.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_when_the_demo_is_ended(
    demo_under_way: subprocess.Popen[str], number: signal.Signals, tmp_path: Path
) -> None:
    children = children_of(demo_under_way.pid)
    assert len(children) == 3  # provider, relay, orchestrator
    watched = [os.pidfd_open(pid) for pid in children]
    demo_under_way.send_signal(number)
    for descriptor in watched:
        assert select.select([descriptor], [], [], 60)[0]  # readable once the process has ended
        os.close(descriptor)
    demo_under_way.wait(60)
    if number != signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
