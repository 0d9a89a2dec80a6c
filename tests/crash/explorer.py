"""An operation is killed at a point.

The next process recovers, and the oracle looks at what is left.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outbox_saga.testing.crash_points import CrashPoints
from outbox_saga.testing.invariants import HistoryRow, Violation
from tests.crash.operation import Operation, nothing
from tests.crash.oracle import judged
from tests.crash.planted import SOUND, Code
from tests.crash.process import A_WHILE, Process
from tests.crash.world import World

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0  # seconds for one start of a process
KILLED = -9


class PointNotReached(AssertionError):
    """The run ended before it came to the point it should have died at.

    The run is not what was counted.
    """


@dataclass(frozen=True)
class Run:
    """What came of one crash (or of two).

    Args:
        at: The points at which processes died, in their order.
        places: What stands there.
        violations: What must never be.
        recovery: How many points the recovery came to.
    """

    operation: str
    database: str
    code: str
    at: tuple[int, ...]
    places: tuple[str, ...]
    violations: list[Violation]
    recovery: int

    def __str__(self) -> str:
        where = " and ".join(
            f"{at} ({place})" for at, place in zip(self.at, self.places, strict=True)
        )
        return (
            f"operation {self.operation!r} on {self.database}, code {self.code}, "
            f"died at point {where}: " + "; ".join(str(v) for v in self.violations)
        )


@dataclass
class Explorer:
    """Runs one operation in one world, with one code."""

    world: World
    operation: Operation
    code: Code = SOUND
    _earlier: list[HistoryRow] = field(default_factory=list)
    _found: list[Violation] = field(default_factory=list)  # before brokers deliver once more

    def count(self) -> int:
        """The points of the undisturbed run, which must leave everything well by itself."""
        return self.come_to().count

    def moments(self) -> list[int]:
        """Of those points the ones at which something else is left behind than at the one before.

        All there are, for whoever tries every one.
        """
        return self.come_to().moments

    def come_to(self) -> CrashPoints:
        """What the undisturbed run came to; it must leave everything well by itself."""
        points, run = self.undisturbed()
        if run.violations:
            raise AssertionError(f"undisturbed: {run}")
        return points

    def undisturbed(self) -> tuple[CrashPoints, Run]:
        """What the undisturbed run came to, and what came of it."""
        points = self._prepared_run(CrashPoints(outside=self.world.logged))
        self._recover(CrashPoints())
        return points, self._judge((), (), 0)

    def dies(self, at: int) -> CrashPoints:
        """At this point, and nobody recovers."""
        return self._prepared_run(CrashPoints(at))

    def crash(self, at: int) -> Run:
        """Dies at this point; the next process recovers."""
        points = self.dies(at)
        recovery = self._recover(CrashPoints())
        return self._judge((at,), (points.place,), recovery.count)

    def crash_twice(self, at: int, again: int) -> Run:
        """Dies at this point, and the next process at that point of its recovery.

        A third one recovers.
        """
        first = self.dies(at)
        second = self._recover(CrashPoints(again))
        third = self._recover(CrashPoints(), later=2 * A_WHILE * 100)
        return self._judge((at, again), (first.place, second.place), third.count)

    def kill(self, at: int) -> Run:
        """As `crash`, but a real process gets a real SIGKILL."""
        self._prepare()
        child = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.crash.victim",
                self.world.name,
                self.world.url,
                self.world.bare,
                str(self.world.folder),
                self.operation.name,
                str(at),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if child.returncode != KILLED:
            raise PointNotReached(f"point {at} of {self.operation.name!r}: {child.stderr[-2000:]}")
        self._earlier += self.world.history()
        recovery = self._recover(CrashPoints())
        return self._judge((at,), ("SIGKILL",), recovery.count)

    # --- one start of a process ------------------------------------------------------------------

    def _prepare(self) -> None:
        self.world.empty()
        self._earlier, self._found = [], []
        if self.operation.prepare is not nothing:
            self._start(self._process(CrashPoints()), self.operation.prepare)

    def _prepared_run(self, points: CrashPoints) -> CrashPoints:
        self._prepare()
        self._start(self._process(points), self.operation.run)
        return points

    def _recover(self, points: CrashPoints, *, later: float = A_WHILE * 50) -> CrashPoints:
        self._start(self._process(points, later + self.operation.shift), self._recovered)
        return points

    async def _recovered(self, process: Process) -> None:
        await self.operation.again(process)
        await self.operation.come_to_rest(process)
        # what comes again must not make good what was lost before
        self._found = self._violations()
        await self.operation.deliver_again(process)

    def _process(self, points: CrashPoints, later: float = 0.0) -> Process:
        return Process(
            self.world,
            points,
            later=later,
            code=self.code,
            **self.operation.memory(),
        )

    def _start(self, process: Process, work: Callable[[Process], Awaitable[None]]) -> None:
        points = process.points
        with asyncio.Runner() as runner:
            runner.run(_lived(process, work))
        if points.dead:
            self.world.let_go()
            self._earlier += self.world.history()
        elif points.at is not None:
            raise PointNotReached(
                f"operation {self.operation.name!r} on {self.world.name}: "
                f"point {points.at} of {points.count}"
            )

    def _judge(self, at: tuple[int, ...], places: tuple[str, ...], recovery: int) -> Run:
        found = list(dict.fromkeys([*self._found, *self._violations()]))
        return Run(
            self.operation.name, self.world.name, self.code.name, at, places, found, recovery
        )

    def _violations(self) -> list[Violation]:
        return judged(self.operation, self.world, self._earlier)


async def _lived(process: Process, work: Callable[[Process], Awaitable[None]]) -> None:
    """The life of a process up to its end.

    Or its death, after which nothing of it is left in this loop.
    """
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    living = asyncio.create_task(_within_patience(process, work))
    try:
        await asyncio.wait({living})
        others = asyncio.all_tasks() - {asyncio.current_task(), living}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    finally:
        await process.end()
    if living.exception() is not None and not process.points.dead:
        living.result()
    if unheard and not process.points.dead:
        raise AssertionError(f"an error that nobody heard of: {unheard}")


async def _within_patience(process: Process, work: Callable[[Process], Awaitable[None]]) -> None:
    async with asyncio.timeout(PATIENCE):
        await work(process)


def every(step: int, count: int, *, first: int = 1) -> Iterator[int]:
    """Every `step`-th point, and the last."""
    yield from range(first, count, step)
    yield count


def singles(explorer: Explorer, points: Iterable[int]) -> Iterator[Run]:
    """One run for each of these points."""
    for at in points:
        yield explorer.crash(at)
