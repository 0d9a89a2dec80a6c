"""Writes at a steady pace and says how long each transaction took, as JSON, in milliseconds.

`python -m proofs.peril.producer DATABASE_URL NAME SECONDS A_SECOND`. A transaction is one insert
into the service's own table and one keyed message. It waits for a lock for two seconds at most,
so that an error 1205 (lock wait timeout) shows. It says "ready" once it is connected, and begins
when it is sent a line.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from outbox_saga.database import Database
from outbox_saga.queries.dialects import errno
from outbox_saga.unit_of_work import UnitOfWork
from proofs.scenes.world import TOPIC, TYPE, intended

KEYS = 2000
LOCK_WAIT = 2  # seconds


def main() -> None:
    """For so long."""
    url, name, seconds, rate = sys.argv[1:]
    database = Database(url, pool_size=1, hints=False)

    @event.listens_for(database.engine, "connect")
    def connected(connection: object, _record: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]  # the driver's own
        cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {LOCK_WAIT}")
        cursor.close()

    chance = random.Random(name)
    took: list[float] = []
    errors: Counter[str] = Counter()
    with database.engine.connect():
        pass  # connected
    print("ready", flush=True)
    sys.stdin.readline()
    began = due = time.perf_counter()
    while due < began + float(seconds):
        due += chance.expovariate(float(rate))
        time.sleep(max(0.0, due - time.perf_counter()))
        key = f"key{chance.randrange(KEYS)}"
        body = b'{"n":%d}' % len(took)
        start = time.perf_counter()
        try:
            with database.begin() as connection:
                id_ = UnitOfWork(connection).publish_body(body, topic=TOPIC, type=TYPE, key=key)
                connection.execute(intended(id_, key, body))
        except DBAPIError as error:
            errors[str(errno(error.orig))] += 1
        else:
            took.append(time.perf_counter() - start)
    print(json.dumps({"took": [round(s * 1000, 3) for s in took], "errors": errors}))
    database.dispose()


if __name__ == "__main__":
    main()
