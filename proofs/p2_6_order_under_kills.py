"""Proof 2.6: the order of keys while relays are killed, stopped, and come and go."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from outbox_saga.database import Database
from outbox_saga.testing.servers import DatabaseServer, MariaDB, Nats, Postgres18, choose
from outbox_saga_migrations import upgrade
from proofs.chaos import stream
from proofs.chaos.relay_program import LEASE
from proofs.chaos.writer import counter
from proofs.registry import Outcome, proof, say

ROOT = Path(__file__).resolve().parents[1]
KEYS, EVENTS, WRITERS, RELAYS = 50, 200, 8, 3
PAUSED_ONE_IN = 50
SEED = int(os.environ.get("OUTBOX_SAGA_PROOF_SEED", "20261124"))
DRAIN = 120.0  # seconds after the last commit within which everything must have left
VARIANTS: tuple[tuple[str, type[DatabaseServer], bool], ...] = (
    ("postgres18", Postgres18, False),
    ("postgres18, snapshot held", Postgres18, True),
    ("mariadb", MariaDB, False),
    ("mariadb, snapshot held", MariaDB, True),
)


@proof("2.6")
def order_under_kills() -> Outcome:
    """Each database, with and without a snapshot that is held for the whole run."""
    measured: dict[str, Any] = {"seed": SEED}
    for name, kind, snapshot in VARIANTS:
        with choose(kind) as server, stream.broker() as (nats, broker_url):
            asyncio.run(stream.create(nats))
            url = server.create_database()
            measured[name] = run(url, nats, broker_url, f"{SEED} {name}", snapshot=snapshot)
        say(f"{name}: {measured[name]}")
    ok = all(not found["violations"] for found in measured.values() if isinstance(found, dict))
    return Outcome(ok, measured)


def run(url: str, nats: Nats, broker_url: str, seed: str, *, snapshot: bool) -> dict[str, Any]:
    """One run; what it came to."""
    database = Database(url, hints=False)
    prepare(database)
    chance = random.Random(seed)
    began = time.monotonic()
    with ExitStack() as stack:
        if snapshot:
            stack.enter_context(held_snapshot(database))
        relays = Relays(url, broker_url, seed)
        stack.callback(relays.end)
        writers = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "proofs.chaos.writer", url, str(n)),
                    *(str(EVENTS), str(KEYS), str(PAUSED_ONE_IN), seed),
                ],
                cwd=ROOT,
            )
            for n in range(WRITERS)
        ]
        while any(writer.poll() is None for writer in writers):
            time.sleep(chance.uniform(0.2, 1.0))
            relays.disturb(chance, at_work(database))
        failed = [writer.returncode for writer in writers if writer.returncode]
        deadline = time.monotonic() + DRAIN
        while (left := waiting(database)) and time.monotonic() < deadline:
            time.sleep(chance.uniform(0.2, 1.0))
            relays.disturb(chance, at_work(database))
        seconds = time.monotonic() - began
    found = asyncio.run(stream.everything(nats))
    violations = check(found)
    if failed or left:
        violations.append(f"{len(failed)} writers failed, {left} rows were left")
    if dead := dead_letters(database):
        violations.append(f"{dead} dead letters")
    asyncio.run(database.close())
    return {
        "events": KEYS * EVENTS,
        "published": len(found),
        "duplicates": len(found) - len({id_ for id_, _ in found}),
        "disturbances": dict(relays.disturbances),
        "seconds": round(seconds, 1),
        "violations": violations,
    }


def prepare(database: Database) -> None:
    """Tables and counters."""
    with database.begin() as connection:
        upgrade(connection)
    with database.begin() as connection:
        counter.metadata.create_all(connection)
        rows = [{"key": f"key{n}", "number": 0} for n in range(KEYS)]
        connection.execute(sa.insert(counter), rows)


@contextmanager
def held_snapshot(database: Database) -> Iterator[None]:
    """Somebody has read, and does not end the transaction."""
    engine = database.engine.execution_options(isolation_level="REPEATABLE READ")
    with engine.connect() as connection, connection.begin():
        connection.execute(sa.select(sa.func.count()).select_from(counter))
        yield


def waiting(database: Database) -> int:
    """Rows in the outbox."""
    with database.engine.connect() as connection:
        question = sa.select(sa.func.count()).select_from(database.tables.outbox)
        return connection.execute(question).scalar_one()


def at_work(database: Database) -> set[int]:
    """The pids of relays that have come so far as to say that they are alive."""
    process = database.tables.process
    with database.engine.connect() as connection:
        return set(connection.scalars(sa.select(process.c.pid)))


def dead_letters(database: Database) -> int:
    """None of the broker's answers was a definite no, so there must be none."""
    with database.engine.connect() as connection:
        question = sa.select(sa.func.count()).select_from(database.tables.dead_letter)
        return connection.execute(question).scalar_one()


