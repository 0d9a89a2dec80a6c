"""What goes wrong, decided by a seed: the same order meets the same trouble in every run.

Each decision is a hash of the seed and of what it is about, so it depends neither on the order in
which requests arrive nor on how often a process was killed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Disturbance = Literal["lose_request", "lose_reply", "answer_late"]
Mishap = Literal["error", "refusal"]

# Of requests that have arrived this often, none is disturbed any more: every call ends some day.
_DISTURBED_ARRIVALS = 3


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong under one seed.

    Args:
        seed: None: nothing goes wrong.
    """

    seed: int | None

    def declines(self, what: str, key: str) -> bool:
        """Whether the provider says a definite no to this request, however often it is repeated.

        A no to a refund or to a cancellation would leave a saga that nobody can undo: those are
        never declined.
        """
        share = {"charge": 0.06, "welcome": 0.03, "confirmation": 0.04}.get(what, 0.0)
        return self._chance("declines", what, key) < share

    def disturbance(self, key: str, arrival: int) -> Disturbance | None:
        """What happens to this request on its way, at this arrival of it (from 1)."""
        if arrival > _DISTURBED_ARRIVALS:
            return None
        drawn = self._chance("disturbs", key, arrival)
        if drawn < 0.05:
            return "lose_request"
        if drawn < 0.10:
            return "lose_reply"
        return "answer_late" if drawn < 0.12 else None

    def mishap(self, order_id: int, attempt: int) -> Mishap | None:
        """What goes wrong with writing this order down: an error is over at the next attempt."""
        drawn = self._chance("order", order_id)
        if drawn < 0.06:
            return "refusal"
        return "error" if drawn < 0.12 and attempt == 1 else None

    def _chance(self, *about: object) -> float:
        """A number from 0 up to 1 (which is also what it is when nothing goes wrong)."""
        if self.seed is None:
            return 1.0
        text = "\x1f".join(map(str, (self.seed, *about)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56
