"""A task is cancelled at a suspension; its process lives on, and nothing is broken or left behind.

A *suspension* is any moment at which the operation's task, or one it has made, waits. The
operation's own task is cancelled there: at once, while what it waits for is under way, or when
that has been answered and nobody has been told yet (then a COMMIT has happened).
"""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.commit_outcomes import async_commit_outcome
from outbox_saga.errors import CommitUnknown
from outbox_saga.testing.crash_points import CrashPoints
from outbox_saga.testing.invariants import Violation
from tests.crash.explorer import PATIENCE, Run
from tests.crash.operation import Operation
from tests.crash.oracle import judged
from tests.crash.planted import SOUND, Code
from tests.crash.process import A_WHILE, Process
from tests.crash.world import World

When = Literal["at once", "answered"]
SOON = 5.0  # seconds until whatever was interrupted has been tidied up
# seconds; MariaDB shows its transactions as they were a while ago to whoever asks more often
LOOK_AGAIN = {
    "a pool": 0.005,
    "sqlite": 0.005,
    "postgresql": 0.005,
    "mysql": 0.12,
    "mariadb": 0.12,
}
_OPEN = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'",
    "mysql": "SELECT count(*) FROM information_schema.innodb_trx t "
    "JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id "
    "WHERE p.db = database() AND p.id <> connection_id() AND p.command = 'Sleep'",
}
_AWAITS = ("cr_await", "ag_await", "gi_yieldfrom")


class Suspensions:
    """Counts those of every task that is made by a loop, and cancels `target` at one of them.

    Args:
        at: At which, from 1; 0 never.
        when: While it waits, or when the answer is there.
    """

    def __init__(self, at: int = 0, when: When = "at once") -> None:
        self.at, self.when = at, when
        self.count = 0
        self.place = ""
        self.target: asyncio.Task[Any] | None = None
        self.cancelled = False
        self.excused = False

    def make_task(
        self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any
    ) -> asyncio.Task[Any]:
        """A task factory: every task counts."""
        return asyncio.Task(_Counted(self, work), loop=loop, **options)

    def suspended(self, work: Coroutine[Any, Any, Any], future: Any) -> None:
        """The task that runs this work is about to wait."""
        self.count += 1
        if self.count != self.at:
            return
        self.place = f"{_place(work)}, {self.when}"
        # before Python 3.12 a cancellation there is lost when the answer has come as well, be it
        # to the task itself or to the one that `wait_for` has made
        lost = self.when == "answered" and sys.version_info < (3, 12)
        self.excused = lost and (_waits_for(work) or _waits_for(self._target_work()))
        if self.when == "at once" or future is None:
            self._cancel()
        else:  # before the task itself is told: its own callback comes after ours
            future.add_done_callback(lambda _: self._cancel())

    def _target_work(self) -> Any:
        assert self.target is not None
        counted = self.target.get_coro()
        return counted.work if isinstance(counted, _Counted) else counted

    def _cancel(self) -> None:
        assert self.target is not None
        self.cancelled = self.target.cancel()


class _Counted(Coroutine[Any, Any, Any]):
    """The work, and a look at each of its suspensions."""

    def __init__(self, suspensions: Suspensions, work: Coroutine[Any, Any, Any]) -> None:
        self._suspensions, self.work = suspensions, work

    def send(self, value: Any) -> Any:
        return self._seen(self.work.send(value))

    def throw(self, *error: Any) -> Any:
        return self._seen(self.work.throw(*error))

    def close(self) -> None:
        self.work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self.work.__await__())

    def _seen(self, future: Any) -> Any:
        self._suspensions.suspended(self.work, future)
        return future


def _place(work: Any) -> str:
    """The innermost function of ours that waits, and its line."""
    ours = [frame for frame in _frames(work) if "outbox_saga" in frame.f_code.co_filename]
    return f"{ours[-1].f_code.co_qualname}:{ours[-1].f_lineno}" if ours else "?"


def _waits_for(work: Any) -> bool:
    """Whether it stands in `asyncio.wait_for`, mostly a driver's."""
    return any(frame.f_code is asyncio.wait_for.__code__ for frame in _frames(work))


def _frames(work: Any) -> Iterator[FrameType]:
    """What is suspended, from the outermost."""
    while work is not None:
        frame = _first(work, "cr_frame", "ag_frame", "gi_frame")
        if frame is not None:
            yield frame
        inner = _first(work, *_AWAITS)
        if inner is not None and not _says_what_it_awaits(inner):
            # a step of an async generator, or the wrapper of a coroutine of asyncmy, which is
            # compiled: they do not say what they stand for
            inner = next(filter(_says_what_it_awaits, gc.get_referents(inner)), None)
        work = inner


def _first(work: Any, *names: str) -> Any:
    return next(filter(None, (getattr(work, name, None) for name in names)), None)


def _says_what_it_awaits(work: Any) -> bool:
    return any(hasattr(work, name) for name in _AWAITS)


