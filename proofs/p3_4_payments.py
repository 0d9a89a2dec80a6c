"""Proof 3.4: a payment whose outcome nobody knows, in every way there is not to know it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

from outbox_saga.saga.hand import Hand
from outbox_saga.testing.servers import DatabaseServer, MariaDB, Postgres18, choose
from outbox_saga_migrations import upgrade
from proofs.payments.paying import (
    BEHAVIOURS,
    ENDS,
    MODES,
    SURE,
    TIMEOUT,
    Behaviour,
    End,
    Mode,
    Paying,
)
from proofs.registry import Outcome, parts, proof, say

ROOT = Path(__file__).resolve().parents[1]
SERVERS: dict[str, type[DatabaseServer] | None] = {
    "SQLite": None,
    "PostgreSQL 18": Postgres18,
    "MariaDB": MariaDB,
}
PATIENCE = 60.0  # seconds that a process may take


@proof("3.4")
def payments() -> Outcome:
    """On three databases, with `async def` and with `def` steps; and with rules taken out."""
    logging.disable(logging.CRITICAL)  # what is not answered is no news here
    measured: dict[str, Any] = {}
    wanted = parts(SERVERS)
    good = wanted == list(SERVERS)
    for name in wanted:
        with _database(SERVERS[name]) as url:
            for threads in (False, True):
                what = f"{name}, {'def' if threads else 'async def'}"
                found = _tried(url, threads=threads)
                found["without a rule"] = _without(url, threads=threads)
                say(f"{what}: {found}")
                measured[what] = found
                good &= not found["violations"] and all(
                    caught == "found" for caught in found["without a rule"].values()
                )
    return Outcome(good, measured)


@contextmanager
def _database(kind: type[DatabaseServer] | None) -> Iterator[str]:
    if kind is None:
        with tempfile.TemporaryDirectory(prefix="outbox-saga-") as folder:
            yield f"sqlite:///{Path(folder, 'payments.db')}"
        return
    with choose(kind) as server:
        yield server.create_database()


def _tried(url: str, *, threads: bool) -> dict[str, Any]:
    violations: list[str] = []
    cases: dict[str, int] = {}
    for mode in MODES:
        with _provider(url, mode, threads=threads) as (paying, folder):
            for behaviour in BEHAVIOURS:
                for end in ENDS:
                    wrong = asyncio.run(_case(paying, behaviour, end))
                    cases[behaviour] = cases.get(behaviour, 0) + 1
                    violations += [f"{mode}, {behaviour}, {end}: {w}" for w in wrong]
            for end in ENDS:
                if mode == "query" and end == "completed":
                    continue  # see `_passed`
                wrong = _passed(url, folder, mode, end, threads=threads)
                cases["zombie"] = cases.get("zombie", 0) + 1
                violations += [f"{mode}, zombie, {end}: {w}" for w in wrong]
    return {"cases": cases, "violations": violations}


@contextmanager
def _provider(url: str, mode: Mode, *, threads: bool) -> Iterator[tuple[Paying, Path]]:
    with tempfile.TemporaryDirectory(prefix="outbox-saga-") as told:
        folder = Path(told)
        paying = Paying(url, folder, mode, threads=threads)
        service = paying.service()
        with service.database.begin() as connection:
            upgrade(connection)
        asyncio.run(service.close())
        yield paying, folder


async def _case(paying: Paying, behaviour: Behaviour, end: End) -> list[str]:
    """One instance, from its start to its end."""
    id_ = await paying.start(end, behaviour)
    await paying.carry_on()
    await asyncio.sleep(3 * TIMEOUT if behaviour == "answers after the deadline" else 0)
    wrong = []
    if paying.mode == "query":
        # as long as the call may be on its way, nobody may ask: it would hear "no", and call again
        for after in (1.0, SURE / 2):
            await paying.carry_on(after)
    received = paying.provider.do_what_was_received()
    if received != (behaviour == "does it later"):
        wrong.append("the provider was asked again before it was done")
    for round_ in range(1, 6):
        await paying.carry_on(round_ * 2 * SURE)
    return wrong + await _judged(paying, id_, end)


async def _judged(paying: Paying, id_: UUID, end: End) -> list[str]:
    found, state = paying.provider.of(str(id_)), await paying.state(id_)
    wrong = [] if state == end else [f"it ended {state}"]
    net = found["charges"] - found["refunds"]
    if net != (end == "completed"):
        wrong.append(f"charged {found['charges']} times, refunded {found['refunds']} times")
    if found["at once"] > 1:
        wrong.append(f"charged {found['at once']} times at once")
    return wrong


def _passed(url: str, folder: Path, mode: Mode, end: End, *, threads: bool) -> list[str]:
    """A process stands still before its call; another one carries the instance to its end; then
    the call is made.

    Where the other side has only a query, nothing can keep a call from it that is made after the
    question was answered "no" in good time: there, only the other one's refusal is tried, after
    which the late charge is undone.
    """
    declines = end == "compensated"
    paying = Paying(url, folder, mode, threads=threads, declines=declines)
    id_ = asyncio.run(paying.start("completed", None))
    words = [url, str(folder), mode, "def" if threads else "async def"]
    zombie = subprocess.Popen([sys.executable, "-m", "proofs.payments.zombie", *words], cwd=ROOT)
    try:
        _, status = os.waitpid(zombie.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise AssertionError(f"it did not come to its call: {status}")
        for round_ in range(1, 4):
            asyncio.run(paying.carry_on(round_ * 2 * SURE))
        before = asyncio.run(paying.state(id_))
        wrong = [] if before == end else [f"the other one left it {before}"]
        zombie.send_signal(signal.SIGCONT)
        zombie.wait(PATIENCE)
    finally:
        zombie.kill()
        zombie.wait()
    if not paying.provider.of(str(id_))["charges"]:
        wrong.append("it did not call")
    asyncio.run(paying.carry_on(10 * SURE))
    return wrong + asyncio.run(_judged(paying, id_, end))


def _without(url: str, *, threads: bool) -> dict[str, str]:
    """A rule taken out: it must be seen."""
    surroundings = Hand.surroundings

    def asks_at_once(hand: Hand, reporting: Any) -> Any:
        return replace(surroundings(hand, reporting), lease=-TIMEOUT)

    told = {}
    with (
        patch.object(Hand, "surroundings", asks_at_once),
        _provider(url, "query", threads=threads) as (paying, _),
    ):
        wrong = asyncio.run(_case(paying, "does it later", "completed"))
        told["a question waits until no call can be on its way"] = _found(wrong)
    for mode in ("idempotent", "query"):
        with _provider(url, mode, threads=threads) as (_, folder):
            wrong = _passed_and_forgotten(url, folder, mode, threads=threads)
            told[f"a late success is undone, {mode}"] = _found(wrong)
    return told


def _passed_and_forgotten(url: str, folder: Path, mode: Mode, *, threads: bool) -> list[str]:
    rule = "OUTBOX_SAGA_PROOF_FORGETS"
    os.environ[rule] = "1"
    try:
        return _passed(url, folder, mode, "compensated", threads=threads)
    finally:
        del os.environ[rule]


def _found(wrong: list[str]) -> str:
    return "found" if wrong else "not found"
