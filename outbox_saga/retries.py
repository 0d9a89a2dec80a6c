"""When to try again: pure arithmetic, bounded and jittered; nothing here waits."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TypeGuard

MAX_SECONDS = 100 * 366 * 86_400.0  # that anything waits; dates end at some time


def is_time(given: object) -> bool:
    """Whether it is a number of seconds that something can wait: more than 0, less than a century.

    No bool, and no Decimal: dates are not reckoned with it.
    """
    return _is_positive(given) and given < MAX_SECONDS


def is_whole(given: object) -> TypeGuard[int]:
    """Whether it can count: a whole number, and no bool."""
    return isinstance(given, int) and not isinstance(given, bool)


def _is_positive(given: object) -> TypeGuard[float]:
    return (
        isinstance(given, int | float) and not isinstance(given, bool) and 0 < given < float("inf")
    )


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
        ValueError: A bound that is no positive number, or has no end.
    """

    max_attempts: int = 3
    initial: float = 0.2
    factor: float = 2.0
    max_delay: float = 30.0

    def __post_init__(self) -> None:
        if not is_whole(self.max_attempts) or self.max_attempts < 1:
            raise ValueError(
                f"max_attempts is {self.max_attempts!r}; it counts the first attempt: a whole "
                "number, at least 1"
            )
        if not _is_positive(self.factor):
            raise ValueError(f"factor is {self.factor!r}; it must be finite and greater than 0")
        for name in ("initial", "max_delay"):
            value = getattr(self, name)
            if not is_time(value):
                raise ValueError(
                    f"{name} is {value!r}; it must be seconds: finite, greater than 0 and less "
                    "than a century"
                )

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
