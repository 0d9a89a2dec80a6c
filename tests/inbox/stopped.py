"""A process that tries what waits, once, and says what it does.

    python stopped.py DATABASE_URL

It says "inside" when its handler has begun, waits for a line, and says "ended" at its end.
"""

from __future__ import annotations

import asyncio
import sys

from outbox_saga import HandlerContext, Service
from tests.inbox.processes import LISTENER, note
from tests.relay.house import Said


async def main(url: str) -> None:
    service = Service("shop", database=url)

    @service.on(Said, consumer=LISTENER, timeout=1.0)
    async def slow(handle: HandlerContext[Said]) -> None:
        await note(handle)
        sys.stdout.write("inside\n")
        sys.stdout.flush()
        sys.stdin.readline()  # stands still with all its tasks, as a stopped process does

    await service.waiting_room().run_once()
    await service.close()
    sys.stdout.write("ended\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
