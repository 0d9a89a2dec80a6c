"""One relay, in a process of its own, whose broker accepts everything at once.

`python -m proofs.backlogs.relay_program DATABASE_URL ROWS` ends after so many rows.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from outbox_saga.database import Database
from outbox_saga_relay.relay import Relay
from proofs.backlogs.draining import Counting


def main() -> None:
    """Until the last row has been removed."""
    url, rows = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    broker = Counting(int(rows))
    asyncio.run(Relay(Database(url, pool_size=2), broker).run(broker.done))


if __name__ == "__main__":
    main()
