"""Order among the messages one process has in hand: those of a key go one after another.

Pure bookkeeping, for every broker that hands out the messages of one key in order but lets one of
them be taken back (a negative acknowledgement) while later ones are already here.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Ticket = TypeVar("Ticket")


class Lanes(Generic[Item, Ticket]):
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
        # key: place: when it is due again, and the ticket it was sent back with
        self._away: dict[str, dict[int, tuple[float, Ticket]]] = {}

    def __contains__(self, key: str) -> bool:
        """Whether a message of this key is being handled, or away."""
        return key in self._waiting or key in self._away

    def blocked_until(self, key: str, place: int, now: float) -> float | None:
        """When an earlier message of this key is due again; None when nothing earlier is away."""
        away = self._away.get(key)
        if away is None:
            return None
        away.pop(place, None)
        for earlier in [p for p, (due, _) in away.items() if now > due + self._patience]:
            del away[earlier]
        if not away:
            del self._away[key]
            return None
        first = min(away)
        return away[first][0] if first < place else None

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

    def send_back(self, key: str, place: int, due: float, ticket: Ticket) -> list[Item]:
        """It comes again at `due`; those returned waited behind it and must go back too."""
        self.away(key, place, due, ticket)
        waiting = self._waiting.get(key, [])
        behind = [item for other, item in waiting if other > place]
        waiting[:] = [entry for entry in waiting if entry[0] < place]
        return behind

    def away(self, key: str, place: int, due: float, ticket: Ticket) -> None:
        """This message was sent back with this ticket and is due again then."""
        self._away.setdefault(key, {})[place] = (due, ticket)

    def call_back(
        self, which: Callable[[str, int], bool], since: float
    ) -> list[tuple[int, Ticket]]:
        """Those of these (key, place) that are due after `since`, with their tickets; nothing
        waits for them here any more.
        """
        found: list[tuple[int, Ticket]] = []
        for key, away in list(self._away.items()):
            for place, (due, ticket) in list(away.items()):
                if which(key, place):
                    del away[place]
                    if due > since:
                        found.append((place, ticket))
            if not away:
                del self._away[key]
        return found

    def forget_overdue(self, now: float) -> None:
        """Drops what was awaited for too long; memory does not grow with the keys ever seen."""
        for key in list(self._away):
            self.blocked_until(key, -1, now)
