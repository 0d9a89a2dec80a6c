"""Users' code, run within its time; what it raises, and however it ends, stays an answer."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
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


async def call_in_time(action: Callable[[Any], Any], context: Any, seconds: float) -> Any:
    """The answer of an `async def` action within so many seconds.

    Raises:
        TimeoutError: Its time is over; it was cancelled.
        Misbehaved: It let out a cancellation that nobody asked for, or SystemExit.
    """
    try:
        async with asyncio.timeout(seconds):
            return await action(context)
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
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()
    inside = contextvars.copy_context()

    def run() -> T:
        loop.call_soon_threadsafe(begun.set)
        try:
            return inside.run(work)
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
