"""One service database.

Its engines, sync and async from one URL, set up the way our guarantees need them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.util.concurrency import in_greenlet

from outbox_saga.database_urls import async_url, connect_args, split_pooler, sync_url
from outbox_saga.deadlines import SERVER_SHARE, deadline_args, limit_session
from outbox_saga.errors import ConfigurationError
from outbox_saga.hints import wake_relays
from outbox_saga.lent_session import LentSession, guard
from outbox_saga.queries.clock import DATABASE_CLOCK, Clock
from outbox_saga.queries.passing import leave_read_only_servers
from outbox_saga.tables import Tables, tables_in

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

P = ParamSpec("P")
T = TypeVar("T")

BUSY_SECONDS = 30.0  # how long a SQLite writer waits for another one
DEADLINE = 30.0  # seconds
POOL_SIZE = 20
OVERFLOW, SQLITE_OVERFLOW = 5, 10
INTERRUPTED_AFTER = 0.1  # seconds that a statement of a cancelled task gets to end by itself
# who keeps a session that was given back, in code that did not end in time, begins nothing with it
_LENT: dict[str, Any] = {"expire_on_commit": False, "close_resets_only": False}
READ_ONLY = "outbox_saga_read_only"  # execution option: this transaction only reads


class Database:
    """A service's database, reached by a sync and an async engine; connects on first use.

    PostgreSQL and MariaDB run at READ COMMITTED: at REPEATABLE READ MariaDB's locking reads lock
    gaps and producers wait. SQLite runs in WAL mode and begins with BEGIN IMMEDIATE: a transaction
    that has read and then writes fails at once otherwise, whatever the timeout.

    Args:
        url: SQLAlchemy or plain (`postgres://`, `mysql://`, `sqlite:///`).
        schema: Of our tables; None is the connection's default.
        clock: Tests shift it.
        pool_size: Connections that each engine keeps; it may open 5 more for a while (10 on
            SQLite). None: 20, and as many more as the services that run on it may need at once.
            What renews leases has connections of its own, and waits for none of these.
        hints: Commits that publish something wake relays at once; see `outbox_saga.hints`.
        pooler: The URL leads through a pooler in transaction mode, as pgbouncer's (PostgreSQL by
            psycopg). `?pooler=true` in the URL says the same; None: as the URL says.
        listen_url: A direct one, where relays LISTEN: through a pooler nothing arrives.
        deadline: Seconds after which a call of a relay or of housekeeping at this database has
            ended, whatever the database does; see `program_engine`.

    Raises:
        ConfigurationError: URL and `pooler` say different things, `listen_url` leads through a
            pooler or is given away from PostgreSQL, or the deadline is not above 0.

    Example:
        Database("postgresql://bouncer:6432/shop", pooler=True, listen_url="postgresql://db/shop")
    """

    def __init__(
        self,
        url: str | sa.URL,
        *,
        schema: str | None = None,
        clock: Clock = DATABASE_CLOCK,
        pool_size: int | None = None,
        hints: bool = True,
        pooler: bool | None = None,
        listen_url: str | sa.URL | None = None,
        deadline: float = DEADLINE,
    ) -> None:
        if not 0 < deadline < float("inf"):
            raise ConfigurationError(f"deadline is {deadline}; give seconds, more than 0")
        self.url, said = split_pooler(url)
        if None not in (pooler, said) and pooler is not said:
            raise ConfigurationError(f"the URL says pooler={said} and the option pooler={pooler}")
        self.pooler = bool(said if pooler is None else pooler)
        if self.pooler:  # before another database it is refused here, and not at the first use
            connect_args(self.url.set(drivername=self.url.get_backend_name()), pooler=True)
        self.listen_url: sa.URL | None = None
        if listen_url is not None:
            self.listen_url, pooled = split_pooler(listen_url)
            if pooled:
                raise ConfigurationError("through a pooler nothing is heard; listen_url is direct")
            kinds = {self.url.get_backend_name(), self.listen_url.get_backend_name()}
            if kinds != {"postgresql"}:
                raise ConfigurationError("only PostgreSQL has LISTEN: leave listen_url out")
        self.tables: Tables = tables_in(schema)
        self.clock = clock
        self._is_bounded = pool_size is not None
        self._pool_size = POOL_SIZE if pool_size is None else pool_size
        self._needs: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._hints = hints
        self.deadline = deadline
        self._sync: sa.Engine | None = None
        self._programs: sa.Engine | None = None
        self._async: AsyncEngine | None = None
        self._leases: AsyncEngine | None = None

    def make_room(self, who: object, connections: int, *, kept: int) -> None:
        """Who needs so many connections of an engine at once waits for none, unless `pool_size`
        was given.

        Args:
            who: The last number it says is the one that counts, until it is gone.
            connections: How many, besides those that everybody shares.
            kept: How many stay open, of engines that were not used before.
        """
        if self._is_bounded:
            return
        self._needs[who] = connections
        self._pool_size = max(self._pool_size, kept)
        for engine in (self._sync, None if self._async is None else self._async.sync_engine):
            if engine is not None:  # made before it was known who runs on it
                # SQLAlchemy has no public name for it; a test pins this one
                engine.pool._max_overflow = self._overflow  # type: ignore[attr-defined]  # noqa: SLF001

    @property
    def engine(self) -> sa.Engine:
        """The sync engine."""
        if self._sync is None:
            url = sync_url(self.url)
            self._sync = sa.create_engine(url, **self._options(url))
            self._prepare(self._sync)
        return self._sync

    @property
    def async_engine(self) -> AsyncEngine:
        """The async engine, for the same database."""
        if self._async is None:
            self._async = self._make_async()
            self._prepare(self._async.sync_engine)
        return self._async

    @property
    def lease_engine(self) -> AsyncEngine:
        """An async engine for what keeps leases, and nothing else.

        Its statements are short, so a few connections are enough for all leases of a process;
        users' code keeps those of the other engines for as long as it likes.
        """
        if self._leases is None:
            self._leases = self._make_async(pool_size=2, max_overflow=2)
            _prepare(self._leases.sync_engine)
        return self._leases

    def _make_async(self, **options: Any) -> AsyncEngine:
        from sqlalchemy.ext.asyncio import create_async_engine

        url = async_url(self.url)
        engine = create_async_engine(url, **self._options(url) | options)
        if engine.driver == "asyncmy":
            # SQLAlchemy 2.0.40 to 2.0.45, at least, ask how PyMySQL's ping is called, which
            # since its 1.2 is another way than asyncmy's: the second use is a TypeError
            dialect: Any = engine.dialect
            dialect._send_false_to_ping = True  # noqa: SLF001  # there is no public name
        return engine

    @property
    def program_engine(self) -> sa.Engine:
        """A sync engine whose statements have a deadline, for relays and housekeeping.

        Its connections are its own: the server's limits hold for their sessions, the driver's for
        all they wait for. Your own statements, on the other engines, have no limit of ours.
        """
        if self._programs is None:
            url = sync_url(self.url)
            options = self._options(url)
            options["connect_args"] |= deadline_args(url, self.deadline)
            options |= {"pool_size": 1, "max_overflow": 4}
            # asked before each use, a connection to a server that stands still is one more thing
            # to wait for; what is broken shows at the first statement, and is tried again
            options["pool_pre_ping"] = False
            options["pool_timeout"] = self.deadline
            if url.get_backend_name() == "sqlite":
                options["connect_args"]["timeout"] = min(
                    BUSY_SECONDS, self.deadline * SERVER_SHARE
                )
            self._programs = sa.create_engine(url, **options)
            _prepare(self._programs)
            if not self.pooler:
                _limit(self._programs, self.deadline)
        return self._programs

    def _prepare(self, engine: sa.Engine) -> None:
        _prepare(engine)
        if self._hints:
            wake_relays(engine)

    def _options(self, url: sa.URL) -> dict[str, Any]:
        if url.get_backend_name() == "sqlite":
            if url.database in (None, "", ":memory:"):
                raise ConfigurationError(
                    "an in-memory SQLite database is private to one connection; use a file: sqlite:///app.db"
                )
            return {
                "connect_args": {"timeout": BUSY_SECONDS},
                "pool_size": self._pool_size,
                "max_overflow": self._overflow,
                "hide_parameters": True,  # a log or a traceback must not show values
            }
        options: dict[str, Any] = {
            "isolation_level": "READ COMMITTED",
            "pool_size": self._pool_size,
            "max_overflow": self._overflow,
            "pool_pre_ping": True,
            "hide_parameters": True,
            "connect_args": connect_args(url, pooler=self.pooler),
        }
        return options

    @property
    def _overflow(self) -> int:
        least = SQLITE_OVERFLOW if self.url.get_backend_name() == "sqlite" else OVERFLOW
        return max(least, sum(self._needs.values()))

    @contextmanager
    def lend(self) -> Iterator[LentSession]:
        """A session for users' code on the sync engine.

        Rolled back unless its lender settles it.
        """
        session = LentSession(self.engine, **_LENT)
        try:
            yield session
        finally:
            session.give_back()

    @asynccontextmanager
    async def lend_async(self) -> AsyncIterator[AsyncSession]:
        """As `lend`, on the async engine."""
        from sqlalchemy.ext.asyncio import AsyncSession

        session = AsyncSession(self.async_engine, sync_session_class=LentSession, **_LENT)
        try:
            yield session
        finally:
            lent = session.sync_session
            assert isinstance(lent, LentSession)
            if lent.in_transaction():
                # a cancelled caller must not leave the connection behind
                await asyncio.shield(session.run_sync(lambda _: lent.give_back()))
            else:
                lent.give_back()  # it has no connection any more

    def begin(self) -> AbstractContextManager[sa.Connection]:
        """A sync connection in a transaction that commits at the end of the block."""
        return self.engine.begin()

    async def run(
        self, verb: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The answer of a verb of `queries`, in its own transaction on the async engine,
        committed.
        """
        async with self.async_engine.begin() as connection:
            return await connection.run_sync(lambda c: verb(c, *args, **kwargs))

    async def look(
        self, verb: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `run`, for a verb that only reads."""
        async with self.async_engine.connect() as connection:
            await connection.execution_options(**{READ_ONLY: True})
            async with connection.begin():
                return await connection.run_sync(lambda c: verb(c, *args, **kwargs))

    async def keep(
        self, verb: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `run`, for a verb that renews a lease, or gives it back: it never waits for a
        connection behind the work that the lease is for.
        """
        async with self.lease_engine.begin() as connection:
            return await connection.run_sync(lambda c: verb(c, *args, **kwargs))

    def async_begin(self) -> AbstractAsyncContextManager[Any]:
        """An async connection in a transaction that commits at the end of the block."""
        return self.async_engine.begin()

    async def close(self) -> None:
        """Gives all connections back; the database can be used again afterwards."""
        for engine in (self._async, self._leases):
            if engine is not None:
                await engine.dispose()
        self._async = self._leases = None
        self.dispose()

    def dispose(self) -> None:
        """Gives the connections of the sync engines back; they can be used again afterwards."""
        for engine in (self._sync, self._programs):
            if engine is not None:
                engine.dispose()
        self._sync = self._programs = None


def _limit(engine: sa.Engine, deadline: float) -> None:
    @event.listens_for(engine, "connect")
    def connected(dbapi_connection: Any, record: Any) -> None:
        limit_session(engine.dialect, dbapi_connection, deadline)


def _prepare(engine: sa.Engine) -> None:
    guard(engine)
    if engine.dialect.name != "sqlite":
        leave_read_only_servers(engine)
        return

    @event.listens_for(engine, "connect")
    def connected(dbapi_connection: Any, record: Any) -> None:
        # the driver must not begin by itself: it begins late, and deferred
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(
            "PRAGMA synchronous=FULL"
        )  # NORMAL may lose the last commits at power failure
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        read_only = connection.get_execution_options().get(READ_ONLY)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    if engine.dialect.is_async:

        @event.listens_for(engine, "invalidate")
        def invalidated(dbapi_connection: Any, record: Any, error: Any) -> None:
            # Closing waits for the interrupted statement, and leaves the transaction and its lock
            # to the garbage collector while a cursor of it is alive
            if in_greenlet():
                dbapi_connection.run_async(_end_now)


async def _end_now(driver: Any) -> None:
    """Rolls back; a statement that takes its time is interrupted, and nothing else is.

    While a cursor has rows left (INSERT … RETURNING), SQLite interrupts whatever begins after the
    interruption, too: the ROLLBACK itself, and the write lock of the file would stay.
    """
    with suppress(Exception):  # another cursor still reads, or the connection is closed
        rollback = asyncio.ensure_future(driver.rollback())
        done, _ = await asyncio.wait({rollback}, timeout=INTERRUPTED_AFTER)
        if not done:
            await driver.interrupt()
        await asyncio.shield(rollback)
