"""What an action gets.

The saga's data, the session of its transaction, its idempotency key, and a way to publish.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.orm import Session

from outbox_saga.envelopes import seal
from outbox_saga.errors import CommitRefused
from outbox_saga.instances import Direction
from outbox_saga.messages import Message
from outbox_saga.queries.delayed import Delayed
from outbox_saga.unit_of_work import Delay, UnitOfWork, delay_seconds

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

D = TypeVar("D", bound=BaseModel)


class _Context(Generic[D]):
    """Common to both kinds of action.

    Attributes:
        data: The saga's data; for an external step what was stored with its intent, the same for
            every attempt.
        key: The idempotency key of this step and direction: the same for every attempt, for ever.
        attempt: From 1.
    """

    def __init__(
        self,
        *,
        saga_id: UUID,
        saga: str,
        step: str,
        direction: Direction,
        attempt: int,
        key: UUID,
        data: D,
        source: str,
        correlation_id: str,
        uow: UnitOfWork[Any] | None,
    ) -> None:
        self.saga_id = saga_id
        self.saga = saga
        self.step = step
        self.direction = direction
        self.attempt = attempt
        self.key = str(key)
        self.data = data
        self.source = source
        self.correlation_id = correlation_id
        self._uow = uow
        self.kept: list[Delayed] = []

    def publish(
        self,
        message: Message,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: Delay | None = None,
    ) -> UUID:
        """The message leaves if, and only if, this step succeeds; returns its id.

        What an external step publishes is in its process until its outcome is stored. Where that
        is never told, and `query=` finds that it was carried out, what the query publishes leaves
        in its place.

        Args:
            delay: As of `UnitOfWork.publish`, counted from when the step's outcome is stored.

        Raises as `UnitOfWork.publish`.
        """
        seconds = delay_seconds(delay)
        envelope = seal(
            message,
            key=key,
            headers=headers,
            source=self.source,
            correlation_id=self.correlation_id,
            causation_id=self.key,
        )
        if self._uow is not None:
            self._uow.keep_sealed(envelope, seconds)
        else:
            # an external step has no transaction of its own: written with its outcome
            self.kept.append(Delayed(envelope, seconds))
        return envelope.id

    def _lent(self) -> Any:
        if self._uow is None:
            raise CommitRefused(
                f"step {self.step!r} is external and runs outside any transaction: it has no "
                "session; make it a "
                "local step, or put the database work into a step of its own"
            )
        return self._uow.session


class StepContext(_Context[D]):
    """For `async def` actions."""

    @property
    def session(self) -> AsyncSession:
        """Of the step's transaction, which commits together with the saga's progress."""
        session: AsyncSession = self._lent()
        return session


class SyncStepContext(_Context[D]):
    """For plain `def` actions, which run in a thread."""

    @property
    def session(self) -> Session:
        """Of the step's transaction, which commits together with the saga's progress."""
        session: Session = self._lent()
        return session
