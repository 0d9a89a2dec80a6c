"""Facts about the built wheel, found by installing it where nothing else is installed."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What service code pays for anyway, and what it is compared with.
PAID_ANYWAY = "import sqlalchemy, sqlalchemy.orm, pydantic"

# `import outbox_saga` alone loads names on first use; what service code pays is all of them.
EVERY_NAME = "from outbox_saga import *"

# None of these may be loaded by any public name of the library.
NOT_LOADED = (
    "aio_pika",
    "aiosqlite",
    "alembic",
    "asyncmy",
    "click",
    "confluent_kafka",
    "httpx2",
    "nats",
    "psycopg",
    "pymysql",
    "redis",
    "rich",
    "starlette",
)


def uv(*arguments: str) -> str:
    """Run uv, as whatever runs these tests did (it says so in $UV)."""
    program = os.environ.get("UV") or shutil.which("uv")
    if program is None:
        raise FileNotFoundError("uv is neither in $UV nor on PATH: run this through ./dev")
    done = subprocess.run(
        [program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"uv {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}"
        )
    return done.stdout


def build(folder: Path) -> Path:
    """Build the sdist, and the wheel from it, into the folder; the wheel's path."""
    uv("build", "--quiet", "--out-dir", str(folder))
    (wheel,) = folder.glob("*.whl")
    return wheel


class Installation:
    """An environment that holds one wheel with its dependencies, and nothing else."""

    def __init__(self, folder: Path, wheel: Path, *, extras: str = "") -> None:
        self.folder = folder
        uv("venv", "--quiet", "--python", sys.executable, str(folder))
        binaries = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = binaries / "python"
        self.script = binaries / "outbox-saga"
        uv("pip", "install", "--quiet", "--python", str(self.python), f"{wheel}{extras}")

    def run(self, *command: str) -> str:
        """Run a command outside the checkout, which must not be found by accident."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr}")
        return done.stdout.strip()

    def evaluate(self, code: str) -> str:
        """What that code prints, without anything that the user's settings might add."""
        return self.run(str(self.python), "-I", "-c", code)

    def files(self) -> list[str]:
        """Every file that our distribution has installed."""
        listing = "import importlib.metadata as m; print(*m.files('outbox-saga'), sep='\\n')"
        return self.evaluate(listing).splitlines()

    def loaded(self, code: str) -> set[str]:
        """The top-level modules that are loaded after that code."""
        code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
        return set(self.evaluate(code).split())

    def import_times(self, *codes: str, rounds: int = 15) -> list[float]:
        """The median seconds of each code in a process of its own, run in turns.

        In turns, so that whatever slows the machine down for a while slows all of them down.
        """
        timed = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
        samples: list[list[float]] = [[] for _ in codes]
        for round_ in range(rounds + 1):
            for code, times in zip(codes, samples, strict=True):
                seconds = float(self.evaluate(timed.format(code)))
                if round_:  # the first one compiles and warms the disk's cache
                    times.append(seconds)
        return [statistics.median(times) for times in samples]
