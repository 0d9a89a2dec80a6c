"""What a handler gets: its message, the session of its transaction, and a way to publish."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from outbox_saga.envelopes import Envelope
from outbox_saga.ids import handler_key
from outbox_saga.messages import Message
from outbox_saga.unit_of_work import Delay, UnitOfWork

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

M = TypeVar("M", bound=Message)

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")


def read(message_class: type[M], envelope: Envelope) -> M:
    """The message in the envelope, brought up to the class's version if it is older.

    Raises MessageRefused when its body does not fit the class, or its version is too new.
    """
    return message_class.from_body(envelope.body, version=envelope.version)


class _Context(Generic[M]):
    """What a handler gets.

    Attributes:
        message: Of the class the handler was registered for, and of its version.
        envelope: The message with its id, key, correlation and headers; its version and body are
            those it was published with.
        key: The same for every attempt of this consumer at this message: send it with calls to
            the outside, so that the other side can tell a repeat.
    """

    def __init__(
        self, message: M, envelope: Envelope, uow: UnitOfWork[Any], consumer: str
    ) -> None:
        self.message = message
        self.envelope = envelope
        self.uow = uow
        self.key = str(handler_key(consumer, envelope.id))

    def publish(
        self,
        message: Message,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: Delay | None = None,
    ) -> UUID:
        """The message leaves if, and only if, this one is handled.

        It continues the same conversation, and the same trace (`traceparent`), unless `headers`
        say otherwise.
        """
        if isinstance(headers, Mapping):  # whatever else it is, it is refused there, by its name
            headers = {_own_name(name): value for name, value in headers.items()}
        return self.uow.publish(message, key=key, headers=headers, delay=delay)


class HandlerContext(_Context[M]):
    """For `async def` handlers."""

    @property
    def session(self) -> AsyncSession:
        """The session of the transaction that also holds the inbox row."""
        session: AsyncSession = self.uow.session
        return session


class SyncHandlerContext(_Context[M]):
    """For plain `def` handlers, which run in a thread."""

    @property
    def session(self) -> Session:
        """The session of the transaction that also holds the inbox row."""
        session: Session = self.uow.session
        return session


def continuing(
    envelope: Envelope, session: Any, *, schema: str | None, source: str
) -> UnitOfWork[Any]:
    """A unit of work whose messages continue this one's conversation and trace."""
    return UnitOfWork(
        session,
        schema=schema,
        source=source,
        correlation_id=envelope.correlation_id or str(envelope.id),
        causation_id=str(envelope.id),
        headers=_trace(envelope.headers),
    )


def _own_name(name: str) -> str:
    """The header's name; in lower case where it is to stand in place of an inherited one."""
    lower = str(name).lower()
    return lower if lower in ("traceparent", "tracestate") else name


def _trace(headers: Mapping[str, str]) -> dict[str, str] | None:
    """The headers of a trace that goes on; others' may be anything, and must not fail ours."""
    parent = headers.get("traceparent", "")
    if not _TRACEPARENT.fullmatch(parent):
        return None
    state = headers.get("tracestate", "")
    goes_on = {"traceparent": parent}
    return {**goes_on, "tracestate": state} if _TRACESTATE.fullmatch(state) else goes_on
