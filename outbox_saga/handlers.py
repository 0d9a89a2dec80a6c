"""Which handler gets which message: the registry of one service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from outbox_saga.brokers.local import HandlerBusy
from outbox_saga.database import Database
from outbox_saga.envelopes import Envelope
from outbox_saga.errors import ConfigurationError, MessageRefused
from outbox_saga.inbox import HandlerFailed, handle_once
from outbox_saga.messages import Message, check_type

P = ParamSpec("P")
T = TypeVar("T")

Work = tuple[str, UUID]  # consumer and message id


@dataclass(frozen=True, slots=True)
class Handler:
    """One function that handles one type of message for one consumer."""

    consumer: str
    topic: str
    message_class: type[Message]
    function: Callable[[Any], Any]


class Handlers:
    """A service's handlers, and the way a message takes through them."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._handlers: list[Handler] = []
        self._in_threads: set[Work] = set()

    def add(
        self, message_class: type[Message], function: Callable[[Any], Any], consumer: str | None
    ) -> None:
        """Registers.

        Raises ConfigurationError for a second handler of one message under one consumer name.
        """
        if message_class.topic is None:
            raise ConfigurationError(
                f'{message_class.__name__} has no topic; declare `class X(Event, topic="orders")`'
            )
        name = check_type(
            consumer if consumer is not None else f"{self.source}.{message_class.type_name}"
        )
        for other in self._handlers:
            if other.consumer == name and other.message_class.type_name == message_class.type_name:
                raise ConfigurationError(
                    f"consumer {name!r} handles {message_class.type_name} twice; give one of "
                    "them another "
                    "name with consumer=…, and never change the names: the inbox belongs to them"
                )
        self._handlers.append(Handler(name, message_class.topic, message_class, function))

    def consumers(self) -> dict[str, tuple[str, ...]]:
        """The consumers with their topics."""
        found: dict[str, list[str]] = {}
        for handler in self._handlers:
            topics = found.setdefault(handler.consumer, [])
            if handler.topic not in topics:
                topics.append(handler.topic)
        return {consumer: tuple(topics) for consumer, topics in found.items()}

    def wanting(self, envelope: Envelope, consumer: str | None = None) -> Iterable[Handler]:
        """The handlers for this message, of one consumer or of all."""
        for handler in self._handlers:
            if (
                handler.topic == envelope.topic
                and handler.message_class.type_name == envelope.type
                and (consumer is None or handler.consumer == consumer)
            ):
                yield handler

    async def handle(
        self,
        database: Database,
        threads: Executor,
        envelope: Envelope,
        consumer: str | None = None,
    ) -> int:
        """How many handlers took the message (each once).

        One that fails keeps it from no other. One whose thread still has this message from an
        earlier delivery, which nobody waits for any more, is not asked again: that would take
        another thread, and wait for the first one's inbox row.

        Raises what the first failing one raised; a message
        that cannot be read only if no other trouble is worth another attempt.
        """
        count = 0
        errors: list[Exception] = []
        for handler in self.wanting(envelope, consumer):
            work = (handler.consumer, envelope.id)
            count += 1
            if work in self._in_threads:
                errors.append(HandlerBusy("an earlier delivery is still being handled"))
                continue
            try:
                await handle_once(
                    database,
                    _Watched(threads, self._in_threads, work),
                    handler.consumer,
                    envelope,
                    handler.message_class,
                    handler.function,
                    source=self.source,
                )
            except Exception as error:  # noqa: BLE001  # users' code; raised below
                errors.append(error)
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and _asked_to_end():
                    raise
                # SystemExit, or the cancellation of something the handler awaited: its own
                # failure, and the end of nobody else
                errors.append(HandlerFailed(f"the handler raised {type(error).__name__}"))
        if errors:
            raise next((e for e in errors if not isinstance(e, MessageRefused)), errors[0])
        return count


class _Watched(Executor):
    """Threads that tell who is in them until the thread is done, whether anybody waits or not."""

    def __init__(self, threads: Executor, running: set[Work], work: Work) -> None:
        self._threads = threads
        self._running = running
        self._work = work

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        self._running.add(self._work)
        try:
            future = self._threads.submit(fn, *args, **kwargs)
        except BaseException:
            self._running.discard(self._work)
            raise
        future.add_done_callback(lambda _: self._running.discard(self._work))
        return future


def _asked_to_end() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
