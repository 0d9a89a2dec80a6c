"""After a commit that published something, relays are told to look at once.

A hint is never more than that: relays look by themselves, and a hint that is lost costs latency,
nothing else. It is sent after the commit and from a connection of its own: NOTIFY inside the
business transaction takes a lock of the whole cluster until the commit is on disk, so writers
would no longer commit together (measured: half the throughput with 16 of them, a tenth on a slow
disk).

    wake_relays(engine)          # once, where the service makes its engine

Relays of the same process are told directly, on every database; those of other processes by
NOTIFY, on PostgreSQL. `Service` does this by itself for the database it was given.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event

from outbox_saga.database_urls import connect_args, sync_url
from outbox_saga.errors import ConfigurationError
from outbox_saga.ids import new_id
from outbox_saga.queries.dialects import brief
from outbox_saga.queries.outbox import WROTE
from outbox_saga.retries import Retry

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

logger = logging.getLogger("outbox_saga.hints")

EVERY = 0.05  # seconds between two hints of one process; the first one goes at once
LONGEST = 63  # bytes of a channel's name
ENDING = 1.0  # seconds that disposing of an engine waits for the last hint
# when the connection for hints cannot be made; relays look by themselves meanwhile
AGAIN = Retry(max_attempts=1_000_000, initial=1.0, max_delay=30.0)

# NOTIFY has its own transaction, which a hint need not wait for to be on disk: that would hold up
# the commits it is about. For this transaction alone: the session may be a pooler's
_NOTIFY = "SELECT pg_notify('{}', ''), set_config('synchronous_commit', 'off', true)"

Place = tuple[str, str | None]

_listeners: dict[Place, set[Callable[[], None]]] = {}
_senders: weakref.WeakKeyDictionary[sa.Engine, Sender] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def channel(schema: str | None) -> str:
    """The name that relays of this schema LISTEN to."""
    if schema is None:
        return "outbox_saga"
    name = f"outbox_saga_{schema}"
    if len(name.encode()) <= LONGEST:
        return name
    # PostgreSQL refuses to NOTIFY by a longer one, and LISTENs to the beginning of it
    digest = f"_{zlib.crc32(schema.encode()):08x}"
    beginning = name.encode()[: LONGEST - len(digest)]
    return beginning.decode(errors="ignore") + digest  # no half of a character


def place_of(url: sa.URL, schema: str | None) -> Place:
    """Which outbox: however the driver is called, and whoever the user is."""
    database = url.database or ""
    if url.get_backend_name() == "sqlite":
        database = os.path.realpath(database)
    return f"{url.host or ''}:{url.port or ''}/{database}", schema


def wake_relays(engine: sa.Engine | AsyncEngine, *, url: str | sa.URL | None = None) -> None:
    """Commits of this engine that published something wake relays at once.

    Args:
        engine: Whose commits. PostgreSQL: one more connection is made, when the first hint is
            sent, and closed when the engine is disposed of, or forgotten; elsewhere only relays of
            the same process are told.
        url: For that connection, where the engine's own are made by a function. Nothing but NOTIFY
            is sent there, which works through a pooler as well.

    Raises:
        ConfigurationError: There is a `url`, and it or the engine's is not of PostgreSQL.
    """
    inner: sa.Engine = engine if isinstance(engine, sa.Engine) else engine.sync_engine
    place = inner.url if url is None else sa.make_url(url)
    if url is not None and {place.get_backend_name(), inner.dialect.name} != {"postgresql"}:
        raise ConfigurationError(
            "only PostgreSQL has NOTIFY, and url is where to send it: leave it out"
        )
    with _lock:
        if inner in _senders:
            return
        sender = _senders[inner] = Sender(place)
    event.listen(inner, "engine_disposed", lambda _: sender.rest())
    # not waited for: the garbage may be collected by any thread, the sender's own among them
    weakref.finalize(inner, sender.rest, wait=False).atexit = False


@contextmanager
def listening(url: sa.URL, schema: str | None, hear: Callable[[], None]) -> Iterator[None]:
    """For the time of the block `hear` is called after each commit of this process that published
    to this outbox through an engine that wakes relays.

    Called from the committing thread: it must return at once, and raise nothing.
    """
    place = place_of(url, schema)
    with _lock:
        _listeners.setdefault(place, set()).add(hear)
    try:
        yield
    finally:
        with _lock:
            _listeners[place].discard(hear)


class Sender:
    """Sends NOTIFY from a thread and a connection of its own: at once, then at most every 50 ms.

    Args:
        url: Of the database.
    """

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self._notifies = url.get_backend_name() == "postgresql"
        self.seed = str(new_id())  # of its pauses: all processes lose a database at one moment
        self._failures = 0
        self._wanted: set[str | None] = set()
        self._ready = threading.Condition()
        self._idle = False  # the thread has nothing to tell, and waits
        self._thread: threading.Thread | None = None  # the one that is to go on
        self._not_before = 0.0

    def committed(self, schema: str | None) -> None:
        """Something was published to this schema's outbox."""
        if _listeners:
            for hear in tuple(_listeners.get(place_of(self.url, schema), ())):
                hear()
        if not self._notifies:
            return
        with self._ready:
            self._wanted.add(schema)
            if self._thread is None:
                self._idle = False
                self._thread = threading.Thread(
                    target=self._run, name="outbox-saga-hints", daemon=True
                )
                self._thread.start()
            elif self._idle:
                # every commit comes here, and mostly the thread is in its pause and looks by
                # itself: one that is woken takes the interpreter from whoever commits
                self._idle = False
                self._ready.notify_all()

    def rest(self, *, wait: bool = True) -> None:
        """Thread and connection end, once what was committed is told; another commit makes new
        ones.

        Args:
            wait: For the thread, unless the database keeps it.
        """
        with self._ready:
            thread, self._thread = self._thread, None
            self._ready.notify_all()
        if wait and thread is not None:
            thread.join(ENDING)

    def begin_anew(self) -> None:
        """In a child of a fork: thread and connection are the parent's, and so are the hints."""
        self._ready, self._thread, self._wanted = threading.Condition(), None, set()

    def _run(self) -> None:
        connection: Any = None
        me = threading.current_thread()
        going_on = True
        while going_on:
            with self._ready:
                while not self._wanted and self._thread is me:
                    self._idle = True
                    self._ready.wait()
                wanted, self._wanted = self._wanted, set()
                going_on = self._thread is me
            if wanted:
                connection = self._send(connection, wanted)
            with self._ready:
                self._ready.wait_for(lambda: self._thread is not me, EVERY)
        if connection is not None:
            connection.close()

    def _send(self, connection: Any, wanted: set[str | None]) -> Any:
        """The connection to go on with, if there is one."""
        try:
            if connection is None:
                if time.monotonic() < self._not_before:
                    return None  # relays look by themselves meanwhile
                connection = self._connect()
            # by the driver's own cursor: what SQLAlchemy does around it takes the interpreter from
            # whoever commits
            cursor = connection.connection.cursor()
            for schema in wanted:
                quoted = channel(schema).replace("'", "''")
                cursor.execute(_NOTIFY.format(quoted))
            cursor.close()
            self._failures = 0
        except Exception as error:  # noqa: BLE001 - a lost hint costs latency, nothing else
            logger.warning(
                "relays cannot be told at once (%s); they look by themselves", brief(error)
            )
            self._failures += 1
            pause = AGAIN.delay(self._failures, seed=self.seed)
            self._not_before = time.monotonic() + pause
            if connection is not None:
                connection.invalidate()
                connection.close()
            return None
        return connection

    def _connect(self) -> sa.Connection:
        url = sync_url(self.url)
        engine = sa.create_engine(
            url,
            poolclass=sa.NullPool,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            # the engine's own connections may be told of a pooler by other ways than the URL
            connect_args=connect_args(url, pooler=url.get_driver_name() == "psycopg"),
        )
        return engine.connect()


def _checked_in(dbapi_connection: Any, record: Any) -> None:  # noqa: ARG001 - SQLAlchemy's event
    # the connection goes back to its pool: the transaction has ended, and mostly by a commit
    wrote = record.info.pop(WROTE, None)
    if wrote is not None:
        engine, schema = wrote
        sender = _senders.get(engine)
        if sender is not None:
            sender.committed(schema)


def _begin_anew() -> None:
    # whoever held a lock at the moment of the fork is not there to release it
    global _lock  # noqa: PLW0603 - a lock cannot be made free by others
    _lock = threading.Lock()
    for sender in tuple(_senders.values()):
        sender.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)

# On the class: whoever made the pool
event.listen(sa.pool.Pool, "checkin", _checked_in)
