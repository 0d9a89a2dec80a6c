"""A unit of work again, as a whole, when the database gave it up.

    def place(uow: UnitOfWork[Session]) -> int:
        order = Order(note="tea")
        uow.session.add(order)
        uow.session.flush()
        uow.publish(OrderPlaced(order_id=order.id), key=f"order:{order.id}")
        return order.id

    order_id = retry_unit(Session, place)                   # Session: a sessionmaker
    order_id = await retry_unit(AsyncSession, place_async)  # an async_sessionmaker

Deadlocks, serialization failures and lost connections say nothing about the work itself. But the
server has undone all of the transaction by then, so one statement repeated alone would commit half
of a unit: only the whole may be repeated.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, overload

from sqlalchemy.orm import Session, sessionmaker

from outbox_saga.errors import CommitUnknown
from outbox_saga.ids import new_id
from outbox_saga.queries.dialects import brief
from outbox_saga.retries import Retry
from outbox_saga.unit_attempts import Attempt
from outbox_saga.unit_of_work import UnitOfWork, unit_of_work

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

    SyncS = TypeVar("SyncS", bound=Session)
    AsyncS = TypeVar("AsyncS", bound=AsyncSession)

T = TypeVar("T")

logger = logging.getLogger("outbox_saga.unit_of_work")

UNIT = Retry(max_attempts=5, initial=0.02, max_delay=0.5)  # conflicts pass within milliseconds


@overload
def retry_unit(
    make: sessionmaker[SyncS],
    work: Callable[[UnitOfWork[SyncS]], T],
    *,
    retry: Retry = UNIT,
    resolve: Callable[[CommitUnknown], bool] | None = None,
    sleep: Callable[[float], object] | None = None,
    **options: Any,
) -> T: ...
@overload
def retry_unit(
    make: async_sessionmaker[AsyncS],
    work: Callable[[UnitOfWork[AsyncS]], Awaitable[T]],
    *,
    retry: Retry = UNIT,
    resolve: Callable[[CommitUnknown], bool | Awaitable[bool]] | None = None,
    sleep: Callable[[float], Awaitable[object]] | None = None,
    **options: Any,
) -> Coroutine[Any, Any, T]: ...


def retry_unit(
    make: Any,
    work: Callable[[UnitOfWork[Any]], Any],
    *,
    retry: Retry = UNIT,
    resolve: Callable[[CommitUnknown], Any] | None = None,
    sleep: Callable[[float], Any] | None = None,
    **options: Any,
) -> Any:
    """What `work` did is committed once, with its messages, and its value returned; or nothing is.

    `work` runs in a `unit_of_work`. When the database gave the transaction up (deadlock, lock
    timeout, serialization failure, lost connection, SQLITE_BUSY; by SQLSTATE or errno, never by
    text), all of it is rolled back and run again in a new session, after a jittered pause. What an
    attempt published that was rolled back never leaves. Any other error is raised at once.

    It is not repeated when the connection was lost during COMMIT: it may be committed, and a
    repeat would do everything twice. Only `resolve` can tell.

    `work` is a function, because Python cannot run the block of a `with` twice, and because what
    an attempt left in the variables of a loop would outlive its rollback. What it does outside the
    database happens with every attempt. A session with several engines is no unit: they commit one
    after another.

    Args:
        make: A sessionmaker; or an async_sessionmaker, then await what this returns.
        work: Gets the UnitOfWork. A plain function for a sessionmaker, one that returns an
            awaitable (`async def`) for an async_sessionmaker.
        retry: How many attempts in all, and the seconds between them. The default gives up after
            about a second; give it more to outlast a failover.
        resolve: Asked when COMMIT's outcome is unknown: True, it is committed (then the value of
            `work` is returned); False, it certainly is not and cannot be any more (then it is
            repeated). For an async_sessionmaker it may be `async def`. None: CommitUnknown is
            raised.
        sleep: Instead of time.sleep or asyncio.sleep: gets the seconds.
        options: Those of `UnitOfWork`.

    Raises:
        CommitUnknown: Perhaps committed: no `resolve`, or it failed.
        TypeError: `work` is not of the kind that `make` needs; nothing was committed.
        Exception: The last attempt's error, as it came, with a note of how many there were.

    Example:
        retry_unit(Session, lambda uow: place(uow, order_id), retry=Retry(max_attempts=10))
    """
    unit = _Unit(make, work, retry, resolve, sleep, options)
    # by the class: importing async_sessionmaker would load SQLAlchemy's other half
    if hasattr(getattr(make, "class_", None), "sync_session_class"):
        return unit.run_async()
    return unit.run()


@dataclass(slots=True)
class _Unit:
    """The two ways of running it, and the one way of deciding what becomes of an attempt."""

    make: Any
    work: Callable[[UnitOfWork[Any]], Any]
    retry: Retry
    resolve: Callable[[CommitUnknown], Any] | None
    sleep: Callable[[float], Any] | None
    options: dict[str, Any]
    seed: str = field(default_factory=lambda: str(new_id()))
    attempts: int = 0

    def run(self) -> Any:
        sleep = self.sleep or time.sleep
        while True:
            attempt, value = Attempt(), None
            try:
                with unit_of_work(self.make, **self.options) as uow, attempt.at_work(uow):
                    value = _at_once(self.work(uow))
            except BaseException as error:  # noqa: BLE001  # `pause` raises it
                if self.resolve and attempt.returned and isinstance(error, CommitUnknown):
                    with _asking(error):
                        answer = self.resolve(error)
                    if attempt.resolved(answer, error):
                        return value
                pause = self.pause(attempt, error)
            else:
                return value
            sleep(pause)

    async def run_async(self) -> Any:
        sleep = self.sleep or asyncio.sleep
        while True:
            attempt, value = Attempt(), None
            try:
                async with unit_of_work(self.make, **self.options) as uow:
                    with attempt.at_work(uow):
                        value = await _awaitable(self.work(uow))
            except BaseException as error:  # noqa: BLE001  # `pause` raises it
                if self.resolve and attempt.returned and isinstance(error, CommitUnknown):
                    with _asking(error):
                        answer = self.resolve(error)
                        answer = await answer if inspect.isawaitable(answer) else answer
                    if attempt.resolved(answer, error):
                        return value
                pause = self.pause(attempt, error)
            else:
                return value
            await sleep(pause)

    def pause(self, attempt: Attempt, error: BaseException) -> float:
        """Seconds until the next attempt; raises the attempt's error when there must be none."""
        self.attempts += 1
        failed = attempt.raised or error
        if not isinstance(error, Exception):
            failed = error  # a cancellation during the rollback, say
        if not isinstance(failed, Exception) or not attempt.may_be_repeated(failed):
            attempt.forget()
            if self.attempts > 1:
                failed.add_note(
                    f"Attempt {self.attempts} of this unit of work; passing troubles of the "
                    "database rolled back those before."
                )
            raise failed
        attempt.forget()
        if self.retry.exhausted(self.attempts):
            failed.add_note(
                f"The unit of work was rolled back; attempts: {self.attempts}, and none is left. "
                "Run it again later, or give retry=Retry(max_attempts=…)."
            )
            raise failed
        seconds = self.retry.delay(self.attempts, seed=self.seed)
        logger.info(
            "a unit of work was rolled back (%s), attempt %s of %s; again in %.2f s",
            brief(failed),
            self.attempts,
            self.retry.max_attempts,
            seconds,
        )
        return seconds


@contextmanager
def _asking(unknown: CommitUnknown) -> Iterator[None]:
    """Whatever keeps `resolve` from an answer, the outcome is still unknown, and that is told."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # told with the one that matters
        told = f"resolve gave no answer ({brief(error)}): look before the unit is run again."
        unknown.add_note(told)
        raise unknown from unknown.__cause__


def _at_once(answer: object) -> Any:
    if inspect.isawaitable(answer) or inspect.isgenerator(answer) or inspect.isasyncgen(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise TypeError(
            f"work returned a {type(answer).__name__}, which nobody runs: give a plain function, "
            "or an async_sessionmaker and `await`"
        )
    return answer


def _awaitable(answer: Any) -> Any:
    if not inspect.isawaitable(answer):
        raise TypeError(
            f"work returned a {type(answer).__name__}: with an async_sessionmaker give an "
            "`async def` function"
        )
    return answer
