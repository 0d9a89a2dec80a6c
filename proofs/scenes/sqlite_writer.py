"""One process that writes to a SQLite file to which others write at the same time.

`python -m proofs.scenes.sqlite_writer URL TRANSACTIONS sync|async`. Each transaction reads,
then writes, then publishes. No error is caught, none of the units is repeated. In the end it
prints the longest that a transaction took, and how long all of them, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import sessionmaker

from outbox_saga.database import Database
from outbox_saga.messages import Event
from outbox_saga.unit_of_work import unit_of_work
from proofs.scenes.world import intended

KEY = "counter"
READ = sa.text("select n from scene_counter")
WRITE = sa.text("update scene_counter set n = :n")


class Counted(Event, topic="talk"):
    """The number that the counter had."""

    number: int


def body(number: int) -> bytes:
    """Of such a message."""
    return b'{"number":%d}' % number


def write(database: Database, number: int) -> None:
    """One transaction of a Session."""
    with unit_of_work(sessionmaker(database.engine)) as uow:
        count = uow.session.execute(READ).scalar_one() + 1
        uow.session.execute(WRITE, {"n": count})
        key = KEY if number % 2 else None
        id_ = uow.publish(Counted(number=count), key=key)
        uow.session.execute(intended(id_, key, body(count)))


async def write_async(database: Database, number: int) -> None:
    """One transaction of an AsyncSession."""
    async with unit_of_work(async_sessionmaker(database.async_engine)) as uow:
        count = (await uow.session.execute(READ)).scalar_one() + 1
        await uow.session.execute(WRITE, {"n": count})
        key = KEY if number % 2 else None
        id_ = uow.publish(Counted(number=count), key=key)
        await uow.session.execute(intended(id_, key, body(count)))


async def main() -> None:
    """All of its transactions, one after the other."""
    url, transactions, kind = sys.argv[1:]
    database = Database(url)
    took: list[float] = []
    for number in range(int(transactions)):
        began = time.monotonic()
        if kind == "async":
            await write_async(database, number)
        else:
            write(database, number)
        took.append(time.monotonic() - began)
    found: dict[str, Any] = {"longest": max(took), "all": sum(took)}
    print(json.dumps(found))
    await database.close()


if __name__ == "__main__":
    asyncio.run(main())
