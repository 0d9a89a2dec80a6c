"""One writer: commits numbered events of keys that others write to as well.

`python -m proofs.chaos.writer URL NAME EVENTS KEYS ONE_IN SEED`. The number of an event of a key
is taken under a row lock that lasts until the commit, so numbers are in the order of commits. One
commit in so many stands still between the outbox insert and COMMIT.
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from outbox_saga.database import Database
from outbox_saga.messages import Event
from outbox_saga.queries.dialects import is_transient
from outbox_saga.unit_of_work import UnitOfWork

PAUSE = 3.0  # seconds at most

counter = sa.Table(
    "chaos_counter",
    sa.MetaData(),
    sa.Column("key", sa.String(40), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
)


class Counted(Event, topic="chaos"):
    """The `number`th event of this key."""

    key: str
    number: int


def pause_before_commit(engine: sa.Engine, chance: random.Random, one_in: int) -> None:
    """Everything is sent but the COMMIT, and then nothing happens for a while."""
    commit = engine.dialect.do_commit

    def do_commit(connection: Any) -> None:
        if chance.randrange(one_in) == 0:
            time.sleep(chance.uniform(0, PAUSE))
        commit(connection)

    setattr(engine.dialect, "do_commit", do_commit)  # noqa: B010 - a seam, not an override


def take_number(connection: sa.Connection, key: str, most: int) -> int | None:
    """The next number of this key, whose row stays locked; None when it has had all."""
    row = sa.select(counter.c.number).where(counter.c.key == key).with_for_update()
    number: int = connection.execute(row).scalar_one()
    if number == most:
        return None
    connection.execute(sa.update(counter).where(counter.c.key == key).values(number=number + 1))
    return number + 1


def main() -> None:
    """Writes until every key has all its events."""
    url, name, each, keys, one_in, seed = sys.argv[1:]
    chance = random.Random(f"{seed} {name}")
    database = Database(url, pool_size=1, hints=False)
    pause_before_commit(database.engine, chance, int(one_in))
    left = [f"key{n}" for n in range(int(keys))]
    while left:
        # two keys now and then, in one order: the numbers' rows are locked until the commit
        wanted = sorted(chance.sample(left, min(len(left), chance.choice((1, 1, 2)))))
        done = []
        try:
            with database.begin() as connection:
                uow = UnitOfWork(connection, source=f"writer-{name}")
                for key in wanted:
                    number = take_number(connection, key, int(each))
                    if number is None:
                        done.append(key)
                    else:
                        uow.publish(Counted(key=key, number=number), key=key)
        except DBAPIError as error:
            if not is_transient(error):
                raise
        else:
            left = [key for key in left if key not in done]


if __name__ == "__main__":
    main()
