"""What is lost, invented, out of order, counted twice, or held up for nothing. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ended:
    """How things stand when a play is over and a relay has gone on alone.

    Args:
        committed: Key and word of what was published by transactions that committed, in order.
        accepted: Key and word of what the broker took, in order, repeats included.
        refused_for_good: Words to which it gave a definite no.
        removed: Rows that relays removed, and counted, as published.
        left: Words in the outbox.
        dead: Words of dead letters, by position.
        blocked: Rows of the blocked keys.
        relays: How many there were. Two that overlapped may have sent a message twice, under one
            id, and if the broker refused it once and took it once it is accepted and dead.
    """

    committed: Sequence[tuple[str, str]]
    accepted: Sequence[tuple[str, str]]
    refused_for_good: Collection[str]
    removed: int
    left: Sequence[str]
    dead: Mapping[int, str]
    blocked: Sequence[Any]
    relays: int


def what_is_wrong(ended: Ended) -> str | None:
    """The first thing that is, with what belongs to it."""
    told = f"dead {sorted(ended.dead.values())}, left {ended.left}, accepted {ended.accepted}"
    found = next(_wrong(ended), None)
    return None if found is None else f"{found}; {told}"


def _wrong(ended: Ended) -> Iterator[str]:
    parked = {row.key for row in ended.blocked if row.until is None}
    dead, left = set(ended.dead.values()), set(ended.left)
    wanted: defaultdict[str, list[str]] = defaultdict(list)
    for key, word in ended.committed:
        wanted[key].append(word)
    for key, words in wanted.items():
        got = list(dict.fromkeys(w for k, w in ended.accepted if k == key))
        if got != words[: len(got)]:
            yield f"of {key} committed {words}, first deliveries {got}"
        if lost := set(words) - set(got) - dead - left:
            yield f"of {key} committed {words}, lost {lost}"
        if key not in parked and left.intersection(words):
            yield f"of {key} committed {words}, and nothing goes on"
        if ended.relays == 1 and dead.intersection(got):
            yield f"of {key} committed {words}, accepted and dead"
    if waiting := [row.key for row in ended.blocked if row.until is not None]:
        yield f"{waiting} still wait"
    if {row.position for row in ended.blocked} != ended.dead.keys():
        yield f"{parked} are parked"
    if not dead <= set(ended.refused_for_good) or dead & left:
        yield "dead for no reason"
    if ended.removed + len(dead) + len(left) != len(ended.committed):
        # each is either removed as published, or dead, or there: nothing is counted as two of them
        yield f"{len(ended.committed)} committed, {ended.removed} removed as published"
    if invented := set(ended.accepted) - set(ended.committed):
        yield f"nobody has committed {invented}"
