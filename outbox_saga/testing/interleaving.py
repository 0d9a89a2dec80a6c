"""Every order in which several actors can take their steps on a real database, one at a time.

    def play() -> Play:
        empty_the_tables()
        return Play(actors={"writer": write, "reader": read}, check=what_is_wrong)

    found = explore(play, [engine])
    assert not found.problems, found.report()

An actor is a function; it runs in a thread of its own. Its steps are cut before each statement,
commit and rollback (and wherever it calls `boundary("charge the card")`), and a baton lets exactly
one actor take one step at a time. Depth first, every choice is tried in turn. An actor whose
statement waits for a lock is found by asking the server, and the others go on; when all wait, that
is a deadlock, one of them gets an error, and the run says so. The same schedule gives the same
run: `replay(play, [engine], "writer reader reader writer")`.

Where `reach` says what each step may read and change, of the schedules that differ only in the
order of steps that reach nothing in common one is tried (`outbox_saga.testing.choices`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from outbox_saga.testing.choices import Choices, Diverged, Reach
from outbox_saga.testing.lock_waits import LockWaits, lock_waits

__all__ = [
    "Diverged",
    "Exploration",
    "Play",
    "Point",
    "Reach",
    "Run",
    "Stuck",
    "boundary",
    "explore",
    "replay",
]

Kind = Literal["execute", "commit", "rollback", "effect"]
State = Literal["unborn", "moving", "ready", "blocked", "done"]

_FAST = 0.005  # seconds an actor gets before the server is asked whether it waits


@dataclass(frozen=True, slots=True)
class Point:
    """A place where an actor stands still until it is its turn again; what it does next."""

    actor: str
    kind: Kind
    statement: str = ""
    reach: Reach | None = None  # None: anything

    def __str__(self) -> str:
        return f"{self.actor}: {self.kind} {' '.join(self.statement.split())[:100]}".rstrip()


@dataclass(slots=True)
class Run:
    """What happened in one schedule."""

    schedule: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    errors: dict[str, BaseException] = field(default_factory=dict)
    waits: int = 0
    deadlock: bool = False
    problem: str | None = None

    def report(self) -> str:
        """The schedule as `replay` takes it, and each step."""
        lines = [f"problem: {self.problem}", f'schedule: "{" ".join(self.schedule)}"', *self.trace]
        lines += [f"{actor} failed: {error!r}" for actor, error in self.errors.items()]
        return "\n  ".join(lines)


@dataclass(frozen=True)
class Play:
    """One fresh start: the actors, and what is wrong in the end.

    Args:
        actors: By name; names are words without spaces.
        check: Says what is wrong with the outcome, or None. Errors of actors are in the run.
    """

    actors: Mapping[str, Callable[[], object]]
    check: Callable[[Run], str | None]


@dataclass(slots=True)
class Exploration:
    """What all schedules came to."""

    schedules: int = 0
    left_out: int = 0  # given up when all that could follow was tried already
    with_waits: int = 0
    deadlocks: int = 0
    exhausted: bool = False
    seconds: float = 0.0
    problems: list[Run] = field(default_factory=list)

    def report(self) -> str:
        """The figures, and the first problem with all its steps."""
        text = (
            f"{self.schedules} schedules{'' if self.exhausted else ' (not all)'}, "
            f"{self.left_out} given up as tried already, "
            f"{self.with_waits} with lock waits, {self.deadlocks} with a deadlock, "
            f"{len(self.problems)} with a problem, {self.seconds:.1f} s"
        )
        return text + (f"\n{self.problems[0].report()}" if self.problems else "")


class Stuck(AssertionError):
    """An actor neither went on nor waited for a lock, within the deadline."""


class _Stopped(BaseException):
    """Ends an actor of a run that is given up."""


_here = threading.local()


def boundary(name: str) -> None:
    """Cuts the running actor's steps here, before an outside effect; elsewhere it does nothing."""
    actor: _Actor | None = getattr(_here, "actor", None)
    if actor is not None:
        actor.stand(Point(actor.name, "effect", name), None)


