"""A command on a terminal, and the person before it: what they see, and what they type when."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys


class Terminal:
    """`outbox-saga` with these arguments, on a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        self.shown = ""
        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "outbox_saga_relay", *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)

    def type(self, text: str) -> None:
        """Also before it is asked for."""
        os.write(self._ours, text.encode())

    async def sees(self, text: str) -> None:
        """Returns once the person has this before them."""
        while text not in self.shown:
            part = await asyncio.to_thread(self._read)
            assert part, f"it ended without {text!r}: {self.shown}"

    async def ended(self) -> int:
        """The exit code, once all that was shown is read."""
        while await asyncio.to_thread(self._read):
            pass
        os.close(self._ours)
        return await asyncio.to_thread(self._process.wait)

    def _read(self) -> bool:
        try:
            part = os.read(self._ours, 4096)
        except OSError:
            return False  # Linux says EIO when the other side has closed
        self.shown += part.decode(errors="replace")
        return bool(part)
