"""Write path: what publishing costs the transaction that publishes.

The floor is a transaction as services write it with the ORM: `session.get`, one attribute changed,
one `session.add`, commit. The candidates are the same with messages published in it.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from benchmarks import databases
from benchmarks.clients import Clients, MakeClient, clients
from benchmarks.measuring import Effort, Group, Sample, Variant, compare
from outbox_saga.database import Database
from outbox_saga.messages import Event
from outbox_saga.tables import tables_in
from outbox_saga.unit_of_work import UnitOfWork

NAME = "write path"
UNIT = "transactions/s"
ACCOUNTS = 10_000
FLOOR = "no message"
#: name -> (messages, keyed)
PUBLISHING = {
    "one keyed event": (1, True),
    "one event without key": (1, False),
    "three keyed events": (3, True),
}
_NOTE = "x" * 400  # the body then has about 500 bytes


class Base(DeclarativeBase):
    """The business's own tables."""


class Account(Base):
    """The row that every transaction reads and changes."""

    __tablename__ = "bench_account"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    balance: Mapped[int] = mapped_column(sa.BigInteger)


class Order(Base):
    """The row that every transaction adds."""

    __tablename__ = "bench_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[int]
    amount: Mapped[int]
    note: Mapped[str] = mapped_column(sa.String(40))


class OrderPlaced(Event, topic="orders"):
    """What is published: about 500 bytes."""

    account: int
    amount: int
    currency: str
    note: str


def _publish(session: Session | AsyncSession, account: int, amount: int, variant: str) -> None:
    messages, keyed = PUBLISHING[variant]
    uow = UnitOfWork(session)
    for _ in range(messages):
        uow.publish(
            OrderPlaced(account=account, amount=amount, currency="EUR", note=_NOTE),
            key=f"account:{account}" if keyed else None,
        )


class SyncClient:
    """One connection, one transaction after the other."""

    def __init__(self, url: str, number: int) -> None:
        self._engine = Database(url, pool_size=1).engine
        self._sessions = sessionmaker(self._engine)
        self._random = random.Random(number)

    def run(self, variant: str, until: float) -> int:
        """One transaction after the other until that moment."""
        count = 0
        while time.monotonic() < until:
            self._transaction(variant, count)
            count += 1
        return count

    def _transaction(self, variant: str, amount: int) -> None:
        number = self._random.randrange(ACCOUNTS)
        with self._sessions() as session:
            account = session.get_one(Account, number)
            account.balance += amount
            session.add(Order(account_id=number, amount=amount, note="bench"))
            if variant != FLOOR:
                _publish(session, number, amount, variant)
            session.commit()

    def close(self) -> None:
        """Disconnects."""
        self._engine.dispose()


class AsyncClient:
    """One event loop; as many tasks as there are clients, each on a connection of its own."""

    def __init__(self, url: str, number: int, *, tasks: int) -> None:
        self._runner = asyncio.Runner()
        self._engine = Database(url, pool_size=tasks).async_engine
        self._sessions = async_sessionmaker(self._engine)
        self._random = random.Random(number)
        self._tasks = tasks

    def run(self, variant: str, until: float) -> int:
        """All tasks, one transaction after the other each, until that moment."""
        return self._runner.run(self._all(variant, until))

    async def _all(self, variant: str, until: float) -> int:
        return sum(await asyncio.gather(*(self._one(variant, until) for _ in range(self._tasks))))

    async def _one(self, variant: str, until: float) -> int:
        count = 0
        while time.monotonic() < until:
            await self._transaction(variant, count)
            count += 1
        return count

    async def _transaction(self, variant: str, amount: int) -> None:
        number = self._random.randrange(ACCOUNTS)
        async with self._sessions() as session:
            account = await session.get_one(Account, number)
            account.balance += amount
            session.add(Order(account_id=number, amount=amount, note="bench"))
            if variant != FLOOR:
                _publish(session, number, amount, variant)
            await session.commit()

    def close(self) -> None:
        """Disconnects."""
        self._runner.run(self._engine.dispose())
        self._runner.close()


def on_postgresql(effort: Effort) -> Iterator[Group]:
    """Sync and async, one client and four."""
    with databases.postgres() as place:
        _fill(place.url)
        for kind in ("sync", "async"):
            for count in (1, 4):
                yield _setting(place, kind, count, tuple(PUBLISHING), effort)


def measure(effort: Effort) -> Iterator[Group]:
    """PostgreSQL in full, SQLite and MariaDB in brief."""
    yield from on_postgresql(effort)
    brief = ("one keyed event", "three keyed events")
    with databases.sqlite() as place:
        _fill(place.url)
        yield _setting(place, "sync", 1, brief, effort)
    with databases.mariadb() as place:
        _fill(place.url)
        yield _setting(place, "sync", 1, brief, effort)


def _setting(
    place: databases.Place, kind: str, count: int, candidates: tuple[str, ...], effort: Effort
) -> Group:
    make: MakeClient = SyncClient
    processes = count
    if kind == "async":
        make, processes = functools.partial(AsyncClient, tasks=count), 1
    who = f"{count} client{'s' if count > 1 else ''}"
    with clients(processes, make, place.url) as started:
        variants = [_variant(FLOOR, None, started, place.url, effort)]
        variants += [_variant(name, FLOOR, started, place.url, effort) for name in candidates]
        return compare(NAME, f"{place.name}, {kind}, {who}", UNIT, variants, effort)


def _variant(
    name: str, against: str | None, started: Clients, url: str, effort: Effort
) -> Variant:
    def run() -> Sample:
        _empty(url)
        return started.measure(name, effort.seconds)

    return Variant(name, run, against)


def _fill(url: str) -> None:
    engine = Database(url).engine
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
        connection.execute(
            sa.insert(Account), [{"id": number, "balance": 0} for number in range(ACCOUNTS)]
        )
    engine.dispose()


def _empty(url: str) -> None:
    """What the measurement before has left is gone."""
    engine = Database(url).engine
    emptied = (tables_in().outbox.name, Order.__tablename__)
    with engine.begin() as connection:
        for name in emptied:
            verb = "DELETE FROM" if engine.dialect.name == "sqlite" else "TRUNCATE TABLE"
            connection.exec_driver_sql(f"{verb} {name}")
    engine.dispose()
