"""Proof 3.6: workers whose own clocks say another time carry sagas on by the database's."""

from __future__ import annotations

import asyncio
import datetime as dt
import glob
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.testing.servers import DatabaseServer, MariaDB, Postgres18, choose
from outbox_saga_migrations import upgrade
from proofs.clocks.waiting import Times, metadata, passed, service, times_out, waits
from proofs.registry import Outcome, parts, proof, say

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "/usr/lib/*/faketime/libfaketime.so.1"
HOURS = 2 * 3600
CLOCKS = {"two hours slow": -HOURS, "right": 0, "two hours fast": HOURS, "jumps": None}
SERVERS: dict[str, type[DatabaseServer]] = {"PostgreSQL 18": Postgres18, "MariaDB": MariaDB}
SAGAS, TIMING_OUT = 300, 60
SPAN = 6.0  # seconds over which they are started
LONGEST = 4.0  # seconds that one waits
NEVER = 4.0  # of the event that never comes
LEASE = 3.0  # of the workers
BOUND = 5 * LEASE  # seconds that anything may be late, though its worker is killed
PATIENCE = 120.0
SEED = 20261128


@proof("3.6")
def clocks() -> Outcome:
    """With all workers alive, with one killed every second, and with the rule taken out."""
    measured: dict[str, Any] = {}
    wanted = parts(SERVERS)
    good = wanted == list(SERVERS)
    for name in wanted:
        found: dict[str, Any] = {}
        for kind in ("nobody dies", "one is killed each second", "by their own clocks"):
            with choose(SERVERS[name]) as server:
                run = asyncio.run(_Run(server.create_database(), kind).whole())
            say(f"{name}, {kind}: {run}")
            found[kind] = run
            own = kind == "by their own clocks"
            good &= bool(run["violations"]) if own else not run["violations"]
        measured[name] = found
    return Outcome(good, measured)


@dataclass
class _Run:
    """Some hundred sagas, and four workers.

    Args:
        kind: What is done to the workers.
    """

    url: str
    kind: str
    starts: dict[UUID, Times] = field(default_factory=dict)
    ends: dict[UUID, Times] = field(default_factory=dict)
    said: dict[str, float] = field(default_factory=dict)  # by how much each one's clock is wrong
    killed: int = 0

    async def whole(self) -> dict[str, Any]:
        """What came of it."""
        ours = service(self.url)
        with ours.database.begin() as connection:
            upgrade(connection)
        with ours.database.begin() as connection:
            metadata.create_all(connection)
        with tempfile.TemporaryDirectory(prefix="outbox-saga-") as folder:
            workers = _Workers(self, Path(folder))
            try:
                await self._started(ours, workers)
                left = await self._ended(ours.database, workers)
            finally:
                workers.end()
        found = self._judged(ours.database, left)
        await ours.close()
        return found

    async def _started(self, ours: Any, workers: _Workers) -> None:
        chance = random.Random(SEED)  # a schedule, not a secret
        kinds = [waits] * SAGAS + [times_out] * TIMING_OUT
        chance.shuffle(kinds)
        begun = time.monotonic()
        for number, saga in enumerate(kinds):
            await asyncio.sleep(max(0.0, begun + SPAN * number / len(kinds) - time.monotonic()))
            times = Times(first=chance.uniform(0, LONGEST), second=chance.uniform(0, LONGEST))
            async with ours.unit_of_work() as uow:
                id_ = saga.start(uow, times)
            (self.starts if saga is waits else self.ends)[id_] = times
            workers.tend()

    async def _ended(self, database: Database, workers: _Workers) -> int:
        table = database.tables.saga
        going = sa.select(sa.func.count()).where(table.c.ended_at.is_(None))
        deadline = time.monotonic() + PATIENCE
        left = 1
        while left and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            workers.tend()
            with database.begin() as connection:
                left = connection.execute(going).scalar_one()
        return int(left)

    def _judged(self, database: Database, left: int) -> dict[str, Any]:
        tables = database.tables
        with database.begin() as connection:
            at = {(r.saga_id, r.step): r.at for r in connection.execute(sa.select(passed))}
            history = connection.execute(sa.select(tables.saga_history)).all()
            deaths = connection.execute(
                sa.select(tables.saga.c.state, sa.func.count()).group_by(tables.saga.c.state)
            ).all()
        begun = {r.saga_id: r.at for r in history if r.transition == "STARTED"}
        failed = {r.saga_id: r.at for r in history if r.transition == "STEP_FAILED"}
        late: list[float] = []
        for id_, times in self.starts.items():
            first, second = at.get((str(id_), "after_first")), at.get((str(id_), "after_second"))
            if first is not None:
                late.append(_seconds(first - begun[id_]) - times.first)
            if first is not None and second is not None:
                late.append(_seconds(second - first) - times.second)
        late += [
            _seconds(failed[id_] - at[str(id_), "begins"]) - NEVER
            for id_ in self.ends
            if id_ in failed
        ]
        wrong = [f"{left} sagas have not ended"] if left else []
        if early := [each for each in late if each < 0]:
            wrong.append(f"{len(early)} were early, by {-min(early):.3f} s at most")
        if max(late, default=0.0) > BOUND:
            wrong.append(f"one was {max(late):.1f} s late")
        if len(late) != 2 * SAGAS + TIMING_OUT:
            wrong.append(f"{2 * SAGAS + TIMING_OUT - len(late)} moments were lost")
        if any(
            abs(wrong_by) < HOURS / 2 for name, wrong_by in self.said.items() if name in _WRONG
        ):
            wrong.append(f"the workers' clocks were not wrong: {self.said}")
        return {
            "moments": len(late),
            "late_seconds": {
                "median": round(statistics.median(late), 3) if late else None,
                "most": round(max(late, default=0.0), 3),
            },
            "ended": {str(r[0]): r[1] for r in deaths},
            "killed": self.killed,
            "workers_clocks_wrong_by_seconds": {n: round(s) for n, s in self.said.items()},
            "violations": wrong,
        }


