"""A broker that takes nothing: no attempt is counted, and one message at a time asks for it.

When it is back, what is on its way at once grows from one message by doubling, and what is sent in
a second by the ramp of `rate`, so that a backlog does not fall on a broker that has just come up.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from outbox_saga.errors import BrokerError
from outbox_saga.retries import Retry
from outbox_saga_relay.rate import Rate

logger = logging.getLogger("outbox_saga.relay")

UNLIMITED = 1_000_000_000


class Outage:
    """How many messages may be on their way, as far as the broker's health goes.

    Args:
        retry: The pauses between two probes.
        seed: Of their jitter; another one for each relay, so that they do not come back in step.
        most: Messages a second that may be sent, outage or not; None: any number.
        now: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        retry: Retry,
        *,
        seed: str,
        most: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._retry = retry
        self._rate = Rate(most)
        self._seed = seed
        self._now = now
        self._probes = 0
        self._since: float | None = None
        self._first = 0.0  # the moment of the first of several that came one after another
        self._next = -math.inf
        self._allowed = UNLIMITED

    @property
    def lasts(self) -> bool:
        """Whether the broker takes nothing, as far as is known."""
        return self._since is not None

    @property
    def probes(self) -> int:
        """Probes that failed since it began."""
        return self._probes

    def allowance(self, flying: int) -> int:
        """How many more messages may be sent now, while so many are on their way."""
        now = self._now()
        if self.lasts:
            return 1 if flying == 0 and now >= self._next else 0
        return max(0, int(min(self._allowed - flying, self._rate.allowance(now))))

    def sent(self, count: int) -> None:
        """So many of the allowance are on their way now."""
        self._rate.sent(count)

    def pause(self, flying: int) -> float:
        """Seconds until more may be sent by time alone; infinite: not by time alone, or now."""
        if self.lasts:
            return math.inf if flying else max(0.0, self._next - self._now())
        return math.inf if flying >= self._allowed else self._rate.pause(self._now())

    def down(self, error: BrokerError) -> None:
        """The broker took nothing; the next probe waits, longer each time."""
        now = self._now()
        if self._since is None:
            if not self._rate.is_ramping(now):
                self._first = now  # else it went down under what came back: the same outage
            self._since = now
            self._probes = 0
            logger.warning("the broker takes nothing (%s): %s", error.code, error)
        elif now < self._next:
            return  # another message that was on its way when it went down
        self._probes += 1
        self._next = now + self._retry.delay(self._probes, seed=self._seed)

    def up(self, count: int) -> None:
        """So many messages were accepted."""
        if self._since is not None:
            now = self._now()
            logger.warning("the broker is back after %.1f s", now - self._since)
            self._since = None
            self._allowed = 1
            # a broker that was away for a moment is not spared for longer than that
            self._rate.ramp(now, now - self._first)
        if self._allowed < UNLIMITED:
            self._allowed = min(self._allowed + count, UNLIMITED)
