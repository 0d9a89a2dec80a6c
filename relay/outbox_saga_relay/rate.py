"""How fast messages may go to the broker: a bound that was asked for, and a slow start after an
outage. Pure.

A token bucket. Of any stretch of time at most `rate at its end × (its length + BURST)` messages
leave within it; of a rate that is less than one message in BURST, `rate × its length` and one.
"""

from __future__ import annotations

import math

FIRST, LAST = 100.0, 100_000.0  # messages a second at the beginning and at the end of a ramp
LONGEST = 10.0  # seconds a ramp may last
BURST = 0.05  # seconds in which nothing was sent that may be made up for
GRAIN = 0.01  # seconds: less than comes together in that does not go by itself


class Rate:
    """How many messages may go now.

    Args:
        most: Messages a second, always; None: as fast as the broker takes them.
    """

    def __init__(self, most: float | None = None) -> None:
        self._most = math.inf if most is None else most
        self._tokens = math.inf if most is None else 1.0
        self._at = -math.inf  # the moment of these tokens
        self._began = -math.inf  # of the ramp
        self._length = 0.0

    def ramp(self, now: float, length: float) -> None:
        """It begins slowly now and comes to full speed in so many seconds, `LONGEST` at most."""
        self._began, self._length = now, min(length, LONGEST)
        self._tokens, self._at = 0.0, now

    def is_ramping(self, now: float) -> bool:
        """Whether full speed is not reached yet."""
        return now < self._began + self._length

    def at(self, now: float) -> float:
        """Messages a second; infinite: no bound."""
        if not self.is_ramping(now):
            return self._most
        ratio = math.pow(LAST / FIRST, (now - self._began) / self._length)
        return min(self._most, FIRST * ratio)

    def allowance(self, now: float) -> float:
        """Messages that may go now; infinite: any number."""
        rate = self.at(now)
        if rate == math.inf:
            return math.inf
        self._fill(now, rate)
        return math.floor(self._tokens) if self._tokens >= _grain(rate) else 0

    def sent(self, count: int) -> None:
        """So many of the allowance went."""
        self._tokens -= count

    def pause(self, now: float) -> float:
        """Seconds until the allowance is more than nothing; infinite where there is no bound."""
        rate = self.at(now)
        if rate == math.inf:
            return math.inf
        self._fill(now, rate)
        return max(0.0, _grain(rate) - self._tokens) / rate

    def _fill(self, now: float, rate: float) -> None:
        # as long as a pause may be, too: else whoever wakes after one finds a part of a message
        passed = max(0.0, min(now - self._at, max(BURST, _grain(rate) / rate)))
        self._tokens = min(self._tokens + passed * rate, max(1.0, rate * BURST))
        self._at = now


def _grain(rate: float) -> float:
    return max(1.0, rate * GRAIN)