def check(found: list[tuple[str, bytes]]) -> list[str]:
    """What is wrong with what the stream holds, of each key."""
    firsts: dict[str, list[int]] = defaultdict(list)
    seen: dict[str, bytes] = {}
    wrong = []
    for id_, body in found:
        if id_ in seen:
            if seen[id_] != body:
                wrong.append(f"{id_} came with two bodies")
            continue
        seen[id_] = body
        said = json.loads(body)
        firsts[said["key"]].append(said["number"])
    expected = list(range(1, EVENTS + 1))
    for key in (f"key{n}" for n in range(KEYS)):
        order = firsts[key]
        if order != expected:
            at = next((i for i, n in enumerate(order) if n != i + 1), len(order))
            wrong.append(f"{key}: {len(order)} first deliveries, {order[at - 2 : at + 4]} at {at}")
    return wrong


class Relays:
    """Some relays, and what is done to them."""

    def __init__(self, url: str, broker_url: str, seed: str) -> None:
        self._command = [sys.executable, "-m", "proofs.chaos.relay_program", url, broker_url]
        self._seed = seed
        self._started = 0
        self._stopped: dict[subprocess.Popen[bytes], float] = {}
        self.disturbances: Counter[str] = Counter()
        self._running = [self._start() for _ in range(RELAYS)]

    def _start(self) -> subprocess.Popen[bytes]:
        self._started += 1
        command = [*self._command, f"{self._seed} {self._started}"]
        return subprocess.Popen(command, cwd=ROOT)

    def disturb(self, chance: random.Random, at_work: set[int]) -> None:
        """One that works is killed, stopped for longer than its lease, or leaves; one comes."""
        for relay, until in list(self._stopped.items()):
            if time.monotonic() >= until:
                del self._stopped[relay]
                relay.send_signal(signal.SIGCONT)
        working = [relay for relay in self._running if relay.pid in at_work]
        if len(working) < 2:
            return  # else nobody would ever get to work on a busy machine
        relay = chance.choice(working)
        what = chance.choice(["kill", "stop", "leave", "come", "nothing"])
        if what == "stop" and relay not in self._stopped:
            relay.send_signal(signal.SIGSTOP)
            self._stopped[relay] = time.monotonic() + chance.uniform(0.5, 3) * LEASE
        elif what in ("kill", "leave") and len(self._running) > 1:
            self._running.remove(relay)
            if self._stopped.pop(relay, None) is not None:
                what = "kill"
            relay.send_signal(signal.SIGKILL if what == "kill" else signal.SIGTERM)
            if what == "kill":
                relay.wait()
        elif what == "come" and len(self._running) < RELAYS + 1:
            self._running.append(self._start())
        else:
            return
        self.disturbances[what] += 1
        if len(self._running) < 2:
            self._running.append(self._start())

    def end(self) -> None:
        """None is left."""
        for relay in self._running:
            relay.send_signal(signal.SIGCONT)
            relay.kill()
            relay.wait()
