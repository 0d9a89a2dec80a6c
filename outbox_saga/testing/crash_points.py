"""A process that dies at a chosen point: between any two statements, commits and outside effects.

    points = CrashPoints()                      # the undisturbed run counts
    points.watch(database)
    with points.effect("charge the card"): ...
    for at in points.moments:
        points = CrashPoints(at)                # this one dies at point `at`, and stays dead
        ...

A *point* is before and after each statement, each commit and each outside effect. At its point the
process dies: the lines of all its connections are cut, so no rollback and no commit gets out
later, and every point it still comes to, in any thread or task, raises `ProcessDied`, which no
`except Exception` stops. Rollbacks are no points: a process that dies before one and a process
that dies after one leave the same behind. So do one that dies after something and one that dies
before the next, if nothing happened outside in between and nothing else is under way: they are one
*moment*.

Statements that a new engine makes once, at its first connect, are not counted.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from outbox_saga.brokers.contract import Outcome, Publisher, Settled
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.testing.lines import Line, line_of, wait_for_rollback

SHOWN = 90  # characters of a statement in the name of its point


class ProcessDied(BaseException):  # nothing erred: the process is gone
    """This process is dead and comes to nothing any more. Only whoever started it catches this."""


class CrashPoints:
    """Counts the points that a process comes to, and kills it at one of them.

    Args:
        at: The number of the point it dies at, from 1; None never.
        kill: Dies for real (`os.kill(os.getpid(), SIGKILL)`) or stops (SIGSTOP, and goes on when
            it is continued);
            None cuts the lines and raises.
        outside: Tells apart what can be seen from outside and has no point before and after it
            (the sizes of logs, say), for `moments`. None: there is nothing of that kind.
    """

    def __init__(
        self,
        at: int | None = None,
        *,
        kill: Callable[[], None] | None = None,
        outside: Callable[[], object] | None = None,
    ) -> None:
        self.at = at
        self.names: list[str] = []
        self.moments: list[int] = []
        self._kill = kill
        self._outside = outside
        self._after: tuple[object] | None = None  # what was outside, if the last point ended one
        self._under_way = 0  # effects: one beside may end between two points
        self._dead = False
        self._lock = threading.Lock()
        self._lines: list[Line] = []

    @property
    def count(self) -> int:
        """How many points were come to."""
        return len(self.names)

    @property
    def dead(self) -> bool:
        """Whether the process has died."""
        return self._dead

    @property
    def place(self) -> str:
        """What stands at the point of death, for the report."""
        return self.names[self.at - 1] if self.at and self.at <= len(self.names) else "not reached"

    def point(self, name: str) -> None:
        """The process comes to this point.

        Raises ProcessDied if it dies here, or has died before.
        """
        self._come_to(name)

    def _come_to(self, name: str, *, begins: bool = False, ends: bool = False) -> None:
        """To this point, at which something begins, or has ended."""
        with self._lock:
            if self._dead:
                raise ProcessDied(self.place)
            self.names.append(name)
            seen = (None if self._outside is None else self._outside(),)
            self._under_way -= ends
            if not (begins and self._after == seen):
                self.moments.append(len(self.names))
            self._after = seen if ends and not self._under_way else None
            self._under_way += begins
            if len(self.names) != self.at:
                return
            if self._kill is None:
                self._dead = True
        if self._kill is not None:
            self._kill()
            return
        self._cut()
        raise ProcessDied(name)

    @contextlib.contextmanager
    def effect(self, name: str) -> Iterator[None]:
        """The block is one outside effect: there is a point before it and one after it."""
        self._come_to(f"before {name}", begins=True)
        try:
            yield
        except BaseException:
            with self._lock:
                self._under_way -= 1
            raise
        self._come_to(f"after {name}", ends=True)

    def watch(self, database: Database) -> None:
        """Every statement and commit of this database's engines is a point from now on."""
        self.watch_engine(database.engine)
        self.watch_engine(database.program_engine)
        self.watch_engine(database.async_engine.sync_engine)
        self.watch_engine(database.lease_engine.sync_engine)

    def watch_engine(self, engine: sa.Engine) -> None:
        """As `watch`.

        For one engine that holds no connection; of an async engine its `sync_engine`.

        An engine that another CrashPoints watched belongs to this one from now on: a later process
        may use it again (it
        is costly to make), after `engine.dispose(close=False)`.
        """
        with _seaming:
            seam = _seams.get(engine)
            if seam is None:
                seam = _seams[engine] = _Seam(engine)
        seam.points = self

    def bury(self, observer: sa.Engine) -> None:
        """What the dead process still holds is given back.

        Once the server has rolled its transactions back.

        Args:
            observer: An engine of the process that looks on. Call it inside the dead one's event
                loop.
        """
        for line in self._lines:
            line.discard()
        wait_for_rollback(observer, self._lines)

    def end_all(self, observer: sa.Engine) -> None:
        """Ends every connection of the process, whoever holds it, as its death would.

        Args:
            observer: As of `bury`.
        """
        self._cut()
        self.bury(observer)

    def connecting(self) -> None:
        """The process wants another connection."""
        if self._dead:
            raise ProcessDied(self.place)

    def connected(self, line: Line) -> None:
        """The process has another connection."""
        with self._lock:
            self._lines.append(line)
            late = self._dead
        if late:
            line.cut()
            line.wait()

    def _cut(self) -> None:
        with self._lock:
            lines = list(self._lines)
        for line in lines:
            line.cut()
        for line in lines:
            line.wait()


