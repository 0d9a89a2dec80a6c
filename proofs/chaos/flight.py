"""What a relay and its broker came to: to be read though the relay was killed."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

FLYING = "on their way"  # sent and not heard of
ACCEPTED = "accepted"
NOT_NOW = "refused for now"
UNHEARD = "stored, and no answer"
NEVER = "refused for good"
_NAMES = (FLYING, ACCEPTED, NOT_NOW, UNHEARD, NEVER)
_COUNTS = struct.Struct(f"<{len(_NAMES)}q")


class Flight:
    """Counters in a file that outlives the process that counts, and the ids refused for good.

    Args:
        path: Of the file, which is made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_COUNTS.pack(*(0 for _ in _NAMES)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _COUNTS.size)
        self._ids = path.with_suffix(".never")

    @property
    def counts(self) -> dict[str, int]:
        """How many messages of each kind."""
        return dict(zip(_NAMES, _COUNTS.unpack(self._map[:]), strict=True))

    def change(self, name: str, by: int = 1) -> None:
        """So many more, or fewer."""
        counts = self.counts
        counts[name] += by
        self._map[:] = _COUNTS.pack(*counts.values())

    def refuses_for_good(self, id_: str) -> None:
        """Noted before anybody hears of it."""
        with self._ids.open("a") as file:
            file.write(f"{id_}\n")
        self.change(NEVER)

    @property
    def refused_for_good(self) -> set[str]:
        """Ids of messages that got a definite no."""
        return set(self._ids.read_text().split()) if self._ids.exists() else set()
