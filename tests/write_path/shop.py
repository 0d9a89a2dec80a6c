"""A shop with orders beside an outbox: what the write path's tests look at, on every database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from outbox_saga.messages import Event
from outbox_saga.queries.clock import DATABASE_CLOCK
from outbox_saga.queries.relay import OutboxRow, Wanted, bodies, read_page
from outbox_saga.tables import PARTITIONS, Tables, tables_in
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga_relay.large_bodies import is_left_out
from tests.fixtures.databases import Database


class Base(DeclarativeBase):
    pass


class Order(Base):
    """A business row."""

    __tablename__ = "shop_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(sa.String(200))


class Said(Event, topic="talk"):
    """A message that says one word."""

    word: str


def say(session: Any, word: object, *, key: str | None = None) -> None:
    """Publish one word."""
    UnitOfWork(session).publish(Said(word=str(word)), key=key)


def order(session: Session, note: object) -> None:
    """Change the business data."""
    session.add(Order(note=str(note)))


INSERT = sa.text("insert into shop_order (note) values (:note)")


class Shop:
    """One database with the shop's table and ours, empty when a test begins."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.name = database.name
        self.url = database.url
        self.tables: Tables = tables_in(None)
        self._engines: list[sa.Engine] = []
        self.engine = self.make_engine()
        self._eyes = sa.create_engine(self.url, poolclass=sa.NullPool)

    def make_engine(self, **options: Any) -> sa.Engine:
        """An engine on this database; on SQLite one whose savepoints work."""
        engine = self.make_plain_engine(**options)
        if self.name == "sqlite":
            begin_immediate(engine)
        return engine

    def make_plain_engine(self, **options: Any) -> sa.Engine:
        """An engine as `create_engine` makes it."""
        engine = sa.create_engine(self.url, **options)
        self._engines.append(engine)
        return engine

    def make_async_engine(self, **options: Any) -> AsyncEngine:
        """As `make_engine`; whoever makes it disposes of it, inside its event loop."""
        engine = create_async_engine(self.database.async_url, **options)
        if self.name == "sqlite":
            begin_immediate(engine.sync_engine)
        return engine

    def make_plain_async_engine(self, **options: Any) -> AsyncEngine:
        """As `make_plain_engine`."""
        return create_async_engine(self.database.async_url, **options)

    def close(self) -> None:
        """No connection of this test is left."""
        for engine in self._engines:
            engine.dispose()

    def rows(self) -> list[OutboxRow]:
        """The outbox as another process sees it, in position order."""
        with self._eyes.connect() as connection:
            rows = read_page(
                connection,
                self.tables,
                DATABASE_CLOCK,
                Wanted(range(PARTITIONS), 100_000, look_for_blocked=False),
            )
            large = bodies(connection, self.tables, [r.position for r in rows if is_left_out(r)])
            return [row._replace(body=large.get(row.position, row.body)) for row in rows]

    def words(self) -> list[str]:
        """What was said, in position order."""
        return [json.loads(row.body)["word"] for row in self.rows()]

    def notes(self) -> list[str]:
        """The committed orders, in the order of their ids."""
        with self._eyes.connect() as connection:
            return list(connection.scalars(sa.text("select note from shop_order order by id")))

    def execute(self, statement: str) -> None:
        """Run one statement on a connection of its own, committed."""
        with self._eyes.begin() as connection:
            connection.exec_driver_sql(statement)

    def empty(self) -> None:
        """Nothing of an earlier test is left."""
        with self._eyes.begin() as connection:
            connection.execute(sa.delete(self.tables.outbox))
            connection.execute(sa.delete(self.tables.delayed))
            connection.execute(sa.delete(Order))

    @contextmanager
    def outbox_gone(self) -> Iterator[None]:
        """Meanwhile the outbox has another name, so that writing to it fails."""
        name = self.tables.outbox.name
        self.execute(f"alter table {name} rename to {name}_away")
        try:
            yield
        finally:
            self.execute(f"alter table {name}_away rename to {name}")


def begin_immediate(engine: sa.Engine) -> None:
    """SQLAlchemy's recipe for SQLite: the driver does not begin by itself; savepoints work."""

    @event.listens_for(engine, "connect")
    def connected(dbapi_connection: Any, record: Any) -> None:
        dbapi_connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
