"""Proof 1.1: the demo and the tests on a fresh clone, and the demo from the wheel.

The clone is of what is committed. Its first run finds no environment, no uv and no download
cache; the second finds what the first has left, which is what "warm" means.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from proofs.registry import Outcome, proof, say
from tests.packaging.wheel import Installation, build

CHECKOUT = Path(__file__).resolve().parents[1]
ORDERS = CHECKOUT.parent / "shared" / "data" / "northwind"
KILLS = 10


@proof("1.1")
def fresh_clone() -> Outcome:
    """Clone, run both commands, and run the demo of the built wheel where nothing else is."""
    if not (ORDERS / "orders.csv").exists():
        raise FileNotFoundError(f"no orders in {ORDERS}")
    with tempfile.TemporaryDirectory(
        prefix="outbox-saga-clone-", ignore_cleanup_errors=True
    ) as folder:
        clone = Path(folder, "clone")
        subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(clone)], check=True)
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in {"UV", "VIRTUAL_ENV"} and not name.startswith("OUTBOX_SAGA_")
        }
        environment |= {"UV_CACHE_DIR": f"{folder}/cache", "PIP_NO_CACHE_DIR": "1"}
        northwind = ("--orders", str(ORDERS), "--kill", str(KILLS), "--json")
        demos = {
            "demo_cold": demo(clone, environment, "./dev", "demo", *northwind),
            "demo_warm": demo(clone, environment, "./dev", "demo", *northwind),
            "demo_postgres_nats": demo(
                clone, environment, "./dev", "demo", "--postgres", "--nats", *northwind
            ),
        }
        tests = run(clone, environment, "./dev", "test", "--require-services", "-q")
        say("the wheel, where nothing else is installed")
        installed = Installation(Path(folder, "env"), build(Path(folder, "dist")), extras="[demo]")
        demos["demo_from_wheel"] = demo(
            installed.folder, environment, str(installed.script), "demo", "--json"
        )
    return Outcome(
        ok=tests["exit"] == 0
        and all(run["ok"] for run in demos.values())
        and all(
            demos[name]["refunds"] > 0 and demos[name]["kills"] == KILLS
            for name in ("demo_cold", "demo_warm", "demo_postgres_nats")
        ),
        measured={"demos": demos, "tests": tests},
    )


def run(folder: Path, environment: dict[str, str], *command: str) -> dict[str, Any]:
    """How a command ended, after how long, and the last line it said."""
    say(" ".join(command))
    started = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = round(time.monotonic() - started, 1)
    say(f"  {seconds} s, exit {done.returncode}")
    if done.returncode:
        say(done.stdout[-6000:] + done.stderr[-6000:])
    said = done.stdout.strip()
    return {"exit": done.returncode, "wall_seconds": seconds, "said": said.splitlines()[-1:]} | (
        {"json": said} if "--json" in command else {}
    )


def demo(folder: Path, environment: dict[str, str], *command: str) -> dict[str, Any]:
    """What a demo counted, and whether all of its checks were green."""
    found = run(folder, environment, *command)
    try:
        counted: dict[str, Any] = json.loads(found["json"])
    except json.JSONDecodeError:
        return {**found, "ok": False, "refunds": 0, "kills": 0}
    checks = counted.pop("checks")
    return {
        "ok": found["exit"] == 0 and bool(checks) and all(check["ok"] for check in checks),
        "wall_seconds": found["wall_seconds"],
        **counted,
        "checks": {check["name"]: check["ok"] for check in checks},
    }
