"""Order among the messages one process has in hand: those of a key go one after another.

Pure bookkeeping, for every broker that hands out the messages of one key in order but lets one of
them be taken back (a negative acknowledgement) while later ones are already here.
"""

from __future__ import annotations

from bisect import insort
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Lanes(Generic[Item]):
    """Never two messages of one key at once, and none passes an earlier one that was sent back.

    The second half holds for what this object has seen: a message sent back is awaited until
    `patience` seconds after it is due, since another process may have got it. Places rise with the
    order of the stream.

    Args:
        patience: Seconds.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        # A key is here while one of its messages is being handled; its value waits behind that
        # one.
        self._waiting: dict[str, list[tuple[int, Item]]] = {}
        self._away: dict[str, dict[int, float]] = {}  # key: place: when it is due again

    def blocked_until(self, key: str, place: int, now: float) -> float | None:
        """When an earlier message of this key is due again; None when nothing earlier is away."""
        away = self._away.get(key)
        if away is None:
            return None
        away.pop(place, None)
        for earlier in [p for p, due in away.items() if now > due + self._patience]:
            del away[earlier]
        if not away:
            del self._away[key]
            return None
        first = min(away)
        return away[first] if first < place else None

    def enter(self, key: str, place: int, item: Item) -> bool:
        """True: it may be handled now. False: it waits behind another until `leave` returns it."""
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = []
            return True
        # By place, not by arrival: a redelivered message stands before what was fetched after it.
        insort(waiting, (place, item), key=lambda entry: entry[0])
        return False

    def leave(self, key: str) -> Item | None:
        """The message of this key that is handled next."""
        waiting = self._waiting[key]
        if not waiting:
            del self._waiting[key]
            return None
        return waiting.pop(0)[1]

    def behind(self, key: str) -> int:
        """How many wait behind the one of this key that may be handled."""
        return len(self._waiting.get(key, ()))

    def send_back(self, key: str, place: int, due: float) -> list[Item]:
        """It comes again at `due`; those returned waited behind it and must go back too."""
        self.away(key, place, due)
        waiting = self._waiting.get(key, [])
        behind = [item for other, item in waiting if other > place]
        waiting[:] = [entry for entry in waiting if entry[0] < place]
        return behind

    def away(self, key: str, place: int, due: float) -> None:
        """This message was sent back and is due again then."""
        self._away.setdefault(key, {})[place] = due

    def forget_overdue(self, now: float) -> None:
        """Drops what was awaited for too long; memory does not grow with the keys ever seen."""
        for key in list(self._away):
            self.blocked_until(key, -1, now)