def explore(
    play: Callable[[], Play],
    engines: Sequence[sa.Engine],
    *,
    steps: Callable[[Point], bool] = lambda _: True,
    reach: Callable[[Point], Reach | None] | None = None,
    preemptions: int | None = None,
    limit: int | None = None,
    patience: float = 30.0,
    keep_problems: int = 10_000,
    progress: Callable[[Exploration], None] = lambda _: None,
) -> Exploration:
    """Every schedule, or every one within the bounds.

    Args:
        play: Called before each run; brings everything back to the same start.
        engines: Those the actors work with; all of one server.
        steps: False where no cut is wanted: what follows belongs to the step before.
        reach: What a step may read and change, asked at each point, in the order of the run; of
            schedules that come to the same by it one is tried. Where it is nothing there is no
            cut. None: anything.
        preemptions: How often an actor that could go on may be left; None: any number of times.
        limit: Runs; None: all.
        patience: Seconds a step may take.
        keep_problems: How many bad runs are kept whole.
        progress: Called after each run.
    """
    found = Exploration()
    choices = Choices(preemptions, by_reach=reach is not None)
    started = time.monotonic()
    with _stage(engines, steps, patience, reach) as stage:
        while limit is None or found.schedules < limit:
            run = stage.run(play(), choices.choose)
            found.seconds = time.monotonic() - started
            if run is None:
                found.left_out += 1
            else:
                found.schedules += 1
                found.with_waits += run.waits > 0
                found.deadlocks += run.deadlock
                if run.problem is not None and len(found.problems) < keep_problems:
                    found.problems.append(run)
                progress(found)
            if not choices.next():
                found.exhausted = True
                break
    return found


def replay(
    play: Callable[[], Play],
    engines: Sequence[sa.Engine],
    schedule: str,
    *,
    steps: Callable[[Point], bool] = lambda _: True,
    reach: Callable[[Point], Reach | None] | None = None,
    patience: float = 30.0,
) -> Run:
    """One run by the schedule that a report printed; after its end, whoever can goes on."""
    names = schedule.split()

    def choose(
        ready: Mapping[str, Reach | None], depth: int, *, waiting: Mapping[str, Reach | None]
    ) -> str:
        del waiting
        if depth >= len(names):
            return next(iter(ready))
        if names[depth] not in ready:
            raise Diverged(f"step {depth}: {names[depth]} cannot go on, only {list(ready)} can")
        return names[depth]

    with _stage(engines, steps, patience, reach) as stage:
        run = stage.run(play(), choose)
    assert run is not None
    return run


class _Choose(Protocol):
    def __call__(
        self,
        ready: Mapping[str, Reach | None],
        depth: int,
        *,
        waiting: Mapping[str, Reach | None],
    ) -> str | None: ...


# --- one run -------------------------------------------------------------------------------------


class _Actor:
    def __init__(self, name: str, work: Callable[[], object], stage: _Stage) -> None:
        self.name = name
        self.state: State = "unborn"
        self.next: Point | None = None
        self.session: int | None = None
        self.error: BaseException | None = None
        self._work = work
        self._stage = stage
        self._turn = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._live, name=f"actor {name}", daemon=True)

    def __str__(self) -> str:
        if self.state == "done":
            return f"{self.name}: done" + (f", {self.error!r}" if self.error else "")
        return f"{self.name}: {self.state}, then {self.next}"

    def _live(self) -> None:
        _here.actor = self
        try:
            self._work()
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001  # reported with the run
            self.error = error
        finally:
            _here.actor = None
            self._tell("done")

    def stand(self, point: Point, session: int | None) -> None:
        """Stand still until it is this actor's turn."""
        if session is not None:
            self.session = session
        reach = self._stage.reach(point) if self._stage.reach else None
        if not self._stage.steps(point) or (reach is not None and not reach):
            return
        if not self._stage.given_up:
            self.next = replace(point, reach=reach)
            self._tell("ready")
            self._turn.acquire()
        if self._stage.given_up and point.kind != "rollback":
            raise _Stopped

    def go(self) -> None:
        """It is this actor's turn."""
        self.state = "moving"
        self._turn.release()

    def _tell(self, state: State) -> None:
        with self._stage.news:
            self.state = state
            self._stage.told += 1
            self._stage.news.notify_all()


