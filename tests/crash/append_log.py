"""A log that survives the process that writes it: one JSON object a line, one write a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class AppendLog:
    """What another side of the system remembers, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, **entry: Any) -> None:
        """One more line, whole or not at all."""
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def read(self) -> list[dict[str, Any]]:
        """All lines, oldest first."""
        if not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text().splitlines()]

    @property
    def size(self) -> int:
        """Bytes."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def empty(self) -> None:
        """Nothing is remembered any more."""
        self._path.unlink(missing_ok=True)
