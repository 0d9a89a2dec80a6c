"""One writer: commits numbered events of keys that others write to as well.

`python -m proofs.chaos.writer URL NAME EVENTS KEYS ONE_IN SEED`. An event of a key gets its number
after its outbox row was written, under a row lock that lasts until the commit: numbers are in the
order of commits whether or not the outbox rows are, and nothing of the harness makes writers of
one key wait for each other before that. One commit in so many stands still between the outbox
insert and COMMIT, before or after it takes its numbers. Some transactions are rolled back, before
anything of theirs was written or between that insert and COMMIT; their events say so. In the end
it prints how many of each there were, as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from outbox_saga.database import Database
from outbox_saga.messages import Event
from outbox_saga.queries.dialects import is_transient
from outbox_saga.unit_of_work import UnitOfWork

PAUSE = 3.0  # seconds at most
HALF = 0.5
ROLLED_BACK = 0.03  # of all transactions, before the insert; as many after it

metadata = sa.MetaData()
counter = sa.Table(
    "chaos_counter",
    metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
)
said = sa.Table(  # what was said, in the transaction that says it
    "chaos_said",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(40), nullable=False),  # of the key
    sa.Column("number", sa.Integer, nullable=False),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
)


class Counted(Event, topic="chaos"):
    """One more event of this key; `doomed`: its transaction is rolled back."""

    key: str
    doomed: bool


class _Doomed(Exception):
    """This transaction must not commit."""


class Ends:
    """What becomes of transactions when everything is sent but the COMMIT.

    Args:
        one_in: One in so many stands still for a while.
        most: Events of a key.
    """

    def __init__(self, engine: sa.Engine, chance: random.Random, one_in: int, most: int) -> None:
        self.doomed = False  # the next one
        self.published: list[tuple[str, str]] = []  # by the next one: key and id
        self.paused = 0
        self._chance = chance
        self._one_in = one_in
        self._most = most
        self._commit = engine.dialect.do_commit
        setattr(engine.dialect, "do_commit", self._do_commit)  # noqa: B010 - a seam, not an override

    def _do_commit(self, connection: Any) -> None:
        if self.published:
            pauses = self._chance.randrange(self._one_in) == 0
            late = self._chance.random() < HALF
            if pauses and not late:
                self._pause()
            for key, id_ in self.published:
                self._number(connection, key, id_)
            if pauses and late:
                self._pause()
            if self.doomed:
                raise _Doomed
        self._commit(connection)

    def _pause(self) -> None:
        self.paused += 1
        time.sleep(self._chance.uniform(0, PAUSE))

    def _number(self, connection: Any, key: str, id_: str) -> None:
        """The next number of this key, whose row stays locked, is this event's."""
        with connection.cursor() as cursor:
            cursor.execute("UPDATE chaos_counter SET number = number + 1 WHERE name = %s", (key,))
            cursor.execute("SELECT number FROM chaos_counter WHERE name = %s", (key,))
            (number,) = cursor.fetchone()
            if number > self._most:
                raise _Doomed  # others were faster
            values = (id_, key, number)
            cursor.execute("INSERT INTO chaos_said (id, name, number) VALUES (%s, %s, %s)", values)


def main() -> None:
    """Writes until every key has all its events."""
    url, name, each, keys, one_in, seed = sys.argv[1:]
    chance = random.Random(f"{seed} {name}")
    database = Database(url, pool_size=1, hints=False)
    ends = Ends(database.engine, chance, int(one_in), int(each))
    count: Counter[str] = Counter()
    left = [f"key{n}" for n in range(int(keys))]
    while left:
        # two keys now and then, in one order: the numbers' rows are locked until the commit
        wanted = sorted(chance.sample(left, min(len(left), chance.choice((1, 1, 2)))))
        fate = chance.random() / ROLLED_BACK
        early, ends.doomed = fate < 1, 1 <= fate < 2
        ends.published = []
        try:
            with database.begin() as connection:
                uow = UnitOfWork(connection, source=f"writer-{name}")
                full = _full(connection, int(each), wanted)
                for key in wanted:
                    if key not in full:
                        event = Counted(key=key, doomed=early or ends.doomed)
                        ends.published.append((key, str(uow.publish(event, key=key))))
                if early:
                    raise _Doomed  # noqa: TRY301 - as service code does
        except _Doomed:
            count["rolled back before the insert" if early else "rolled back after it"] += 1
        except DBAPIError as error:
            if not is_transient(error):
                raise
            count["transient errors"] += 1
        else:
            count["committed"] += bool(ends.published)
            left = [key for key in left if key not in full]
    print(json.dumps({**count, "paused before COMMIT": ends.paused}))


def _full(connection: sa.Connection, most: int, wanted: Sequence[str]) -> set[str]:
    """Those of these keys that have all their events."""
    full = counter.c.number >= most
    return set(
        connection.scalars(sa.select(counter.c.name).where(counter.c.name.in_(wanted), full))
    )


if __name__ == "__main__":
    main()