@dataclass
class Canceller:
    """Runs one operation in one world, cancels it, and goes on in the same process."""

    world: World
    operation: Operation
    code: Code = SOUND
    told: dict[str, int] = field(default_factory=dict)  # how often callers were told what
    excused: int = 0  # cancellations in `asyncio.wait_for`, which may be lost before Python 3.12

    def count(self) -> int:
        """The suspensions of the undisturbed run."""
        suspensions = Suspensions()
        run = self._run(suspensions)
        if run.violations:
            raise AssertionError(f"undisturbed: {run}")
        return suspensions.count

    def every(self, when: When, *, step: int = 1, first: int = 1) -> Iterator[Run]:
        """One run for each suspension there is; how many there are depends a little on time."""
        at = first
        while True:
            suspensions = Suspensions(at, when)
            run = self._run(suspensions)
            if suspensions.count < at:
                return
            yield run
            at += step

    def cancel(self, at: int, when: When) -> Run:
        """One run."""
        return self._run(Suspensions(at, when))

    def _run(self, suspensions: Suspensions) -> Run:
        self.world.empty()
        with asyncio.Runner() as runner:
            runner.run(self._prepared())
        with asyncio.Runner() as runner:
            found = runner.run(self._lived(suspensions))
        self.excused += suspensions.excused
        for report in self.world.reports.read():
            self.told[report["told"]] = self.told.get(report["told"], 0) + 1
        return Run(
            self.operation.name,
            self.world.name,
            self.code.name,
            (suspensions.at,),
            (suspensions.place,),
            list(dict.fromkeys(found)),
            0,
        )

    def _process(self) -> Process:
        return Process(self.world, CrashPoints(), code=self.code, **self.operation.memory())

    async def _prepared(self) -> None:
        process = self._process()
        try:
            await self.operation.prepare(process)
        finally:
            await process.end()

    async def _lived(self, suspensions: Suspensions) -> list[Violation]:
        loop = asyncio.get_running_loop()
        process = self._process()
        others = asyncio.all_tasks()
        loop.set_task_factory(suspensions.make_task)
        target = suspensions.target = loop.create_task(_as_coroutine(self.operation.run, process))
        try:
            await asyncio.wait({target}, timeout=PATIENCE)
            loop.set_task_factory(None)
            found = _ended(target, suspensions)
            found += await _left_behind(others | {target})
            found += await self._tidy(process)
            if found:
                return found  # what is left behind would only hold up the rest
            found += await self._answered(process)
            passed = process.database.clock.shift
            process.let_time_pass(max(self.operation.shift - passed, 0.0) + A_WHILE * 50)
            async with asyncio.timeout(PATIENCE):
                await self.operation.again(process)
                await self.operation.come_to_rest(process)
            found += judged(self.operation, self.world)
            await self.operation.deliver_again(process)
            return [*found, *judged(self.operation, self.world)]
        finally:
            loop.set_task_factory(None)
            await process.end()
            if process.held():  # by what is left behind: the next run must not wait for it
                process.points.end_all(self.world.observer)

    async def _tidy(self, process: Process) -> list[Violation]:
        """I18, I19: no connection is checked out, and the server has no transaction open."""
        process.stop_programs()
        deadline = time.monotonic() + SOON
        while True:
            held, threads = process.held(), process.in_threads()
            late = time.monotonic() > deadline
            # what is held has its transaction; a server is asked once nothing is
            left = 0 if (held or threads) and not late else self._open_transactions()
            if not (held or threads or left):
                return []
            if late:
                about = f"checked out {held}, transactions open {left}, in threads {threads}"
                return [Violation("I18", "connections", about)]
            # neither a pool nor a server tells when it is done
            dialect = self.world.observer.dialect.name if left else "a pool"
            await asyncio.sleep(LOOK_AGAIN[dialect])

    def _open_transactions(self) -> int:
        observer = self.world.observer
        if observer.dialect.name == "sqlite":
            connection = sqlite3.connect(str(observer.url.database), timeout=0)
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return 1
            finally:
                connection.close()
            return 0
        kind = "postgresql" if observer.dialect.name == "postgresql" else "mysql"
        with observer.connect() as connection_:
            return int(connection_.execute(sa.text(_OPEN[kind])).scalar_one())

    async def _answered(self, process: Process) -> list[Violation]:
        """I1: what was left unknown the database can tell, and tells the truth."""
        found = []
        for report in self.world.reports.read():
            if report["told"] != "unknown":
                continue
            ids = tuple(map(UUID, report["ids"]))
            unknown = CommitUnknown(ids, report["transaction"])
            said = await async_commit_outcome(
                process.database.async_engine, unknown, patience=SOON
            )
            committed = set(report["ids"]) <= set(self.world.facts().committed)
            sure = self.world.name.startswith("postgres")
            if (said is None and sure) or (said is not None and said is not committed):
                told = f"the outcome is said to be {said}, committed: {committed}"
                found.append(Violation("I1", f"messages {report['ids']}", told))
        return found


async def _as_coroutine(run: Callable[[Process], Awaitable[None]], process: Process) -> None:
    await run(process)


def _ended(target: asyncio.Task[Any], suspensions: Suspensions) -> list[Violation]:
    """A cancellation ends the task, and as itself."""
    if not target.done():
        return [Violation("cancel", suspensions.place, f"it did not end in {PATIENCE:g} s")]
    if target.cancelled():
        return []
    error = target.exception()
    if error is None and suspensions.excused:
        return []
    if suspensions.cancelled and not isinstance(error, asyncio.CancelledError):
        told = "was swallowed" if error is None else f"became {type(error).__name__}: {error}"
        return [Violation("cancel", suspensions.place, f"the cancellation {told}")]
    if error is not None:
        raise error
    return []


async def _left_behind(known: set[asyncio.Task[Any]]) -> list[Violation]:
    """Tasks that go on by themselves come to their end."""
    left = asyncio.all_tasks() - known - {asyncio.current_task()}
    if not left:
        return []
    _, still = await asyncio.wait(left, timeout=SOON)
    return [Violation("cancel", repr(task.get_coro()), "goes on for ever") for task in still]
