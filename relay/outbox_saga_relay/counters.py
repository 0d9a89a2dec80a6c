"""What one relay has done since its start, for logs, metrics and those who look at its row."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Counters:
    """Each counts up; a restart begins at 0.

    Args:
        published: Acknowledged by the broker.
        duplicates: Of these, messages the broker said it had already.
        refused: Not taken, and to be tried again.
        unconfirmed: No answer: they may be stored, and go out again under the same id.
        dead: Dead letters.
        outages: Times that the broker took nothing at all.
    """

    published: int = 0
    duplicates: int = 0
    refused: int = 0
    unconfirmed: int = 0
    dead: int = 0
    outages: int = 0

    def as_dict(self) -> dict[str, int]:
        """By name."""
        return asdict(self)
