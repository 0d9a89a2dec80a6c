"""How much memory a relay's process has while it drains a backlog.

*Flat* means that the most it has in the last quarter of its work is at most a tenth above the most
in the second quarter: the first one fills what is kept for later, and is left out. It is no way
out, either, for the most of the whole life has a bound in megabytes.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOOK = 0.02  # seconds between two looks
MOST = 200.0  # MB: the bar
FLAT = 1.1  # of the second quarter's most, in the last one


@dataclass(slots=True)
class Memory:
    """What one process had, in MB, from the moment it was at work until it was through.

    Attributes:
        most: At once, over its whole life, as the kernel counted it.
        looks: (moment, resident) while it was looked at.
    """

    most: float = 0.0
    looks: list[tuple[float, float]] = field(default_factory=list)

    def quarters(self) -> list[float]:
        """The most in each quarter of the time between the first and the last look."""
        if not self.looks:
            return []
        began, ended = self.looks[0][0], self.looks[-1][0]
        found = [0.0] * 4
        for moment, size in self.looks:
            number = min(3, int(4 * (moment - began) / max(ended - began, 1e-9)))
            found[number] = max(found[number], size)
        return [round(size, 1) for size in found]

    @property
    def is_flat(self) -> bool:
        """As this module says."""
        quarters = self.quarters()
        return bool(quarters) and 0 < quarters[3] <= FLAT * quarters[1]

    @property
    def meets_the_bar(self) -> bool:
        """Below the bound, and flat."""
        return 0 < self.most < MOST and self.is_flat

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "most MB": round(self.most, 1),
            "most MB by quarter of the time": self.quarters(),
            "looks": len(self.looks),
            "flat": self.is_flat,
            "below the bound": 0 < self.most < MOST,
        }


@contextmanager
def watched(process: subprocess.Popen[bytes]) -> Iterator[Memory]:
    """Looks at the process until the block ends or the process does."""
    found, over = Memory(), threading.Event()

    def look() -> None:
        while not over.wait(LOOK) and (seen := _resident(process.pid)) is not None:
            found.looks.append((time.monotonic(), seen[0]))
            found.most = max(found.most, seen[1])

    watch = threading.Thread(target=look, name="memory")
    watch.start()
    try:
        yield found
    finally:
        over.set()
        watch.join()


def _resident(pid: int) -> tuple[float, float] | None:
    """What it has now, and the most it has ever had; None once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    told = dict(line.split(":", 1) for line in lines)
    if "VmRSS" not in told:  # it has ended, and nobody has waited for it yet
        return None
    return int(told["VmRSS"].split()[0]) / 1024, int(told["VmHWM"].split()[0]) / 1024


@contextmanager
def program(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program of ours; it is gone when the block ends."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
