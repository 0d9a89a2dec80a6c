"""A unit of work again, as a whole, while the database is in trouble.

Deadlocks, serialization failures and lost connections say nothing about the work itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from outbox_saga.ids import new_id
from outbox_saga.queries.dialects import is_transient
from outbox_saga.unit_retries import UNIT

T = TypeVar("T")


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