class _Stage:
    """Where runs take place: the hooks, the baton, and who is asked about lock waits."""

    def __init__(
        self,
        steps: Callable[[Point], bool],
        waits: LockWaits,
        patience: float,
        reach: Callable[[Point], Reach | None] | None,
    ) -> None:
        self.steps = steps
        self.reach = reach
        self.news = threading.Condition()
        self.told = 0
        self.given_up = False
        self._waits = waits
        self._patience = patience
        self._actors: list[_Actor] = []

    def run(self, play: Play, choose: _Choose) -> Run | None:
        """None: the run was given up."""
        run = Run()
        self.given_up = False
        self._actors = [_Actor(name, work, self) for name, work in play.actors.items()]
        by_name = {actor.name: actor for actor in self._actors}
        try:
            for actor in self._actors:
                actor.state = "moving"
                actor.thread.start()
                self._settle(run)
            while any(actor.state != "done" for actor in self._actors):
                ready = self._reaches("ready")
                if not ready:
                    self._end_deadlock(run)
                    continue
                waiting = self._reaches("blocked")
                chosen = choose(ready, len(run.schedule), waiting=waiting)
                if chosen is None:
                    return None
                actor = by_name[chosen]
                run.schedule.append(actor.name)
                run.trace.append(str(actor.next))
                actor.go()
                self._settle(run, last=actor)
        except BaseException as error:
            error.add_note(run.report())
            error.add_note("\n".join(map(str, self._actors)))
            raise
        finally:
            self._clear()
        run.errors = {a.name: a.error for a in self._actors if a.error is not None}
        run.deadlock = run.deadlock or any(_is_deadlock(e) for e in run.errors.values())
        run.problem = play.check(run)
        return run

    def _settle(self, run: Run, last: _Actor | None = None) -> None:
        """Until each actor stands at a point, has ended, or waits for a lock.

        Whoever waited is looked at again: the last step may have set it free.
        """
        deadline = time.monotonic() + self._patience
        while True:
            with self.news:
                self.news.wait_for(lambda: not self._in("moving"), _FAST)
                seen = self.told
                unsettled = self._in("moving", "blocked")
            if not unsettled:
                return
            waiting = self._waits.waiting([a.session for a in unsettled if a.session is not None])
            with self.news:
                if self.told != seen:
                    continue  # somebody moved meanwhile: the answer is old
                for actor in unsettled:
                    actor.state = "blocked" if actor.session in waiting else "moving"
                if not self._in("moving"):
                    if last is not None and last.state == "blocked":
                        run.waits += 1
                        run.trace.append(f"  {last.name} waits for a lock")
                    return
            if time.monotonic() > deadline:
                names = ", ".join(actor.name for actor in self._in("moving"))
                raise Stuck(f"{names}: neither done nor waiting after {self._patience} s")

    def _reaches(self, state: State) -> dict[str, Reach | None]:
        return {a.name: a.next.reach for a in self._in(state) if a.next is not None}

    def _in(self, *states: State) -> list[_Actor]:
        return [actor for actor in self._actors if actor.state in states]

    def _end_deadlock(self, run: Run) -> None:
        """All wait: the one that closed the circle gets the error, as on the server itself."""
        run.deadlock = True
        names = [name for name in run.schedule if name in {a.name for a in self._in("blocked")}]
        victim = next(actor for actor in self._actors if actor.name == names[-1])
        run.trace.append(f"  deadlock; {victim.name} gets an error")
        assert victim.session is not None
        victim.state = "moving"  # before the error can reach it
        seen = self.told
        self._waits.cancel(victim.session)
        with self.news:
            if not self.news.wait_for(lambda: self.told != seen, self._patience):
                raise Stuck(f"{victim.name}: not woken by an error after {self._patience} s")
        self._settle(run)

    def _clear(self) -> None:
        """No actor is left running."""
        self.given_up = True
        deadline = time.monotonic() + self._patience
        for actor in self._actors:
            while actor.thread.is_alive() and time.monotonic() < deadline:
                if actor.state == "blocked" and actor.session is not None:
                    self._waits.cancel(actor.session)
                actor.go()
                actor.thread.join(0.05)


