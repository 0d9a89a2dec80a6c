"""A consumer outlives every outage of its broker: it connects again, ever less often."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from outbox_saga.errors import BrokerUnavailable
from outbox_saga.ids import new_id
from outbox_saga.retries import Retry

logger = logging.getLogger(__name__)

_RECONNECT: Final = Retry(initial=0.1, max_delay=3.0)


class Outages:
    """Told of once each, and waited for.

    Args:
        consumer: For the log.
    """

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer
        self._failures = 0
        self._seed = str(new_id())  # processes do not come back in step

    def over(self) -> None:
        """The broker answers."""
        self._failures = 0

    async def outlive(
        self,
        stopped: asyncio.Task[None],
        serve: Callable[[asyncio.Task[None]], Awaitable[None]],
    ) -> None:
        """Calls `serve`, one connection's life, again and again until `stopped` is done."""
        while not stopped.done():
            try:
                await serve(stopped)
            except BrokerUnavailable as error:
                self._failures += 1
                log = logger.warning if self._failures == 1 else logger.debug
                log("consumer %s cannot go on yet: %s", self._consumer, error)
                pause = _RECONNECT.delay(self._failures, seed=self._seed)
                await asyncio.wait([stopped], timeout=pause)


def until(stop: Callable[[], Awaitable[object]]) -> asyncio.Task[None]:
    """A task that ends when `stop()` returns, or with its error."""

    async def stopping() -> None:
        await stop()

    return asyncio.create_task(stopping())
