"""How many messages a relay has sent and not heard of: still to be read when it was killed."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_COUNT = struct.Struct("<q")


class Flight:
    """A counter in a file that outlives the process that counts.

    Args:
        path: Of the file, which is made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_COUNT.pack(0))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _COUNT.size)

    @property
    def count(self) -> int:
        """Messages on their way."""
        found: int = _COUNT.unpack(self._map[:])[0]
        return found

    def change(self, by: int) -> None:
        """So many more, or fewer."""
        self._map[:] = _COUNT.pack(self.count + by)
