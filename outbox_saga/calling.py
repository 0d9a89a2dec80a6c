"""Users' code, run within its time; what it raises, and however it ends, stays an answer."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from outbox_saga.errors import OutboxSagaError

T = TypeVar("T")


class Misbehaved(OutboxSagaError):
    """A step ended in a way that no step may: cancelled from inside, or by ending the process."""


class NothingRan(Misbehaved):
    """A step answered with something that has yet to run: certainly nothing was done."""


class Deadline:
    """Who comes first: the commit of users' work, or the end of its time.

    A thread cannot be cancelled, but it can be told.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = "open"

    def claim_commit(self) -> bool:
        """True when the work may commit; then its time can no longer end."""
        return self._move("committing")

    def expire(self) -> bool:
        """True when its time has ended; then it can no longer commit."""
        return self._move("expired")

    def _move(self, state: str) -> bool:
        with self._lock:
            if self._state != "open":
                return False
            self._state = state
            return True


class OutOfTime(TimeoutError):
    """Its time is over, and we ended it; any other TimeoutError is its own."""


async def call_in_time(action: Callable[[Any], Any], context: Any, seconds: float | None) -> Any:
    """The answer of an `async def` action within so many seconds (None: whenever it comes).

    Raises:
        OutOfTime: Its time is over; it was cancelled.
        Misbehaved: It let out a cancellation that nobody asked for, or SystemExit.
    """
    timer = asyncio.timeout(seconds)
    try:
        async with timer:
            return await action(context)
    except TimeoutError:
        if timer.expired():
            raise OutOfTime from None
        raise
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Misbehaved("it was cancelled from inside; await tasks that others cancel") from None
    except SystemExit:
        raise Misbehaved("it called sys.exit(); raise an error instead") from None


async def begin_in_thread(
    threads: Executor, work: Callable[[], T], seconds: float
) -> tuple[asyncio.Future[T], bool]:
    """The work, and whether it ended within so many seconds of its begin in the thread.

    Waiting for a thread is not the work's time: it would be counted as a failed attempt.
    """

    def begun_at_once(begin: Callable[[], None]) -> T:
        begin()
        return work()

    return await time_in_thread(threads, begun_at_once, seconds)


async def time_in_thread(
    threads: Executor, work: Callable[[Callable[[], None]], T], seconds: float | None
) -> tuple[asyncio.Future[T], bool]:
    """The work, and whether it ended within so many seconds of the moment it called what it gets.

    What comes before that call (waiting for a lock, say) is not its time. None: no limit.
    """
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()
    inside = contextvars.copy_context()

    def begin() -> None:
        loop.call_soon_threadsafe(begun.set)

    def run() -> T:
        try:
            return inside.run(work, begin)
        except (SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit) as error:
            # a future cannot carry them, or would end the process with them
            raise Misbehaved(f"it raised {type(error).__name__}") from error

    future = loop.run_in_executor(threads, run)
    beginning = asyncio.create_task(begun.wait())
    try:
        either: set[asyncio.Future[Any]] = {beginning, future}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        beginning.cancel()
    done, _ = await asyncio.wait({future}, timeout=seconds)
    return future, bool(done)


async def to_the_end(awaitable: Any) -> Any:
    """The result, even if the caller is cancelled meanwhile.

    The cancellation is raised afterwards.
    """
    task = asyncio.ensure_future(awaitable)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except Exception:  # noqa: BLE001  # raised below, by result()
            break
    if cancelled is not None:
        task.exception()
        raise cancelled
    return task.result()


def refuse_coroutine(answer: object) -> None:
    """Raises NothingRan for an answer that has yet to run."""
    if inspect.isawaitable(answer) or inspect.isgenerator(answer) or inspect.isasyncgen(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise NothingRan(
            f"it returned a {type(answer).__name__} that nobody ran; make the action `async def`"
        )


def told(error: BaseException) -> str:
    """The error in a line; never fails."""
    try:
        lines = str(error).splitlines()
    except Exception:  # noqa: BLE001  # its own __str__ failed
        lines = []
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def place(error: BaseException) -> str:
    """The error's type and where it was raised; no message, which may show values."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
