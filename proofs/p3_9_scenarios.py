"""Proof 3.9: the acceptance scenarios of sagas; most of them are other proofs of this part."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from outbox_saga.testing.servers import DatabaseServer, MariaDB, Postgres18, choose
from proofs.registry import Outcome, find, parts, proof, say
from proofs.saga_scenes import undo_fails

SERVERS: dict[str, type[DatabaseServer] | None] = {
    "SQLite": None,
    "PostgreSQL 18": Postgres18,
    "MariaDB": MariaDB,
}
ELSEWHERE = {
    "05 all crash points": "3.2",
    "21 saga at each step": "3.1",
    "22 payment unknown": "3.4",
    "23 late success": "3.3",
    "25 clocks": "3.6",
    "26 new definition": "3.7",
}


@proof("3.9")
def scenarios() -> Outcome:
    """Each scenario's own figures, and whether it was met."""
    shows: dict[str, Callable[[], Outcome]] = {
        name: lambda number=number: _other(number)  # type: ignore[misc]
        for name, number in ELSEWHERE.items()
    }
    shows["24 undo fails"] = _undo_fails
    names = sorted(shows)
    wanted = parts(names)
    measured: dict[str, Any] = {}
    good = wanted == names
    for name in wanted:
        outcome = shows[name]()
        say(f"{name}: {outcome}")
        measured[name] = {"ok": outcome.ok, **outcome.measured}
        good &= outcome.ok
    return Outcome(good, measured)


def _other(number: str) -> Outcome:
    found = find(number)
    if found.show is None:
        return Outcome(ok=False, measured={"error": f"proof {number} is not written"})
    return found.show()


def _undo_fails() -> Outcome:
    measured: dict[str, Any] = {}
    for name, kind in SERVERS.items():
        for threads in (False, True):
            for for_ever in (False, True):
                with _database(kind) as url:
                    found = undo_fails.play(url, threads=threads, for_ever=for_ever)
                what = "fails for ever" if for_ever else f"fails {undo_fails.FAILS} times"
                measured[f"{name}, {'def' if threads else 'async def'}, {what}"] = found
    return Outcome(not any(found["wrong"] for found in measured.values()), measured)


@contextmanager
def _database(kind: type[DatabaseServer] | None) -> Iterator[str]:
    if kind is None:
        with tempfile.TemporaryDirectory(prefix="outbox-saga-") as folder:
            yield f"sqlite:///{Path(folder, 'scene.db')}"
        return
    with choose(kind) as server:
        yield server.create_database()
