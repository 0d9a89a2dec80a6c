"""Proof 3.1: a failure of each sort at each of five steps of each kind."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sqlalchemy as sa

from outbox_saga.participants import Participants
from outbox_saga.testing.servers import DatabaseServer, MariaDB, Postgres18, choose
from proofs.five.world import (
    AFTER,
    BUYER,
    CENTS,
    CRASHES,
    DEAD,
    KINDS,
    LEASE,
    MODES,
    STEPS,
    Fault,
    Kind,
    Mode,
    Plan,
    World,
    account,
    effect,
    prepare,
)
from proofs.payments.provider import Provider
from proofs.registry import Outcome, parts, proof, say

ROOT = Path(__file__).resolve().parents[1]
SERVERS: dict[str, type[DatabaseServer] | None] = {
    "SQLite": None,
    "PostgreSQL 18": Postgres18,
    "MariaDB": MariaDB,
}
ROUNDS = 12  # of `2 * LEASE` seconds each, in which an instance has to end
PATIENCE = 60.0
LAST = "s5"
BEYOND: tuple[Mode, ...] = ("exception until retries end", "timeout", *CRASHES)


@proof("3.1")
def five_steps() -> Outcome:
    """On three databases, with `async def` and with `def` steps."""
    logging.disable(logging.CRITICAL)  # thousands of failures are no news here
    measured: dict[str, Any] = {}
    wanted = parts(SERVERS)
    good = wanted == list(SERVERS)
    for name in wanted:
        for threads in (False, True):
            what = f"{name}, {'def' if threads else 'async def'}"
            with _ground(SERVERS[name]) as ground:
                found = ground.whole(threads=threads)
            say(f"{what}: {found}")
            measured[what] = found
            good &= not found["violations"] and bool(found["without the barrier"])
    return Outcome(good, measured)


@contextmanager
def _ground(kind: type[DatabaseServer] | None) -> Iterator[_Ground]:
    with tempfile.TemporaryDirectory(prefix="outbox-saga-") as told:
        folder = Path(told)
        if kind is None:
            yield _Ground(f"sqlite:///{folder / 'five.db'}", folder)
            return
        with choose(kind) as server:
            yield _Ground(server.create_database(), folder)


class _Ground:
    """One database, and one provider."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)
        prepare(self._engine)
        self._number = 0
        self._bought = 0  # steps whose money stays moved, in this database

    def whole(self, *, threads: bool) -> dict[str, Any]:
        """Every case, and a rule taken out."""
        table: Counter[str] = Counter()
        violations: list[str] = []
        for step, kind, mode in _cases():
            fault = Fault(step, mode)
            wrong = asyncio.run(self._case(_plan(step, kind), fault, None, threads=threads))
            table[f"{kind}: {mode}"] += 1
            violations += [f"{step}, {kind}, {mode}: {w}" for w in wrong]
            if (done := sum(table.values())) % 20 == 0:
                say(f"{done} cases, {len(violations)} violations")
        for kind in KINDS:
            for mode in BEYOND:
                fault = Fault(LAST, mode, times=1)
                wrong = asyncio.run(self._case(_plan(LAST, kind), fault, "s4", threads=threads))
                table[f"{kind}, after the pivot: {mode}"] += 1
                violations += [f"{LAST} after the pivot, {kind}, {mode}: {w}" for w in wrong]
        with patch.object(Participants, "_enter", lambda *_: None):
            fault = Fault("s3", "timeout")
            without = asyncio.run(self._case(_plan("s3", "command"), fault, None, threads=threads))
        return {
            "cases": dict(table),
            "count": sum(table.values()),
            "violations": violations,
            "without the barrier": without,
        }

    async def _case(
        self, plan: Plan, fault: Fault, pivot: str | None, *, threads: bool
    ) -> list[str]:
        self._number += 1
        tag = f"case {self._number}"
        world = World(self._url, self._folder, plan, threads=threads, fault=fault, pivot=pivot)
        id_ = await world.start(tag)
        crashes = fault.mode in CRASHES
        wrong = []
        if crashes:
            told = json.dumps({**world.describe(id_), "pivot": pivot})
            child = await asyncio.to_thread(_crash, self._url, self._folder, told)
            if child != DEAD:
                wrong.append(f"its process ended with {child}, and should have died")
            world.fault = None
        for round_ in range(crashes, ROUNDS):
            await world.goes_on(round_ * 2 * LEASE)
            state, history = await world.seen(id_)
            if state in ("completed", "compensated", "stuck"):
                break
        await world.goes_on(ROUNDS * 2 * LEASE)  # what was on its way comes, too late
        state, history = await world.seen(id_)
        expected = "completed" if crashes or pivot is not None else "compensated"
        if state != expected:
            wrong.append(f"it ended {state}, and not {expected}")
        return wrong + self._effects(world, tag, state) + _order(history)

    def _effects(self, world: World, tag: str, state: str) -> list[str]:
        """Each effect is there once and stays, or was undone once, or never was; and the money."""
        wrong = []
        wanted = state == "completed"
        inside = [step for step in STEPS if world.plan[step] in ("local", "command")]
        self._bought += wanted * len(inside)
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(effect).where(effect.c.tag == tag)).all()
            cents = dict(connection.execute(sa.select(account.c.name, account.c.cents)).all())
        count = Counter((row.step, row.direction) for row in rows)
        for step in STEPS:
            if step in inside:
                do, undo = count[step, "do"], count[step, "undo"]
            else:
                found = Provider(self._folder, once=True).of(f"{tag} {step}")
                do, undo = found["charges"], found["refunds"]
            if (do, undo) not in ([(1, 0)] if wanted else [(0, 0), (1, 1)]):
                wrong.append(f"{step} was done {do} times and undone {undo} times")
        if sum(cents.values()) != BUYER or cents["buyer"] != BUYER - self._bought * CENTS:
            wrong.append(f"the accounts are {cents}, after {self._bought} steps")
            self._bought = (BUYER - cents["buyer"]) // CENTS  # told once
        return wrong


def _cases() -> Iterator[tuple[str, Kind, Mode]]:
    for step in STEPS:
        for kind in KINDS:
            for mode in MODES:
                yield step, kind, mode


def _plan(step: str, kind: Kind) -> Plan:
    """That step of that kind; the others are of all kinds in turn."""
    others = [each for each in STEPS if each != step]
    turn = KINDS.index(kind)
    plan: Plan = {each: KINDS[(turn + n + 1) % len(KINDS)] for n, each in enumerate(others)}
    plan[step] = kind
    return plan


def _order(history: list[tuple[str, str | None]]) -> list[str]:
    """Nothing was undone before what had needed it."""
    undone = [step for transition, step in history if transition == "STEP_COMPENSATED"]
    wrong = [f"{step} was undone twice" for step in set(undone) if undone.count(step) > 1]
    return wrong + [
        f"{before} was undone before {step}"
        for step in undone
        for before in AFTER[str(step)]
        if before in undone and undone.index(before) < undone.index(step)
    ]


def _crash(url: str, folder: Path, told: str) -> int:
    words = [sys.executable, "-m", "proofs.five.child", url, str(folder), told]
    return subprocess.run(words, cwd=ROOT, timeout=PATIENCE, check=False).returncode