class _Seam:
    """One engine's dialect.

    Between SQLAlchemy and the driver, and whose process it belongs to at the moment.
    """

    points: CrashPoints

    def __init__(self, engine: sa.Engine) -> None:
        dialect: Any = engine.dialect
        self._connecting = False
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            setattr(dialect, name, self._statement(getattr(dialect, name)))
        dialect.do_commit = self._commit(dialect.do_commit)
        dialect.do_rollback = self._rollback(dialect.do_rollback)
        dialect.initialize = self._initialize(dialect.initialize)
        event.listen(engine, "do_connect", self._connect)
        event.listen(engine, "connect", self._connected)

    def _statement(self, original: Callable[..., None]) -> Callable[..., None]:
        def execute(cursor: Any, statement: str, *rest: Any, **options: Any) -> None:
            if self._connecting:
                return original(cursor, statement, *rest, **options)
            with self.points.effect(" ".join(statement.split())[:SHOWN]):
                return original(cursor, statement, *rest, **options)

        return execute

    def _commit(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def commit(connection: Any) -> None:
            if self._connecting:
                return original(connection)
            with self.points.effect("COMMIT"):
                return original(connection)

        return commit

    def _rollback(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def rollback(connection: Any) -> None:
            if not self.points.dead:  # the dead send nothing
                original(connection)

        return rollback

    def _initialize(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def initialize(connection: Any) -> None:
            self._connecting = True
            try:
                original(connection)
            finally:
                self._connecting = False

        return initialize

    def _connect(self, *_: Any) -> None:
        self.points.connecting()

    def _connected(self, dbapi_connection: Any, _record: Any) -> None:
        self.points.connected(line_of(dbapi_connection))


_seams: weakref.WeakKeyDictionary[sa.Engine, _Seam] = weakref.WeakKeyDictionary()
_seaming = threading.Lock()


class WatchedPublisher:
    """A publisher each of whose calls is an outside effect.

    Args:
        publisher: Does the publishing.
        points: Of the process it belongs to.
    """

    def __init__(self, publisher: Publisher, points: CrashPoints) -> None:
        self._publisher = publisher
        self._points = points

    async def open(self) -> None:
        """Connects."""
        await self._publisher.open()

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        """One outcome per envelope, in their order."""
        with self._points.effect(f"publish {len(envelopes)} message(s)"):
            return await self._publisher.publish(envelopes, settled)

    async def close(self) -> None:
        """Disconnects."""
        await self._publisher.close()
