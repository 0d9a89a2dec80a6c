"""So many a second and no more: arithmetic; nothing here waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Pace:
    """Never more than `rate` a second, over any stretch: time that was not used is not saved up.

    Args:
        rate: A second; None is as fast as it goes.
        monotonic: Seconds that never go back; tests drive it.

    Raises:
        ValueError: A rate that is not finite and positive.
    """

    rate: float | None = None
    monotonic: Callable[[], float] = time.monotonic
    _next: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ValueError(f"a rate of {self.rate} a second; give a number greater than 0")

    def pause(self) -> float:
        """Seconds until the next one may go."""
        return max(0.0, self._next - self.monotonic()) if self.rate is not None else 0.0

    def went(self, count: int) -> None:
        """So many have gone just now."""
        if self.rate is not None:
            self._next = max(self._next, self.monotonic()) + count / self.rate
