"""One writer: commits numbered events of keys that others write to as well.

`python -m proofs.chaos.writer URL NAME EVENTS KEYS ONE_IN SEED`. The number of an event of a key
is taken under a row lock that lasts until the commit, so numbers are in the order of commits. One
commit in so many stands still between the outbox insert and COMMIT. Some transactions are rolled
back, before anything of theirs was written or between that insert and COMMIT; their events say so.
In the end it prints how many of each there were, as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from outbox_saga.database import Database
from outbox_saga.messages import Event
from outbox_saga.queries.dialects import is_transient
from outbox_saga.unit_of_work import UnitOfWork

PAUSE = 3.0  # seconds at most
ROLLED_BACK = 0.03  # of all transactions, before the insert; as many after it

metadata = sa.MetaData()
counter = sa.Table(
    "chaos_counter",
    metadata,
    sa.Column("key", sa.String(40), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
)
said = sa.Table(  # what was said, in the transaction that says it
    "chaos_said",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("key", sa.String(40), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
)


class Counted(Event, topic="chaos"):
    """The `number`th event of this key; `doomed`: its transaction is rolled back."""

    key: str
    number: int
    doomed: bool


class _Doomed(Exception):
    """This transaction must not commit."""


class Ends:
    """What becomes of transactions when everything is sent but the COMMIT.

    Args:
        one_in: One in so many stands still for a while.
    """

    def __init__(self, engine: sa.Engine, chance: random.Random, one_in: int) -> None:
        self.doomed = False  # the next one
        self.paused = 0
        self._chance = chance
        self._one_in = one_in
        self._commit = engine.dialect.do_commit
        setattr(engine.dialect, "do_commit", self._do_commit)  # noqa: B010 - a seam, not an override

    def _do_commit(self, connection: Any) -> None:
        if self._chance.randrange(self._one_in) == 0:
            self.paused += 1
            time.sleep(self._chance.uniform(0, PAUSE))
        if self.doomed:
            raise _Doomed
        self._commit(connection)


def take_number(connection: sa.Connection, key: str, most: int) -> int | None:
    """The next number of this key, whose row stays locked; None when it has had all."""
    row = sa.select(counter.c.number).where(counter.c.key == key).with_for_update()
    number: int = connection.execute(row).scalar_one()
    if number == most:
        return None
    connection.execute(sa.update(counter).where(counter.c.key == key).values(number=number + 1))
    return number + 1


def say(
    connection: sa.Connection,
    uow: UnitOfWork[sa.Connection],
    key: str,
    number: int,
    *,
    doomed: bool,
) -> None:
    """The event, and the row that says it was."""
    id_ = uow.publish(Counted(key=key, number=number, doomed=doomed), key=key)
    connection.execute(sa.insert(said).values(id=str(id_), key=key, number=number))


def main() -> None:
    """Writes until every key has all its events."""
    url, name, each, keys, one_in, seed = sys.argv[1:]
    chance = random.Random(f"{seed} {name}")
    database = Database(url, pool_size=1, hints=False)
    ends = Ends(database.engine, chance, int(one_in))
    count: Counter[str] = Counter()
    left = [f"key{n}" for n in range(int(keys))]
    while left:
        # two keys now and then, in one order: the numbers' rows are locked until the commit
        wanted = sorted(chance.sample(left, min(len(left), chance.choice((1, 1, 2)))))
        fate = chance.random() / ROLLED_BACK
        early, ends.doomed = fate < 1, 1 <= fate < 2
        done = []
        try:
            with database.begin() as connection:
                uow = UnitOfWork(connection, source=f"writer-{name}")
                for key in wanted:
                    number = take_number(connection, key, int(each))
                    if number is None:
                        done.append(key)
                    else:
                        say(connection, uow, key, number, doomed=early or ends.doomed)
                if early:
                    raise _Doomed  # noqa: TRY301 - as service code does
        except _Doomed:
            if len(done) < len(wanted):
                count["rolled back before the insert" if early else "rolled back after it"] += 1
        except DBAPIError as error:
            if not is_transient(error):
                raise
            count["transient errors"] += 1
        else:
            count["committed"] += len(done) < len(wanted)
            left = [key for key in left if key not in done]
    print(json.dumps({**count, "paused before COMMIT": ends.paused}))


if __name__ == "__main__":
    main()
