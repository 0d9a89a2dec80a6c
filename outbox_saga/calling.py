"""Users' code, run within its time; what it raises, and however it ends, stays an answer."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from outbox_saga.errors import OutboxSagaError
from outbox_saga.worker_threads import Threads, leave_alone

logger = logging.getLogger(__name__)

T = TypeVar("T")

CANCELLED_AGAIN = 1.0  # seconds until one that was cancelled, and goes on, is cancelled again
STUBBORN = 5.0  # seconds that cancelled code gets to tidy up
LOOK = 30.0  # seconds between two looks whether there will be a thread at all
_left_alone: set[asyncio.Task[Any]] = set()


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


class NoThread(NothingRan):
    """All threads are held by code that outlived its time: certainly nothing was done."""


class OutOfTime(TimeoutError):
    """Its time is over, and we ended it; any other TimeoutError is its own.

    Args:
        task: What goes on all the same, because it swallowed its cancellation.
    """

    def __init__(self, task: asyncio.Task[Any] | None = None) -> None:
        super().__init__(
            ""
            if task is None
            else "its time is over, and it goes on: it swallowed its cancellation"
        )
        self.task = task


async def call_in_time(
    action: Callable[[Any], Any],
    context: Any,
    seconds: float | None,
    goes_on: Callable[[asyncio.Task[Any]], object] | None = None,
) -> Any:
    """The answer of an `async def` action within so many seconds (None: whenever it comes).

    It runs in a task of its own: one that cancels its own task cancels nothing of ours, and one
    that does not end when it is cancelled is left to itself.

    Args:
        goes_on: Called with the task that is left to itself, before anything is raised.

    Raises:
        OutOfTime: Its time is over; it was cancelled.
        Misbehaved: It let out a cancellation that nobody asked for, or SystemExit.
    """
    task = asyncio.create_task(_contained(action, context))
    try:
        await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        await _end(task, goes_on)
        raise
    if not task.done():
        await _end(task, goes_on)
        if not task.done():
            raise OutOfTime(task)
        if task.cancelled() or task.exception() is not None:
            raise OutOfTime
    if task.cancelled():
        raise Misbehaved("it was cancelled from inside; await tasks that others cancel")
    return task.result()


async def _contained(action: Callable[[Any], Any], context: Any) -> Any:
    try:
        return await action(context)
    except SystemExit:  # a task would end the loop with it
        raise Misbehaved("it called sys.exit(); raise an error instead") from None
    except (Exception, asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
        raise  # of those that are no errors, who ends it, or the process, asked for them
    except BaseException as error:
        raise Misbehaved(f"it raised {type(error).__name__}") from error


async def _end(
    task: asyncio.Task[Any], goes_on: Callable[[asyncio.Task[Any]], object] | None
) -> None:
    """Cancels it, and waits a moment for what it does then."""
    task.cancel()
    try:
        # whoever is cancelled again meanwhile would go on while it still uses its connection
        await to_the_end(asyncio.wait({task}, timeout=STUBBORN))
    finally:
        if not task.done():
            _left_alone.add(task)  # the loop itself holds tasks only weakly
            if goes_on is not None:
                goes_on(task)
        task.add_done_callback(_has_ended)


async def until_ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Returns when all of these have ended, which are cancelled until they have.

    For loops that end no other way: a driver, as Python 3.11's `wait_for` does, may swallow a
    cancellation that comes at the moment of what it waits for. The loop would go on for ever, and
    whoever ends it would wait as long. Not for work that tidies up when it is cancelled: the
    second time would interrupt that.
    """
    all_of_them = left = set(tasks)
    while left := {task for task in left if not task.done()}:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=CANCELLED_AGAIN)
    for task in all_of_them:
        _has_ended(task)


def _has_ended(task: asyncio.Task[Any]) -> None:
    _left_alone.discard(task)
    if not task.cancelled():
        task.exception()  # it was asked for: nobody needs to be told that nobody did


async def begin_in_thread(
    threads: Threads, work: Callable[[], T], seconds: float
) -> tuple[asyncio.Future[T], bool]:
    """The work, and whether it ended within so many seconds of its begin in the thread.

    Waiting for a thread is not the work's time: it would be counted as a failed attempt.
    """

    def begun_at_once(begin: Callable[[], None]) -> T:
        begin()
        return work()

    return await time_in_thread(threads, begun_at_once, seconds)


async def time_in_thread(
    threads: Threads, work: Callable[[Callable[[], None]], T], seconds: float | None
) -> tuple[asyncio.Future[T], bool]:
    """The work, and whether it ended within so many seconds of the moment it called what it gets.

    What comes before that call (waiting for a lock, say) is not its time. None: no limit.

    Raises:
        NoThread: None was free for so long, and all are held by what outlived its time.
    """
    begun: list[float] = []  # when; told by the thread, which need not wake the loop for it
    inside = contextvars.copy_context()

    def run() -> T:
        try:
            return inside.run(work, lambda: begun.append(time.monotonic()))
        except BaseException as error:
            if can_be_carried(error):
                raise
            raise Misbehaved(f"it raised {type(error).__name__}") from error

    submitted = threads.submit(run)
    future = asyncio.wrap_future(submitted)
    left: float | None = LOOK if seconds is None else seconds
    try:
        while not future.done() and (left is None or left > 0):
            await asyncio.wait({future}, timeout=left)
            if begun:
                left = None if seconds is None else begun[0] + seconds - time.monotonic()
            elif threads.all_overdue and submitted.cancel():
                raise NoThread(
                    "all threads are held by plain `def` code that outlived its timeout; give "
                    "what it waits for a timeout of its own (the HTTP client, say)"
                )
    except asyncio.CancelledError:
        if not submitted.cancel():  # it has begun, and nobody waits for it any more
            so_far = time.monotonic() - begun[0] if begun else 0.0
            leave_alone(submitted, None if seconds is None else seconds - so_far)
        future.add_done_callback(_ended_alone)
        raise
    if not future.done():
        threads.outlived(submitted)
    return future, future.done()


def can_be_carried(error: BaseException) -> bool:
    """Whether what a thread raised arrives as an error at whoever waits for its future.

    A future cannot carry StopIteration. Cancellations (of what the thread has waited for) look
    like one of the waiting task, and what is no Exception ends that, or the process.
    """
    odd = (StopIteration, concurrent.futures.CancelledError)
    return isinstance(error, Exception) and not isinstance(error, odd)


def _ended_alone(future: asyncio.Future[Any]) -> None:
    # asked for: asyncio tells of an error that nobody took, with all that its text may show
    if not future.cancelled() and (error := future.exception()) is not None:
        logger.info("code that nobody waited for any more ended with %s", type(error).__name__)


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
