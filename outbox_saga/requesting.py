"""Requests: a command to another service, and its answer, without a saga.

    quoted = await shop.async_request(GetQuote(order_id=7), timeout=5)
    match quoted:
        case Success(fields): ...                        # what the handler answered
        case Failure(reason): ...                        # a business no: nothing was done

The command leaves by the outbox, is carried out once (`Service.handles`), and its answer is a row
in the asking service's database, so any process of that service may wait for it, at any time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias
from uuid import UUID

from outbox_saga.commanding import Answer, Asked, answers_on, requests_topic
from outbox_saga.database import READ_ONLY, Database
from outbox_saga.errors import ConfigurationError, HandlerFailed, RequestFaulted, RequestTimeout
from outbox_saga.handler_context import HandlerContext
from outbox_saga.ids import new_id
from outbox_saga.instances import Direction
from outbox_saga.messages import Command, Message
from outbox_saga.queries import replies
from outbox_saga.queries.passing import passes
from outbox_saga.queries.replies import Outcome, Replied
from outbox_saga.results import Failure, Success
from outbox_saga.unit_of_work import UnitOfWork

STEP = "request"
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.25  # seconds between two looks

Handler: TypeAlias = Callable[[HandlerContext[Any]], Awaitable[None]]
Answered: TypeAlias = Success[dict[str, Any]] | Failure[str]


class Requests:
    """The requests of one service.

    Args:
        database: Where the answers are kept.
        source: The service.
        taken_in: Whether its consumers take the answers in; otherwise nothing may be asked.
    """

    def __init__(self, database: Database, source: str, *, taken_in: bool) -> None:
        self._database = database
        self._source = source
        self._taken_in = taken_in

    def handlers(self) -> Iterator[tuple[type[Message], str, Handler]]:
        """The type, a consumer's name, and the function that takes answers in."""
        if self._taken_in:
            topic = requests_topic(self._source)
            yield answers_on(topic), f"{self._source}.requests", self._take_in

    def ask(
        self, uow: UnitOfWork[Any], command: Command, key: str | None, request: UUID | None
    ) -> UUID:
        """The command leaves with the transaction; the id of the request, new unless given."""
        self._check_taken_in()
        request = request or new_id()
        uow.publish(command, key=key, headers=self._asked(request, "do").headers())
        return request

    def withdraw(
        self, uow: UnitOfWork[Any], request: UUID, command: Command, key: str | None
    ) -> None:
        """The undoing leaves with the transaction."""
        self._check_taken_in()  # its answer says whether it was undone
        uow.publish(command, key=key, headers=self._asked(request, "undo").headers())

    def _check_taken_in(self) -> None:
        if not self._taken_in:
            raise ConfigurationError(
                f"service {self._source!r} takes no answers in; make it with requests=True, in "
                "the processes that consume, too"
            )

    def _asked(self, request: UUID, direction: Direction) -> Asked:
        topic = requests_topic(self._source)
        told = topic if direction == "do" else None
        return Asked(request, STEP, direction, 0, 1, topic, fault_to=told)

    # --- answers ---------------------------------------------------------------------------------

    def wait(self, request: UUID, timeout: float) -> Answered:
        """What was answered, as soon as it is here."""
        check_timeout(timeout)
        tables, until = self._database.tables, time.monotonic() + timeout
        engine = self._database.engine.execution_options(**{READ_ONLY: True})
        for pause in _pauses(request, until):
            replied = None
            try:
                with engine.connect() as connection:
                    replied = replies.read(connection, tables, request)
            except Exception as error:  # noqa: BLE001  # raised again, unless it passes
                _only_trouble(error)
            if replied is not None:
                return _answered(request, replied)
            time.sleep(pause)
        raise AssertionError("unreachable")

    async def async_wait(self, request: UUID, timeout: float) -> Answered:  # noqa: ASYNC109
        """As `wait`."""
        check_timeout(timeout)
        tables, until = self._database.tables, time.monotonic() + timeout
        for pause in _pauses(request, until):
            replied = None
            try:
                replied = await self._database.look(replies.read, tables, request)
            except Exception as error:  # noqa: BLE001  # raised again, unless it passes
                _only_trouble(error)
            if replied is not None:
                return _answered(request, replied)
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _take_in(self, handle: HandlerContext[Any]) -> None:
        answer: Answer = handle.message
        if answer.direction != "do":
            if not answer.done:  # nobody waits for that, and what was done is still there
                raise HandlerFailed(
                    f"request {answer.saga} was not withdrawn: who was asked would not undo it; "
                    "withdraw it again when that has changed",
                    code="withdrawal_refused",
                )
            return
        outcome: Outcome = "faulted" if answer.fault else "done" if answer.done else "refused"
        tables, clock = self._database.tables, self._database.clock
        await handle.session.run_sync(
            lambda s: replies.note(
                s.connection(), tables, clock, answer.saga, outcome, answer.model_dump_json()
            )
        )


def check_timeout(seconds: float) -> None:
    """Raises ConfigurationError for what would never be over."""
    if not -math.inf < seconds < math.inf:
        raise ConfigurationError(f"timeout is {seconds}; give seconds, as many as may pass")


def _pauses(request: UUID, until: float) -> Iterator[float]:
    """How long to wait after each look; RequestTimeout when the last one was in vain."""
    pause = FIRST_PAUSE
    while True:
        left = until - time.monotonic()
        yield max(0.0, min(pause, left))
        if left <= 0:
            raise RequestTimeout(request)
        pause = min(LONGEST_PAUSE, pause * 1.5)


def _only_trouble(error: Exception) -> None:
    """A database that is away for a while, or has no connection free, has no answer yet."""
    if not passes(error):
        raise error


def _answered(request: UUID, replied: Replied) -> Answered:
    answer = Answer.model_validate_json(replied.answer)
    if replied.outcome == "faulted":
        raise RequestFaulted(request, answer.fault)
    return Success(answer.data) if replied.outcome == "done" else Failure(answer.reason)
