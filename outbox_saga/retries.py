"""When to try again: pure arithmetic, bounded and jittered; nothing here waits."""

from __future__ import annotations

import zlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retry:
    """A finite retry policy: attempt n+1 comes no later than `max_delay` after attempt n failed.

    The delay doubles from `initial` (times `factor`) to `max_delay` and is jittered over its upper
    half ("equal jitter", M. Brooker, *Exponential Backoff And Jitter*, AWS Architecture Blog,
    2015). The jitter derives from the seed, so the same attempt of the same work always waits the
    same time and a schedule can be replayed.

    Args:
        max_attempts: Attempts in all, the first included; at least 1.
        initial: Seconds before the second attempt.
        factor: Growth of the delay per attempt.
        max_delay: Seconds; no delay is longer.

    Raises:
        ValueError: A bound that is not finite and positive.
    """

    max_attempts: int = 3
    initial: float = 0.2
    factor: float = 2.0
    max_delay: float = 30.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(
                f"max_attempts is {self.max_attempts}; it counts the first attempt: at least 1"
            )
        for name in ("initial", "factor", "max_delay"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be finite and greater than 0")

    def exhausted(self, attempts: int) -> bool:
        """True when no attempt is left after this many."""
        return attempts >= self.max_attempts

    def delay(self, attempts: int, *, seed: str) -> float:
        """Seconds to wait after this many failed attempts (at least 1)."""
        try:
            ceiling = min(self.max_delay, self.initial * float(self.factor) ** (attempts - 1))
        except OverflowError:  # long before anybody waits for it
            ceiling = self.max_delay
        fraction = zlib.crc32(f"{seed}:{attempts}".encode()) / 0xFFFFFFFF
        return ceiling / 2 + ceiling / 2 * fraction
