"""Commits one message for each line it is given, and says which one and when the commit returned.

`python -m proofs.latency.writer DATABASE_URL hints|none`. The moment is the machine's monotonic
clock, which all its processes share.
"""

from __future__ import annotations

import sys
import time

from sqlalchemy.orm import sessionmaker

from outbox_saga.database import Database
from outbox_saga.messages import Event
from outbox_saga.unit_of_work import unit_of_work


class Tick(Event, topic="ticks"):
    """What is published."""

    number: int


def main() -> None:
    """Until its input ends."""
    url, hints = sys.argv[1:]
    database = Database(url, hints=hints == "hints")
    sessions = sessionmaker(database.engine)
    for line in sys.stdin:
        with unit_of_work(sessions) as uow:
            id_ = uow.publish(Tick(number=int(line)), key="tick")
        print(id_, time.monotonic_ns(), flush=True)
    database.dispose()


if __name__ == "__main__":
    main()
