"""A unit of work again, as a whole, while the database is in trouble.

Deadlocks, serialization failures and lost connections say nothing about the work itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from outbox_saga.ids import new_id
from outbox_saga.queries.dialects import is_transient
from outbox_saga.retries import Retry

T = TypeVar("T")

UNIT = Retry(max_attempts=5, initial=0.02, max_delay=0.5)


async def patiently(unit: Callable[[], Awaitable[T]]) -> T:
    """The answer of the unit, begun anew up to four times; then its error."""
    trouble = 0
    while True:
        try:
            return await unit()
        except Exception as error:
            trouble += 1
            if not is_transient(error) or UNIT.exhausted(trouble):
                raise
        await asyncio.sleep(UNIT.delay(trouble, seed=str(new_id())))
