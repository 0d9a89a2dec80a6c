"""What a handler may return: nothing, Failure, or the messages to publish, in Success or not.

return OrderPaid(order_id=7)
return [(OrderPaid(order_id=7), "order:7"), Counted()]
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel

from outbox_saga.errors import HandlerFailed
from outbox_saga.messages import Message, Reply
from outbox_saga.results import Failure, Success

Outgoing: TypeAlias = tuple[Message, str | None]  # with its key


def outgoing(answer: object) -> list[Outgoing]:
    """The messages a handler's answer asks to publish, in their order.

    An iterable is read to its end here: the body of a generator runs now, inside the transaction.
    The data in a Success is for whoever asks, and nobody does.

    Raises:
        HandlerFailed: It is a Failure, or nothing a handler may return.
    """
    if isinstance(answer, Success):
        answer = answer.value
        if not isinstance(answer, Message) and isinstance(answer, Mapping | BaseModel):
            return []
    if answer is None:
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


def fields(value: object) -> dict[str, Any] | None:
    """The data of an answer to a command; None: it is something else.

    Raises:
        HandlerFailed: A mapping that is no JSON.
    """
    if isinstance(value, Reply) or (
        isinstance(value, BaseModel) and not isinstance(value, Message)
    ):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        try:
            found = json.loads(json.dumps(dict(value), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise HandlerFailed(
                f"the handler's answer is no JSON ({type(error).__name__}); return a model, or a "
                "mapping of JSON values",
                code="handler_answer",
            ) from None
        return dict(found)
    return {} if value is None else None


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
        "message, a pair of message and key, or an iterable of those; in Success also data",
        code="handler_answer",
    )