def _is_deadlock(error: BaseException) -> bool:
    if not isinstance(error, DBAPIError):
        return False
    arguments = getattr(error.orig, "args", ())
    return getattr(error.orig, "sqlstate", None) == "40P01" or arguments[:1] == (1213,)


# --- hooks ---------------------------------------------------------------------------------------


@contextmanager
def _stage(
    engines: Sequence[sa.Engine],
    steps: Callable[[Point], bool],
    patience: float,
    reach: Callable[[Point], Reach | None] | None,
) -> Iterator[_Stage]:
    with ExitStack() as stack:
        waits = lock_waits(engines[0])
        stack.callback(waits.close)
        for engine in engines:
            engine.connect().close()  # a first connect has statements of its own
            stack.enter_context(_hooks(engine.dialect, waits))
        stack.enter_context(_no_pipelines(engines[0].dialect))
        yield _Stage(steps, waits, patience, reach)


@contextmanager
def _no_pipelines(dialect: sa.Dialect) -> Iterator[None]:
    """While open, what actors send by a pipeline of psycopg goes one by one.

    The server carries it out one by one as well, with others in between; but it begins when it
    likes, and who stands still between two statements knows nothing of how far it is.
    """
    if dialect.driver != "psycopg":
        yield
        return
    dbapi: Any = dialect.loaded_dbapi
    real = dbapi.Connection.pipeline

    def pipeline(connection: Any) -> AbstractContextManager[Any]:
        return real(connection) if getattr(_here, "actor", None) is None else nullcontext()

    dbapi.Connection.pipeline = pipeline
    try:
        yield
    finally:
        dbapi.Connection.pipeline = real


@contextmanager
def _hooks(dialect: Any, waits: LockWaits) -> Iterator[None]:
    """While open, the dialect's calls are points for actors; other threads notice nothing."""

    def before(kind: Kind, raw: Any, statement: str) -> None:
        actor: _Actor | None = getattr(_here, "actor", None)
        if actor is not None:
            raw = getattr(raw, "dbapi_connection", raw)
            actor.stand(Point(actor.name, kind, statement), waits.session(raw))

    def on_cursor(real: Callable[..., Any]) -> Callable[..., Any]:
        def hooked(cursor: Any, statement: str, *arguments: Any, **options: Any) -> Any:
            before("execute", cursor.connection, statement)
            return real(cursor, statement, *arguments, **options)

        return hooked

    def on_connection(kind: Kind, real: Callable[..., Any]) -> Callable[..., Any]:
        def hooked(connection: Any) -> Any:
            before(kind, connection, "")
            return real(connection)

        return hooked

    hooked = {
        name: on_cursor(getattr(dialect, name))
        for name in ("do_execute", "do_executemany", "do_execute_no_params")
    }
    hooked["do_commit"] = on_connection("commit", dialect.do_commit)
    hooked["do_rollback"] = on_connection("rollback", dialect.do_rollback)
    for name, function in hooked.items():
        setattr(dialect, name, function)
    try:
        yield
    finally:
        for name in hooked:
            delattr(dialect, name)
