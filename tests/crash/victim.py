"""A process that kills itself at a point.

`python -m tests.crash.victim DATABASE URL BARE FOLDER OPERATION POINT`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from outbox_saga.testing.crash_points import CrashPoints
from tests.crash.operation import Operation
from tests.crash.operations import OPERATIONS
from tests.crash.process import Process
from tests.crash.world import World


async def _run(operation: Operation, process: Process) -> None:
    await operation.run(process)


def main() -> None:
    """Runs the operation on what is prepared already, and dies."""
    name, url, bare, folder, operation, at = sys.argv[1:]
    points = CrashPoints(int(at), kill=lambda: os.kill(os.getpid(), signal.SIGKILL))
    chosen = OPERATIONS[operation]
    world = World(name, url, Path(folder), bare)
    process = Process(world, points, **chosen.memory())
    asyncio.run(_run(chosen, process))
    sys.exit(f"came to {points.count} points only")


if __name__ == "__main__":
    main()
