"""The blocked keys as one relay knows them: which wait, until when, and which are parked.

Pure, no I/O: the rows decide, and this is what was read of them.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from outbox_saga.queries.relay import Blocked, Failed, OutboxRow

BlockedKey = tuple[int, str, int]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A blocked key as this relay knows it."""

    attempts: int
    due: float  # by this process's monotonic clock; infinite: parked


class BlockedKeys:
    """Keys that wait for their next attempt or for a person, since which position."""

    def __init__(self) -> None:
        self._keys: dict[BlockedKey, Waiting] = {}
        self._dues: list[float] = []  # a heap: when keys are to be looked at again
        # the positions whose keys wait no longer, as pages take it
        self.told: set[int] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, row: OutboxRow) -> bool:
        return blocked_key(row) in self._keys

    def attempts(self, row: OutboxRow) -> int:
        """Failed attempts of this row so far."""
        waiting = self._keys.get(blocked_key(row))
        return 0 if waiting is None else waiting.attempts

    def know(self, blocked: Mapping[BlockedKey, Blocked]) -> None:
        """These are all there are of the partitions that the relay owns."""
        now = time.monotonic()
        # nobody else lets a key wait longer while we have the lease; before we had it, others did
        self.told.intersection_update(
            key[2] for key, found in blocked.items() if found.wait is not None and found.wait <= 0
        )
        self._keys = {
            key: Waiting(found.attempts, math.inf if found.wait is None else now + found.wait)
            for key, found in blocked.items()
        }
        self._dues = [w.due for w in self._keys.values() if w.due != math.inf]
        heapq.heapify(self._dues)

    def gone(self, blocked: Collection[BlockedKey]) -> list[int]:
        """The positions of keys that are known here and are not among these."""
        return [key[2] for key in self._keys.keys() - set(blocked)]

    def leave(self, partitions: Collection[int]) -> None:
        """These partitions are another relay's."""
        self._keys = {k: w for k, w in self._keys.items() if k[0] not in partitions}

    def stored(self, failures: Iterable[Failed]) -> None:
        """These failures are in the database now."""
        now = time.monotonic()  # not before: by the database's clock it is not due before that
        for failed in failures:
            key = blocked_key(failed.row)
            self.told.discard(failed.row.position)
            if failed.blocks:
                due = math.inf if failed.delay is None else now + failed.delay
                self._keys[key] = Waiting(self.attempts(failed.row) + 1, due)
                if failed.delay is not None:
                    heapq.heappush(self._dues, due)
            else:
                self._keys.pop(key, None)

    def settled(self, rows: Iterable[OutboxRow]) -> None:
        """The keys of these rows wait for them no longer."""
        for row in rows:
            self._keys.pop(blocked_key(row), None)
            self.told.discard(row.position)

    def unblocked(self, positions: Collection[int]) -> None:
        """No key waits at these any more."""
        self._keys = {k: w for k, w in self._keys.items() if k[2] not in positions}
        self.told.difference_update(positions)

    def due(self) -> set[int]:
        """The positions whose time has come, by this process's clock."""
        now = time.monotonic()
        return {key[2] for key, waiting in self._keys.items() if waiting.due <= now}

    def among(
        self, positions: Collection[int], partitions: Collection[int], below: float
    ) -> list[int]:
        """Of these positions those at which a key of these partitions waits, below that one."""
        return [
            k[2] for k in self._keys if k[2] in positions and k[2] < below and k[0] in partitions
        ]

    @property
    def next_due(self) -> float | None:
        """Seconds until a blocked key may be tried again that was not told of yet."""
        return max(0.0, self._dues[0] - time.monotonic()) if self._dues else None

    def take_due(self) -> bool:
        """Whether the time of a blocked key has come; told once, though it stays blocked until
        something has become of its attempt.
        """
        now, told = time.monotonic(), False
        while self._dues and self._dues[0] <= now:
            heapq.heappop(self._dues)
            told = True
        return told


def blocked_key(row: OutboxRow) -> BlockedKey:
    """By which rows of blocked keys are known."""
    return (row.partition, row.key or "", row.position)