_WRONG = ("two hours slow", "two hours fast")


class _Workers:
    """Four processes, each with a clock of its own."""

    def __init__(self, run: _Run, folder: Path) -> None:
        self._run = run
        self._jumping = folder / "clock"
        self._chance = random.Random(f"{SEED} {run.kind}")  # a schedule, not a secret
        self._jump()
        self._processes = {name: self._begin(name) for name in CLOCKS}
        self._tended = time.monotonic()

    def tend(self) -> None:
        """Once a second one jumps, and perhaps one is killed and begun anew."""
        if time.monotonic() < self._tended + 1.0:
            return
        self._tended = time.monotonic()
        self._jump()
        if self._run.kind == "one is killed each second":
            name = self._chance.choice(list(CLOCKS))
            self._processes[name].kill()
            self._processes[name].wait()
            self._run.killed += 1
            self._processes[name] = self._begin(name)
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise AssertionError(f"the worker {name!r} has ended: {process.returncode}")

    def end(self) -> None:
        """All of them."""
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _jump(self) -> None:
        self._jumping.write_text(f"{self._chance.randint(-HOURS, HOURS):+d}\n")

    def _begin(self, name: str) -> subprocess.Popen[str]:
        library = next(iter(glob.glob(LIBRARY)), None)  # noqa: PTH207 - from the root
        if library is None:
            raise LookupError("libfaketime is not installed: ./dev prove does it, as root")
        env = dict(os.environ, LD_PRELOAD=library, FAKETIME_DONT_FAKE_MONOTONIC="1")
        wrong_by = CLOCKS[name]
        if wrong_by is None:
            env |= {"FAKETIME_TIMESTAMP_FILE": str(self._jumping), "FAKETIME_CACHE_DURATION": "1"}
        else:
            env["FAKETIME"] = f"{wrong_by:+d}"
        if self._run.kind == "by their own clocks":
            env["OUTBOX_SAGA_PROOF_OWN_CLOCK"] = "1"
        process = subprocess.Popen(
            [sys.executable, "-m", "proofs.clocks.worker", self._run.url],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        self._run.said[name] = float(process.stdout.readline()) - time.time()
        return process


def _seconds(between: dt.timedelta) -> float:
    return between.total_seconds()
