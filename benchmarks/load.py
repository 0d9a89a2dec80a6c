"""Whose CPU time it was: ours (this process and all below it, servers too) or somebody else's.

Linux only, from /proc; elsewhere the foreign load is not known, and the output says so. Interrupt
time is counted for nobody, kernel threads for us: they write what our servers wrote.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_PROC = Path("/proc")
_TICKS = float(os.sysconf("SC_CLK_TCK")) if hasattr(os, "sysconf") else 100.0
_KERNEL_THREADS = 2  # the process id of their parent


@dataclass(frozen=True, slots=True)
class _Counters:
    at: float
    everybody: float
    kernel: float
    ours: float


def _read() -> _Counters | None:
    try:
        first = (_PROC / "stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return None
    user, nice, system = (int(field) for field in first.split()[1:4])
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            pid = int(entry.name)
            parents[pid] = int(fields[1])
            # user and system time, its own and that of the children it has waited for
            seconds[pid] = sum(int(field) for field in fields[11:15]) / _TICKS
    family = [os.getpid()]
    for pid in family:  # grows while it is read
        family += [child for child, parent in parents.items() if parent == pid]
    kernel = [pid for pid, parent in parents.items() if parent == _KERNEL_THREADS]
    return _Counters(
        at=time.monotonic(),
        everybody=(user + nice + system) / _TICKS,
        kernel=sum(seconds[pid] for pid in kernel),
        ours=sum(seconds[pid] for pid in family),
    )


class Watch:
    """The CPU time that was used while the block ran.

    Attributes:
        ours: Seconds used by this process and everything below it; None where that is not known.
        foreign: Cores that others kept busy, on average; None where that is not known.
    """

    def __init__(self) -> None:
        self.ours: float | None = None
        self.foreign: float | None = None
        self._before: _Counters | None = None

    def __enter__(self) -> Self:
        self._before = _read()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        before, after = self._before, _read()
        if before is None or after is None:
            return
        self.ours = after.ours - before.ours
        known = self.ours + after.kernel - before.kernel
        others = after.everybody - before.everybody - known
        self.foreign = max(0.0, others) / max(after.at - before.at, 1e-9)


def foreign_load(seconds: float = 0.2) -> float | None:
    """Cores that others keep busy just now; None where that is not known."""
    with Watch() as watch:
        time.sleep(seconds)
    return watch.foreign


def wait_for_quiet(limit: float, patience: float) -> float | None:
    """The foreign load, as soon as it is below `limit` cores or patience (seconds) has run out."""
    deadline = time.monotonic() + patience
    while True:
        load = foreign_load()
        if load is None or load < limit or time.monotonic() > deadline:
            return load
        time.sleep(0.3)
