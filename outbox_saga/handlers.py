"""Which handler gets which message, and how: the registry of one service."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from outbox_saga.envelopes import Envelope
from outbox_saga.errors import ConfigurationError
from outbox_saga.handler_room import Room
from outbox_saga.messages import Message, check_type
from outbox_saga.retries import Retry

Poison = Literal["park", "skip"]

# About two hours in all: longer than most outages of what handlers depend on
HANDLING = Retry(max_attempts=20, initial=0.5, max_delay=600.0)
TIMEOUT = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Handler:
    """One function that handles one type of message for one consumer.

    Args:
        consumer: Its name; the inbox remembers by it.
        topic: Where its messages come from.
        message_class: What it gets.
        function: `async def`, or plain `def`, which runs in a thread.
        retry: When a message it failed on is tried again, and how often in all.
        timeout: Seconds it may take for one; None: as long as it likes.
        poison: Whether a message that used up its attempts holds up its key ("park").
        pessimistic: Whether a claim is committed before it runs, because it acts outside.
        room: How many messages it may have in hand in this process; None: as many as come.
        answers: Whether it carries commands out, and tells who made them what came of them.
    """

    consumer: str
    topic: str
    message_class: type[Message]
    function: Callable[[Any], Any]
    retry: Retry = HANDLING
    timeout: float | None = TIMEOUT
    poison: Poison = "park"
    pessimistic: bool = False
    room: Room | None = None
    answers: bool = False

    @property
    def parks(self) -> bool:
        """Whether its dead letters hold up their keys."""
        return self.poison == "park"


class Handlers:
    """A service's handlers by message and consumer."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._handlers: list[Handler] = []

    def add(
        self,
        message_class: type[Message],
        function: Callable[[Any], Any],
        consumer: str | None = None,
        *,
        concurrency: int | None = None,
        retry: Retry = HANDLING,
        timeout: float | None = TIMEOUT,
        poison: Poison = "park",
        pessimistic: bool = False,
        answers: bool = False,
    ) -> None:
        """Registers.

        Raises ConfigurationError for what cannot work: a second handler of one message under one
        consumer name, a second one that carries a command out, an option out of its bounds.
        """
        if message_class.topic is None:
            raise ConfigurationError(
                f'{message_class.__name__} has no topic; declare `class X(Event, topic="orders")`'
            )
        name = check_type(
            consumer if consumer is not None else f"{self.source}.{message_class.type_name}"
        )
        for other in self._handlers:
            if answers and other.answers and _same(other.message_class, message_class):
                raise ConfigurationError(
                    f"{message_class.__name__} has two functions that carry it out, consumers "
                    f"{other.consumer!r} and {name!r}: a command is carried out once, so only one "
                    "of them would be called. Make them one function, or let one of them listen "
                    f"with @service.on({message_class.__name__}, consumer=…)"
                )
            if other.consumer == name and other.message_class.type_name == message_class.type_name:
                raise ConfigurationError(
                    f"consumer {name!r} handles {message_class.type_name} twice; give one of "
                    "them another "
                    "name with consumer=…, and never change the names: the inbox belongs to them"
                )
        _check(name, function, concurrency, timeout, poison)
        self._handlers.append(
            Handler(
                name,
                message_class.topic,
                message_class,
                function,
                retry,
                timeout,
                poison,
                pessimistic,
                None if concurrency is None else Room(concurrency),
                answers,
            )
        )

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
        return self.of_type(envelope.topic, envelope.type, consumer)

    def of_type(self, topic: str, type_name: str, consumer: str | None) -> Iterable[Handler]:
        """The handlers for messages of this topic and type, of one consumer or of all."""
        for handler in self._handlers:
            if (
                handler.topic == topic
                and handler.message_class.type_name == type_name
                and (consumer is None or handler.consumer == consumer)
            ):
                yield handler

    def limited(self) -> list[Handler]:
        """Those that have only so many places in this process."""
        return [handler for handler in self._handlers if handler.room is not None]

    def parks(self, consumer: str) -> bool:
        """Whether a message of this consumer that nobody can read holds up its key."""
        return any(h.parks for h in self._handlers if h.consumer == consumer)

    def longest(self) -> float | None:
        """Seconds that all handlers of one message may take together; None: there is no limit."""
        totals: dict[tuple[str, str], float] = {}
        for handler in self._handlers:
            if handler.timeout is None:
                return None
            kind = (handler.topic, handler.message_class.type_name)
            totals[kind] = totals.get(kind, 0.0) + handler.timeout
        return max(totals.values(), default=0.0)


def _same(one: type[Message], other: type[Message]) -> bool:
    return (one.topic, one.type_name) == (other.topic, other.type_name)


def _check(
    name: str,
    function: Callable[[Any], Any],
    concurrency: int | None,
    timeout: float | None,
    poison: str,
) -> None:
    if inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            f"the handler of consumer {name!r} is an async generator, which nobody reads: return "
            "a list of messages instead"
        )
    if concurrency is not None and concurrency < 1:
        raise ConfigurationError(
            f"concurrency of consumer {name!r} is {concurrency}; give at least 1, or None"
        )
    if timeout is not None and not 0 < timeout < float("inf"):
        raise ConfigurationError(
            f"timeout of consumer {name!r} is {timeout}; give seconds, or None for no limit"
        )
    if poison not in ("park", "skip"):
        raise ConfigurationError(
            f'poison of consumer {name!r} is {poison!r}; give "park" or "skip"'
        )
