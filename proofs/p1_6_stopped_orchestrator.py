"""Proof 1.6.

An orchestrator that stands still at any statement boundary is taken over from, and then does no
harm.
"""

from __future__ import annotations

import queue
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from outbox_saga.testing.servers import Postgres18, choose
from proofs.registry import Outcome, proof, say
from tests.crash.orchestrating import LEASE
from tests.crash.shop import STILL_TIMEOUT
from tests.crash.standstill import Standstill, bar, points_of, stand_still
from tests.crash.world import World

SAGAS = ("still-async", "still-def", "still-external", "still-async-undone")
AT_ONCE = 4


@proof("1.6")
def stopped_orchestrator() -> Outcome:
    """Stop one at every point of each kind of step.

    Several at a time, each in a database of its own.
    """
    with worlds(AT_ONCE) as free:
        stood: dict[str, list[Standstill]] = {}
        for name in SAGAS:
            with ExitStack() as stack:
                count = len(points_of(stack.enter_context(taken(free)), name))
            say(f"{name}: {count} points")
            with ThreadPoolExecutor(AT_ONCE) as pool:
                stood[name] = list(
                    pool.map(lambda at, n=name: one(free, n, at), range(1, count + 1))
                )
    limit = bar(STILL_TIMEOUT)
    late = [s for all_ in stood.values() for s in all_ if s.takeover is None or s.takeover > limit]
    wrong = [s for all_ in stood.values() for s in all_ if s.wrong]
    return Outcome(
        ok=not late and not wrong,
        measured={
            "lease_seconds": LEASE,
            "step_timeout_seconds": STILL_TIMEOUT,
            "bar_seconds": limit,
            "points": {name: len(all_) for name, all_ in stood.items()},
            "points_with_locks_held": {
                name: sum(s.locks > 0 for s in all_) for name, all_ in stood.items()
            },
            "takeover_seconds": {name: spread(all_) for name, all_ in stood.items()},
            "requests_repeated_under_the_same_key": {
                name: sum(s.asked_again for s in all_) for name, all_ in stood.items()
            },
            "late": [f"{s.saga}, point {s.at}: {s.takeover}" for s in late],
            "changed_afterwards": [f"{s.saga}, point {s.at}: {s.wrong}" for s in wrong],
        },
    )


def one(free: queue.Queue[World], name: str, at: int) -> Standstill:
    """The experiment at one point."""
    with taken(free) as world:
        stood = stand_still(world, name, at)
    if stood.wrong or stood.takeover is None:
        say(f"  {stood}")
    return stood


def spread(stood: list[Standstill]) -> dict[str, float]:
    """The least, the middle and the most seconds."""
    seconds = [s.takeover for s in stood if s.takeover is not None]
    return {
        "min": round(min(seconds), 2),
        "median": round(statistics.median(seconds), 2),
        "max": round(max(seconds), 2),
    }


@contextmanager
def taken(free: queue.Queue[World]) -> Iterator[World]:
    """A world that nobody else uses meanwhile."""
    world = free.get()
    try:
        yield world
    finally:
        free.put(world)


@contextmanager
def worlds(count: int) -> Iterator[queue.Queue[World]]:
    """So many databases on one private PostgreSQL 18."""
    free: queue.Queue[World] = queue.Queue()
    with choose(Postgres18) as server, tempfile.TemporaryDirectory() as folder:
        made = []
        for number in range(count):
            place = Path(folder, str(number))
            place.mkdir()
            world = World("postgres18", server.create_database(), place)
            world.prepare()
            made.append(world)
            free.put(world)
        try:
            yield free
        finally:
            for world in made:
                world.close()
