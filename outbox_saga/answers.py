"""What a handler may return: nothing, Success or Failure, or the messages to publish.

return OrderPaid(order_id=7)
return [(OrderPaid(order_id=7), "order:7"), Counted()]
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel

from outbox_saga.errors import HandlerFailed
from outbox_saga.messages import Message
from outbox_saga.results import Failure, Success

Outgoing: TypeAlias = tuple[Message, str | None]  # with its key


def outgoing(answer: object) -> list[Outgoing]:
    """The messages a handler's answer asks to publish, in their order.

    An iterable is read to its end here: the body of a generator runs now, inside the transaction.

    Raises:
        HandlerFailed: It is a Failure, or nothing a handler may return.
    """
    if answer is None or isinstance(answer, Success):
        return []
    if isinstance(answer, Failure):
        raise HandlerFailed(str(answer.error), code="handler_refused")
    if (one := _one(answer)) is not None:
        return [one]
    if inspect.iscoroutine(answer):
        answer.close()
        raise HandlerFailed(
            "a plain function answered with a coroutine, which nobody awaits: make it `async def`",
            code="handler_answer",
        )
    if not isinstance(answer, Iterable) or isinstance(
        answer, str | bytes | bytearray | Mapping | BaseModel
    ):
        raise _unknown(answer)
    found: list[Outgoing] = []
    for item in answer:
        if (one := _one(item)) is None:
            raise _unknown(item)
        found.append(one)
    return found


def _one(item: Any) -> Outgoing | None:
    if isinstance(item, Message):
        return item, None
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Message):
        message, key = item
        if key is None or isinstance(key, str):
            return message, key
    return None


def _unknown(answer: object) -> HandlerFailed:
    return HandlerFailed(
        f"the handler returned a {type(answer).__name__}; return None, Success, Failure, a "
        "message, a pair of message and key, or an iterable of those",
        code="handler_answer",
    )
