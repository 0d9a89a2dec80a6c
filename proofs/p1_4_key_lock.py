"""Proof 1.4: what the key lock costs in lock rows, and that it keeps order in every schedule.

The schedules are all interleavings of the actors' steps, taken one at a time on a real server:
a writer's steps are its write (with the locks) and its commit, a relay's the reading of a page
and the removal of it. Whoever waits for a lock is found by asking the server.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from outbox_saga.tables import KEY_LOCKS
from outbox_saga.testing.interleaving import Exploration, Point, explore
from outbox_saga.testing.servers import DatabaseServer, MariaDB, Postgres18, choose
from outbox_saga.unit_of_work import UnitOfWork
from outbox_saga_migrations import upgrade
from proofs.registry import Outcome, proof, say
from tests.write_path.contest import Contest, least_steps
from tests.write_path.shop import Said

KEYS = (0, 1, 10, 100, 1_000, 10_000)
SERVERS: tuple[type[DatabaseServer], ...] = (Postgres18, MariaDB)


@proof("1.4")
def key_lock() -> Outcome:
    """Count the locks, then try every interleaving with them, and a few without."""
    measured: dict[str, Any] = {}
    with contest(Postgres18) as on_postgres:
        measured["pg_locks_rows_by_keys"] = rows = {
            keys: advisory_locks_at_commit(on_postgres, keys) for keys in KEYS
        }
    counted = all(rows[n] == len({lock_of(i) for i in range(n)}) for n in KEYS)
    measured["most_rows_possible"] = KEY_LOCKS
    good = counted and max(rows.values()) <= KEY_LOCKS
    for server in SERVERS:
        with contest(server) as on:
            found = {name: tried(server.name, name, on) for name in PLAYS}
        measured[server.name] = {name: figures(one) for name, one in found.items()}
        good = good and verdict(found)
    return Outcome(ok=good, measured=measured)


@contextmanager
def contest(server: type[DatabaseServer]) -> Iterator[Contest]:
    """A private server with our tables in one database."""
    with choose(server) as running:
        on = Contest(running.create_database())
        with on.engine.begin() as connection:
            upgrade(connection)
        yield on
        on.engine.dispose()


def lock_of(number: int) -> int:
    """The number of a key's lock, by the rule and not by the product's function."""
    return zlib.crc32(b"order:%d" % number) % 1024


def advisory_locks_at_commit(on: Contest, keys: int) -> int:
    """Rows of pg_locks while a transaction with so many keys is about to commit."""
    counts: list[int] = []
    count = sa.text(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted "
        "AND classid = CAST('outbox_saga_outbox' AS regclass) AND pid = :pid"
    )

    def look(connection: sa.Connection) -> None:
        raw: Any = connection.connection.dbapi_connection
        with on.engine.connect() as eyes:
            found = eyes.scalar(count, {"pid": raw.info.backend_pid})
        counts.append(found or 0)

    with on.engine.connect() as connection:
        connection.begin()
        uow = UnitOfWork(connection)
        uow.publish(Said(word="without a key"))
        for number in range(keys):
            uow.publish(Said(word="x"), key=f"order:{number}")
        event.listen(on.engine, "commit", look)  # after ours: the rows and locks are taken
        connection.commit()
        event.remove(on.engine, "commit", look)
    say(f"{keys} keys: {counts[0]} advisory locks")
    return counts[0]


# --- the plays -----------------------------------------------------------------------------------

ONE_KEY = {"writer1": [("k", "one")], "writer2": [("k", "two")], "writer3": [("j", "three")]}
AB_BA = {"writer1": [("a", "1a"), ("b", "1b")], "writer2": [("b", "2b"), ("a", "2a")]}

Actors = Mapping[str, Callable[[], object]]


def with_lock(on: Contest) -> Actors:
    """Two writers of one key, one of another, a relay that makes two passes."""
    return {name: on.writer(words) for name, words in ONE_KEY.items()} | {"relay": on.relay(2)}


def without_lock(on: Contest) -> Actors:
    """The two writers of one key and a relay, the lock taken out."""
    return {
        f"bare{number}": on.writer(words, key_locks=False)
        for number, words in enumerate((ONE_KEY["writer1"], ONE_KEY["writer2"]), 1)
    } | {"relay": on.relay(1)}


def two_keys(on: Contest) -> Actors:
    """Two writers of a,b and b,a, as the product writes."""
    return {name: on.writer(words) for name, words in AB_BA.items()}


def locks_one_by_one_sorted(on: Contest) -> Actors:
    """The same, each lock a step of its own, sorted."""
    return {name: on.careless_writer(words, in_order=True) for name, words in AB_BA.items()}


def locks_one_by_one_unsorted(on: Contest) -> Actors:
    """The same, each lock a step of its own, as the keys come: the planted mistake."""
    return {name: on.careless_writer(words, in_order=False) for name, words in AB_BA.items()}


PLAYS: dict[str, Callable[[Contest], Actors]] = {
    "with_lock": with_lock,
    "without_lock": without_lock,
    "two_keys": two_keys,
    "locks_one_by_one_sorted": locks_one_by_one_sorted,
    "locks_one_by_one_unsorted": locks_one_by_one_unsorted,
}


def no_rollbacks(point: Point) -> bool:
    """Each statement and commit is a step; the end of what has ended is none."""
    return point.kind != "rollback"


def tried(server: str, name: str, on: Contest) -> Exploration:
    """All schedules of one play."""

    def progress(found: Exploration) -> None:
        if found.schedules % 1000 == 0:
            say(f"{server} {name}: {found.report().splitlines()[0]}")

    found = explore(
        lambda: on.play(PLAYS[name](on)),
        [on.engine],
        steps=least_steps if name in ("with_lock", "without_lock") else no_rollbacks,
        progress=progress,
    )
    say(f"{server} {name}: {found.report()}")
    return found


def verdict(found: Mapping[str, Exploration]) -> bool:
    """The lock keeps order and never deadlocks; the explorer sees both when it is taken out."""
    right = ("with_lock", "two_keys", "locks_one_by_one_sorted")
    return (
        all(one.exhausted for one in found.values())
        and all(not found[name].problems and not found[name].deadlocks for name in right)
        and all(found[name].with_waits > 0 for name in right)
        and bool(found["without_lock"].problems)
        and found["locks_one_by_one_unsorted"].deadlocks > 0
        and not found["locks_one_by_one_unsorted"].problems
    )


def figures(found: Exploration) -> dict[str, Any]:
    """Counts, and the first schedule that went wrong, which `replay` takes."""
    figures: dict[str, Any] = {
        "schedules": found.schedules,
        "exhausted": found.exhausted,
        "with_lock_waits": found.with_waits,
        "deadlocks": found.deadlocks,
        "out_of_order": len(found.problems),
        "seconds": round(found.seconds, 1),
    }
    if found.problems:
        figures["first"] = found.problems[0].report().splitlines()
    return figures
