"""Where files may lie that need not outlive the machine: in memory, if it has plenty."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

_TMPFS = Path("/dev/shm")
_CGROUP = Path("/sys/fs/cgroup")
ROOM = 8 * 1024**3  # bytes that have to be free: servers of several test processes fit into half


def folder_in_memory() -> Path | None:
    """A folder for temporary directories whose files are in memory; None: take the usual one.

    What is written there survives every process, and nothing there waits for a disk. `TMPDIR`, if
    it is set, is heeded: then it is None.
    """
    if os.environ.get("TMPDIR") or not os.access(_TMPFS, os.W_OK | os.X_OK):
        return None
    return _TMPFS if min(shutil.disk_usage(_TMPFS).free, _available()) >= ROOM else None


def _available() -> int:
    """Bytes of memory that programs can have yet; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    kilobytes = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return min(int(next(kilobytes, "0")) * 1024, _left_to_the_container())


def _left_to_the_container() -> int:
    """Bytes by its own limit, if it has one (cgroup v2, as seen from inside)."""
    try:
        limit, used = (
            (_CGROUP / f"memory.{name}").read_text("ascii") for name in ("max", "current")
        )
        return int(limit) - int(used)
    except (OSError, ValueError):  # none is set ("max"), or it is told elsewhere
        return sys.maxsize
