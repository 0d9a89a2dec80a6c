"""A real orchestrator process.

`python -m tests.crash.orchestrating DATABASE URL FOLDER SAGA POINT`.

It says `ready` when it has connected, and begins at the line it is sent. At its POINT it stops
itself by SIGSTOP; when it is
continued it goes on with what it was doing, looks for more, and says how many points it came to.
With POINT 0 it never
stops, and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from outbox_saga.saga.orchestrator import Orchestrator
from outbox_saga.testing.crash_points import CrashPoints
from tests.crash.process import Process
from tests.crash.world import World

LEASE = 2.0
POLL = 0.05


async def orchestrate(process: Process, stops: bool) -> None:
    """Until the end of standard input.

    Or, if it stops on the way, until it has gone idle after that.
    """
    database = process.database
    async with database.async_engine.connect():
        pass
    orchestrator = Orchestrator(database, process.shop.sagas.values(), lease=LEASE, poll=POLL)
    _say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    process.points.names.clear()
    if not stops:
        stop = asyncio.Event()
        running = asyncio.create_task(orchestrator.run(stop))
        await asyncio.to_thread(sys.stdin.read)
        stop.set()
        await running
    else:
        reached = process.points.at or 0
        while process.points.count < reached:
            await orchestrator.run_once()
        for _ in range(3):  # whatever it still believes it has to do
            await orchestrator.run_once()
    orchestrator.close()
    await database.close()
    _say(str(process.points.count))


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def main() -> None:
    """Reads the command line."""
    name, url, folder, saga, at = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    stops = int(at) > 0
    points = CrashPoints(int(at) or None, kill=lambda: os.kill(os.getpid(), signal.SIGSTOP))
    process = Process(World(name, url, Path(folder)), points, sagas=(saga,))
    asyncio.run(orchestrate(process, stops))


if __name__ == "__main__":
    main()
