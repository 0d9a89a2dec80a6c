"""The other side: takes money and gives it back, and keeps its ledger in a file of its own."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.crash.append_log import AppendLog


class Unanswered(ConnectionError):
    """The connection was lost before an answer came."""


class Provider:
    """A provider of payments, whose ledger outlives every process that asks it.

    Args:
        folder: Of its ledger.
        once: It acts once for each key, however often it is asked.
    """

    def __init__(self, folder: Path, *, once: bool) -> None:
        self._ledger = AppendLog(folder / "ledger.jsonl")
        self._once = once
        self._lock = threading.Lock()
        self._received: list[tuple[str, str]] = []  # and not carried out yet

    def charge(self, saga: str, key: str) -> None:
        """Takes the money."""
        self._act("charge", saga, key, once=self._once)

    def refund(self, saga: str, key: str) -> None:
        """Gives it back; a refund has always been once for each key."""
        self._act("refund", saga, key, once=True)

    def receive(self, saga: str, key: str) -> None:
        """Takes the request, and does nothing yet."""
        self._received.append((saga, key))

    def do_what_was_received(self) -> int:
        """Does it now; how much that was."""
        received, self._received = self._received, []
        for saga, key in received:
            self.charge(saga, key)
        return len(received)

    def knows(self, key: str) -> bool:
        """Whether it has taken money under this key."""
        return any(line["key"] == key and line["acted"] for line in self._ledger.read())

    def of(self, saga: str) -> dict[str, int]:
        """What it did for this saga: charges, refunds, and the most that it had at one time."""
        charges = refunds = most = 0
        for line in self._ledger.read():
            if line["saga"] == saga and line["acted"]:
                charges += line["what"] == "charge"
                refunds += line["what"] == "refund"
                most = max(most, charges - refunds)
        return {"charges": charges, "refunds": refunds, "at once": most}

    def _act(self, what: str, saga: str, key: str, *, once: bool) -> None:
        with self._lock:
            acted = not (once and self.knows(key))
            self._ledger.append(what=what, saga=saga, key=key, acted=acted)
