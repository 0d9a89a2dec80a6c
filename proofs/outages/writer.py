"""One writer: so many numbered events, evenly over so many seconds.

`python -m proofs.outages.writer URL EVENTS SECONDS SEED`. Its transactions write events of several
keys, which others write to as well; the number of an event is taken under a row lock that lasts
until the commit, so numbers are in the order of commits. One transaction in so many is rolled
back; its events say so, and do not count. In the end it prints what there was, as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.messages import Event
from outbox_saga.unit_of_work import UnitOfWork

AT_ONCE = 10  # events of a transaction, each of another key
ROLLED_BACK_ONE_IN = 50

metadata = sa.MetaData()
counter = sa.Table(
    "outages_counter",
    metadata,
    sa.Column("key", sa.String(40), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
)
said = sa.Table(  # what was said, in the transaction that says it
    "outages_said",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("key", sa.String(40), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
)


class Numbered(Event, topic="numbered"):
    """The `number`th event of this key; `doomed`: its transaction is rolled back."""

    key: str
    number: int
    doomed: bool


class _Doomed(Exception):
    """This transaction must not commit."""


def prepare(database: Database, keys: int) -> None:
    """The writers' own tables."""
    with database.begin() as connection:
        metadata.create_all(connection)
        rows = [{"key": f"key{n}", "number": 0} for n in range(keys)]
        connection.execute(sa.insert(counter), rows)


def _write(connection: sa.Connection, keys: list[str], *, doomed: bool) -> None:
    """The next event of each of these keys."""
    rows = counter.c.key.in_(keys)
    # all lock in one order
    asked = sa.select(counter).where(rows).order_by(counter.c.key).with_for_update()
    numbers = {row.key: row.number + 1 for row in connection.execute(asked)}
    connection.execute(sa.update(counter).where(rows).values(number=counter.c.number + 1))
    uow = UnitOfWork(connection)
    notes = []
    for key, number in numbers.items():
        id_ = uow.publish(Numbered(key=key, number=number, doomed=doomed), key=key)
        notes.append({"id": str(id_), "key": key, "number": number})
    connection.execute(sa.insert(said), notes)
    if doomed:
        raise _Doomed


def main() -> None:
    """Writes until all are committed."""
    url, events, seconds, seed = sys.argv[1:]
    chance = random.Random(seed)
    database = Database(url, pool_size=1)
    with database.engine.connect() as connection:
        keys = list(connection.scalars(sa.select(counter.c.key).order_by(counter.c.key)))
    committed = rolled_back = 0
    began, latest = time.monotonic(), 0.0
    while committed < int(events):
        due = began + committed / int(events) * float(seconds)
        time.sleep(max(0.0, due - time.monotonic()))
        latest = max(latest, time.monotonic() - due)
        some = chance.sample(keys, min(AT_ONCE, int(events) - committed))
        doomed = chance.randrange(ROLLED_BACK_ONE_IN) == 0
        try:
            with database.begin() as connection:
                _write(connection, some, doomed=doomed)
        except _Doomed:
            rolled_back += len(some)
        else:
            committed += len(some)
    told = {"committed": committed, "rolled_back": rolled_back, "latest": round(latest, 2)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
