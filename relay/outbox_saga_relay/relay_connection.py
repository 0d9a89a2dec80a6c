"""A relay's connection to the database, on one thread of its own.

A separate thread, because the publisher's event loop must not wait for the database, and one,
because a relay needs one connection. Each of its turns has a deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from outbox_saga.database import READ_ONLY, Database
from outbox_saga.deadlines import limit_transaction
from outbox_saga.queries import exchange
from outbox_saga.queries.dialects import limit_transaction_whole
from outbox_saga_relay.database_thread import DatabaseThread
from outbox_saga_relay.wire import Wire, lay_wires, wire_of

P = ParamSpec("P")
T = TypeVar("T")


class RelayConnection:
    """At most one connection at a time, kept between pages where that is of use.

    All but `run`, `hurry`, `rest` and `close` is for work that runs on the thread.

    Args:
        lease: Seconds after which the server ends a transaction of a relay that stands still.
    """

    def __init__(self, database: Database, *, lease: float) -> None:
        self._database = database
        self._lease = lease
        self._kept: sa.Connection | None = None  # between pages, where `exchange` can be had
        self._wire: Wire | None = None  # of the connection in use, or the one used last
        self.thread = DatabaseThread(
            "outbox-saga-relay", limit=database.deadline, cut=self._cut_wire
        )

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The work, on the thread.

        Raises:
            DatabaseSilent: The database did not answer within its deadline.
        """
        return await self.thread.run(lambda: work(*args, **kwargs))

    def hurry(self) -> None:
        """The relay has been asked to end: the database gets some seconds, not the deadline."""
        self.thread.hurry()

    @property
    def hurries(self) -> bool:
        """Whether the relay has been asked to end."""
        return self.thread.hurries

    async def rest(self) -> None:
        """The connection that was kept between pages is the pool's again."""
        if self._kept is not None:
            await self.run(self.give_back)

    def close(self) -> None:
        """Gives the thread and its connection back."""
        self.thread.close(self.give_up)

    @property
    def engine(self) -> sa.Engine:
        """Each of whose connections can be cut while somebody waits for it."""
        engine = self._database.program_engine
        lay_wires(engine, self._on)
        return engine

    @property
    def can_exchange(self) -> bool:
        """Whether a page is removed and read by one statement, and the mark is told of it."""
        return exchange.can_exchange(self.engine)

    def write(
        self, verb: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """In one transaction, which the server ends when the relay stands still in it."""
        self.give_back()  # so that one connection is enough
        with self.engine.begin() as connection:
            self._on(wire_of(connection))
            if self._database.pooler:
                limit_transaction(connection, self._database.deadline)
            # a relay that stands still must not lock its successor out
            limit_transaction_whole(connection, self._lease)
            return verb(connection, *args, **kwargs)

    def look(
        self, verb: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """In one transaction that writes nothing."""
        self.give_back()
        with self.engine.connect() as fresh:
            self._on(wire_of(fresh))
            connection = fresh.execution_options(**{READ_ONLY: True})
            with connection.begin():
                return verb(connection, *args, **kwargs)

    def snapshot(self) -> sa.Connection:
        """One that reads in one transaction, whose statements all see the same.

        To be ended by `end_snapshot`; `resume` says that it is in use again.
        """
        self.give_back()
        options: dict[str, Any] = {READ_ONLY: True}
        if self.engine.dialect.name != "sqlite":  # which has no other
            options["isolation_level"] = "REPEATABLE READ"
        connection = self.engine.connect()
        self._on(wire_of(connection))
        try:
            connection = connection.execution_options(**options)
            connection.begin()
        except BaseException:
            connection.close()
            raise
        return connection

    def resume(self, connection: sa.Connection) -> None:
        """This one is in use from now on."""
        self._on(wire_of(connection))

    def end_snapshot(self, connection: sa.Connection) -> None:
        """It is the pool's again."""
        self.resume(connection)
        connection.close()

    def kept(self) -> sa.Connection:
        """The one that is kept between pages; made when there is none."""
        if self._kept is None:
            self._kept = exchange.connect(self.engine)
            self._on(wire_of(self._kept))
        return self._kept

    def give_back(self) -> None:
        """The kept one, to the pool."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def give_up(self) -> None:
        """The kept connection is ended, whatever state it is in; the next page gets a new one."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.invalidate()
            kept.close()

    def _on(self, wire: Wire | None) -> None:
        """The connection of this wire is in use from now on."""
        self._wire = wire

    def _cut_wire(self) -> None:
        wire = self._wire
        if wire is not None:
            wire.cut()
