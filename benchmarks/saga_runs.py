"""Sagas carried out by processes of their own, ours and peers': rates, commits and claims.

Commits are the server's own count (`pg_stat_database.xact_commit`), read when nobody is connected
any more, so that every session has handed in what it did.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql

from benchmarks.databases import Place
from benchmarks.measuring import Sample
from benchmarks.orchestrating import Order
from benchmarks.peers.environments import python_of
from benchmarks.peers.known import Settings
from benchmarks.peers.measure import HERE, measured
from benchmarks.peers.saga_engines import SagaEngine
from benchmarks.saga_steps import ACCOUNT, ACCOUNTS, IN_FLIGHT, STEPS, Ground, Kind, definition

_OURS = "benchmarks.orchestrating"
PATIENCE = 20.0  # seconds until the sessions of processes that have ended are gone


def transitions(*, failing: bool) -> int:
    """Steps that are done and undone, each of which must be committed by itself."""
    return 2 * (len(STEPS) - 1) if failing else len(STEPS)


@dataclass
class Runs:
    """Measurements on one server, and what was counted beside them.

    Args:
        place: PostgreSQL 18.
        commits: Per saga, by contender.
        claims: Of ours, by contender.
    """

    place: Place
    commits: dict[str, list[float]] = field(default_factory=dict)
    claims: dict[str, list[Mapping[str, int]]] = field(default_factory=dict)

    @property
    def dsn(self) -> str:
        """For drivers that know nothing of SQLAlchemy."""
        url = sa.make_url(self.place.url).set(drivername="postgresql")
        return url.render_as_string(hide_password=False)

    def ours(
        self,
        name: str,
        count: int,
        kind: Kind,
        *,
        failing: bool = False,
        processes: int = 1,
        start: bool = False,
    ) -> Sample:
        """So many sagas by so many orchestrators.

        Args:
            name: Of the contender.
            start: They are started within the time; otherwise before.
        """
        ground = Ground(self.place.url, count)
        if start:
            ground.empty()
        else:
            ground.begin_again(definition(kind, failing=failing))
        order = Order(self.place.url, count, kind, failing=failing, start=start)
        command = [sys.executable, "-m", _OURS, order.told()]
        with self._counting(name, count):
            found, watch = measured([command] * processes, {})
        ground.check(failing=failing)
        self.claims.setdefault(name, []).extend(each["claims"] for each in found)
        seconds = max(each["seconds"] for each in found)
        cpu = sum(each["cpu"] for each in found)
        return Sample(count, seconds, cpu, watch.ours, watch.foreign)

    def peer(
        self, name: str, engine: SagaEngine, settings: Settings, count: int, *, failing: bool
    ) -> Sample:
        """So many sagas by a peer."""
        Ground(self.place.url, count).empty()
        order = {
            "dsn": self.dsn,
            "sagas": count,
            "in_flight": IN_FLIGHT,
            "accounts": ACCOUNTS,
            "failing": failing,
            "settings": dict(settings),
        }
        command = [str(python_of(engine)), str(HERE / engine.script), json.dumps(order)]
        with self._counting(name, count):
            (found,), watch = measured([command], {"PYTHONPATH": str(HERE)})
        done = len(STEPS) - failing
        wanted = (count, count * done * (1 + 1_000_000 * failing))
        if (found["ended"], self._effects()) != wanted:
            raise RuntimeError(
                f"{name}: {found['ended']} of {count} ended so, effects {self._effects()}"
            )
        return Sample(count, found["seconds"], found["cpu"], watch.ours, watch.foreign)

    def commits_of(self, name: str) -> float:
        """Of each saga of a contender: the fewest of its runs."""
        return min(self.commits[name])

    def lost_claims(self, name: str) -> dict[str, Any]:
        """Of all runs of a contender."""
        total = {key: sum(run[key] for run in self.claims[name]) for key in self.claims[name][0]}
        lost = (total["empty"] + total["lost"]) / max(1, total["asked"] - total["idle"])
        return {**total, "share_lost": round(lost, 5)}

    def _effects(self) -> int:
        with psycopg.connect(self.dsn) as connection:
            asked = sql.SQL("SELECT sum(balance) FROM {}").format(sql.Identifier(ACCOUNT.name))
            row = connection.execute(asked).fetchone()
        assert row is not None
        return int(row[0])

    @contextmanager
    def _counting(self, name: str, count: int) -> Iterator[None]:
        before = self._committed()
        yield
        self.commits.setdefault(name, []).append((self._committed() - before) / count)

    def _committed(self) -> int:
        deadline = time.monotonic() + PATIENCE
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while True:
                row = connection.execute(
                    "SELECT xact_commit, (SELECT count(*) FROM pg_stat_activity WHERE "
                    "datname = current_database() AND backend_type = 'client backend') "
                    "FROM pg_stat_database WHERE datname = current_database()"
                ).fetchone()
                assert row is not None
                if row[1] == 1:
                    return int(row[0])
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{row[1] - 1} sessions have not ended")
                time.sleep(0.05)
