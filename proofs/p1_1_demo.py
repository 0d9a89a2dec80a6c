"""Proof 1.1: the demo with real orders and kills, and the tests, on a clone that was never used.

The orders are looked for in OUTBOX_SAGA_PROOF_ORDERS, else in `../shared/data/northwind` beside
the checkout. Cold is the first run of a command in the clone, with an empty package cache and no
environment; warm is the same command again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from proofs.registry import Outcome, proof, say
from tests.packaging.wheel import Installation, uv

CHECKOUT = Path(__file__).resolve().parents[1]
ORDERS = "OUTBOX_SAGA_PROOF_ORDERS"
KILLS = "10"
# as a newcomer's: the environment that this proof runs in has no pip
PYTHON = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
SHOWN = 3000  # characters of what a command that failed has said


@proof("1.1")
def demo() -> Outcome:
    """Clone, run both demos twice and the tests once, then the demo from the wheel."""
    orders = Path(os.environ.get(ORDERS, CHECKOUT.parent / "shared" / "data" / "northwind"))
    if not (orders / "orders.csv").exists():
        raise FileNotFoundError(f"there is no orders.csv in {orders}; set {ORDERS}")
    with tempfile.TemporaryDirectory(
        prefix="outbox-saga-clone-", ignore_cleanup_errors=True
    ) as folder:
        clone = Clone(Path(folder))
        options = ("--orders", str(orders.resolve()), "--kill", KILLS, "--json")
        runs = {
            "sqlite": clone.demo(*options),
            "postgres_nats": clone.demo("--postgres", "--nats", *options),
            "sqlite_warm": clone.demo(*options),
            "postgres_nats_warm": clone.demo("--postgres", "--nats", *options),
        }
        tests = clone.dev("test", "--require-services", "-q")
        wheel = clone.demo_from_wheel()
    return Outcome(
        ok=all(run["ok"] and run["figures"]["refunds"] > 0 for run in runs.values())
        and tests["exit"] == 0
        and wheel["ok"],
        measured={
            "commit": clone.commit,
            "processors": os.cpu_count(),
            "runs": runs,
            "test": tests,
            "wheel": wheel,
        },
    )


class Clone:
    """The checkout's last commit in a folder of its own.

    Args:
        folder: Empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "clone"
        subprocess.run(
            ["git", "clone", "--quiet", "--no-hardlinks", str(CHECKOUT), str(self._path)],
            check=True,
        )
        said = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=self._path,
            capture_output=True,
            text=True,
            check=True,
        )
        self.commit = said.stdout.strip()
        # of the environment this proof runs in, the clone shall know nothing but the index
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("UV", "VIRTUAL_ENV", "PYTHON"))
            or name in ("UV_DEFAULT_INDEX", "UV_SYSTEM_CERTS")
        } | {"UV_CACHE_DIR": str(folder / "cache")}

    def dev(self, *arguments: str) -> dict[str, Any]:
        """Runs ./dev; its exit code, how long it took, and what it said last."""
        say(f"./dev {' '.join(arguments)}")
        started = time.monotonic()
        done = subprocess.run(
            [str(PYTHON), "dev", *arguments],
            cwd=self._path,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            text=True,
            check=False,
        )
        return {
            "exit": done.returncode,
            "wall_seconds": round(time.monotonic() - started, 1),
            "said": done.stdout[-SHOWN:] if done.returncode else done.stdout.splitlines()[-1:],
        }

    def demo(self, *options: str) -> dict[str, Any]:
        """Runs `./dev demo … --json` and reads what it prints."""
        run = self.dev("demo", *options)
        figures = json.loads(run["said"][0]) if run["exit"] == 0 else {}
        return {
            "ok": run["exit"] == 0 and all(check["ok"] for check in figures["checks"]),
            "wall_seconds": run["wall_seconds"],
            "figures": figures or {"refunds": 0, "said": run["said"]},
        }

    def demo_from_wheel(self) -> dict[str, Any]:
        """Builds the clone's wheel, installs it where nothing else is, runs its demo."""
        say("the wheel in an empty environment: outbox-saga demo")
        dist = self._folder / "dist"
        uv("build", "--quiet", "--out-dir", str(dist), str(self._path))
        (wheel,) = dist.glob("*.whl")
        installed = Installation(self._folder / "empty", wheel, extras="[demo]")
        started = time.monotonic()
        figures = json.loads(installed.run(str(installed.script), "demo", "--json"))
        return {
            "ok": all(check["ok"] for check in figures["checks"]),
            "wall_seconds": round(time.monotonic() - started, 1),
            "figures": figures,
        }
