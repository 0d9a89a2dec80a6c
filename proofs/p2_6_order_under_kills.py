"""Proof 2.6: the order of keys while relays are killed, stopped, and come and go.

`OUTBOX_SAGA_PROOF_PART` names one of the four runs, `OUTBOX_SAGA_PROOF_SEED` is where all choices
come from: who writes what, what is rolled back and when somebody stands still, what the broker
refuses, and what is done to which relay after how long. The same seed makes the same choices; how
fast the machine is in between is its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from outbox_saga.database import Database
from outbox_saga.dead_letters import DeadLetters
from outbox_saga.decisions import Decision
from outbox_saga.testing.servers import DatabaseServer, MariaDB, Nats, Postgres18, choose
from outbox_saga_migrations import upgrade
from proofs.chaos import stream
from proofs.chaos.relays import ROOT, Relays
from proofs.chaos.writer import counter, metadata, said
from proofs.registry import Outcome, parts, proof, say

KEYS, EVENTS, WRITERS = 50, 200, 8
PAUSED_ONE_IN = 50
SEED = int(os.environ.get("OUTBOX_SAGA_PROOF_SEED", "20261124"))
DRAIN = 120.0  # seconds after the last commit within which everything must have left
HAPPENED = (  # else the run has shown nothing
    "come",
    "leave",
    "kill, with messages on their way",
    "stop for longer than its lease, with messages on their way",
    "refused for now",
    "refused for good",
    "stored, and no answer",
    "dead letters replayed",
    "partitions that changed hands",
)
ADA = Decision("ada", "the broker takes it the next time")
VARIANTS: dict[str, tuple[type[DatabaseServer], bool]] = {
    "postgres18": (Postgres18, False),
    "postgres18, snapshot held": (Postgres18, True),
    "mariadb": (MariaDB, False),
    "mariadb, snapshot held": (MariaDB, True),
}


@proof("2.6")
def order_under_kills() -> Outcome:
    """Each database, with and without a snapshot that is held for the whole run."""
    measured: dict[str, Any] = {"seed": SEED}
    wanted = parts(VARIANTS)
    for name in wanted:
        kind, snapshot = VARIANTS[name]
        with choose(kind) as server, stream.broker() as (nats, broker_url):
            asyncio.run(stream.create(nats))
            url = server.create_database()
            found = run(url, nats, broker_url, f"{SEED} {name}", snapshot=snapshot)
        say(f"{name}: {found}")
        measured[name] = found
    good = not any(measured[name]["violations"] for name in wanted)
    return Outcome(good and len(wanted) == len(VARIANTS), measured)


def run(url: str, nats: Nats, broker_url: str, seed: str, *, snapshot: bool) -> dict[str, Any]:
    """One run; what it came to."""
    database = Database(url, hints=False)
    prepare(database)
    chance = random.Random(seed)
    began = time.monotonic()
    died: set[str] = set()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        is_held = stack.enter_context(held_snapshot(database)) if snapshot else None
        relays = Relays(url, broker_url, seed, folder)
        stack.callback(relays.end)
        writers = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "proofs.chaos.writer", url, str(n)),
                    *(str(EVENTS), str(KEYS), str(PAUSED_ONE_IN), seed),
                ],
                cwd=ROOT,
                stdout=subprocess.PIPE,
            )
            for n in range(WRITERS)
        ]
        while any(writer.poll() is None for writer in writers):
            time.sleep(chance.uniform(0.2, 1.0))
            relays.disturb(chance, at_work(database))
            died |= replay_all(database)
        written = time.monotonic() - began
        deadline = time.monotonic() + DRAIN
        while (left := waiting(database)) and time.monotonic() < deadline:
            time.sleep(chance.uniform(0.2, 1.0))
            relays.disturb(chance, at_work(database))
            died |= replay_all(database)
        seconds = time.monotonic() - began
        relays.end()
        violations = list(relays.wrong)
        if is_held is not None and not is_held():
            violations.append("the snapshot was not held for the whole run")
        if unexplained := died - relays.refused_for_good:
            violations.append(f"{len(unexplained)} dead letters got no definite no")
        happened = relays.done | relays.answers()
    happened["dead letters replayed"] = len(died)
    happened["partitions that changed hands"] = changed_hands(database)
    what_writers_did: Counter[str] = Counter()
    for writer in writers:
        told, _ = writer.communicate()
        if writer.returncode:
            violations.append(f"a writer failed: {writer.returncode}")
        else:
            what_writers_did.update(json.loads(told))
    found = asyncio.run(stream.everything(nats))
    violations += check(found, what_was_said(database))
    violations += [f"never happened: {what}" for what in HAPPENED if not happened[what]]
    violations += [f"{count} rows of {name} were left" for name, count in left.items()]
    asyncio.run(database.close())
    return {
        "events": KEYS * EVENTS,
        "published": len(found),
        "duplicates": len(found) - len({id_ for id_, _ in found}),
        "happened": dict(happened),
        "writers": dict(what_writers_did),
        "seconds": {"all": round(seconds, 1), "until the last commit": round(written, 1)},
        "violations": violations,
        **({"seed": seed, "what was done": relays.log} if violations else {}),
    }


def prepare(database: Database) -> None:
    """Tables and counters."""
    with database.begin() as connection:
        upgrade(connection)
    with database.begin() as connection:
        metadata.create_all(connection)
        rows = [{"name": f"key{n}", "number": 0} for n in range(KEYS)]
        connection.execute(sa.insert(counter), rows)


@contextmanager
def held_snapshot(database: Database) -> Iterator[Callable[[], bool]]:
    """Somebody has read, and does not end the transaction: is told whether it is still so."""
    engine = database.engine.execution_options(isolation_level="REPEATABLE READ")
    total = sa.select(sa.func.sum(counter.c.number))
    with engine.connect() as connection, connection.begin():
        seen = connection.execute(total).scalar_one()
        yield lambda: connection.execute(total).scalar_one() == seen


def waiting(database: Database) -> dict[str, int]:
    """Rows that must leave, and keys that must wait no longer."""
    t = database.tables
    found = {
        table.name: count_rows(database, table)
        for table in (t.outbox, t.blocked_key, t.dead_letter)
    }
    return {name: count for name, count in found.items() if count}


def count_rows(database: Database, table: sa.Table) -> int:
    """How many there are."""
    with database.engine.connect() as connection:
        question = sa.select(sa.func.count()).select_from(table)
        return connection.execute(question).scalar_one()


def replay_all(database: Database) -> set[str]:
    """Every dead letter goes back to its place; their ids."""
    letters = DeadLetters(database)
    replayed = set()
    with database.begin() as connection:
        found = letters.find(connection)
    for letter in found:
        with contextlib.suppress(OperationalError), database.begin() as connection:
            letters.replay(connection, letter, ADA)
        # else its lease was busy for too long, or a deadlock: the next time
        replayed.add(str(letter.id))
    return replayed


def changed_hands(database: Database) -> int:
    """How often a partition got another owner than its first."""
    epochs = sa.func.sum(database.tables.partition_lease.c.epoch - 1)
    with database.engine.connect() as connection:
        return int(connection.execute(sa.select(epochs)).scalar_one())


def at_work(database: Database) -> set[int]:
    """The pids of relays that have come so far as to say that they are alive."""
    process = database.tables.process
    with database.engine.connect() as connection:
        return set(connection.scalars(sa.select(process.c.pid)))


def what_was_said(database: Database) -> dict[str, tuple[str, int]]:
    """Key and number of every event whose transaction has committed, by id."""
    with database.engine.connect() as connection:
        return {r.id: (r.name, r.number) for r in connection.execute(sa.select(said))}


def check(found: list[tuple[str, bytes]], committed: dict[str, tuple[str, int]]) -> list[str]:
    """What is wrong with what the stream holds: of each key, and compared with the database."""
    firsts: dict[str, list[int]] = defaultdict(list)
    seen: dict[str, bytes] = {}
    wrong = []
    for id_, body in found:
        if id_ in seen:
            if seen[id_] != body:
                wrong.append(f"{id_} came with two bodies")
            continue
        seen[id_] = body
        told = json.loads(body)
        if id_ not in committed:
            wrong.append(f"{id_} {told}: its transaction was rolled back")
            continue
        key, number = committed[id_]
        if told != {"key": key, "doomed": False}:
            wrong.append(f"{id_} {told}: not what was committed")
        firsts[key].append(number)
    if lost := committed.keys() - seen.keys():
        wrong.append(f"{len(lost)} of what was committed lost")
    expected = list(range(1, EVENTS + 1))
    for key in (f"key{n}" for n in range(KEYS)):
        order = firsts[key]
        if order != expected:
            at = next((i for i, n in enumerate(order) if n != i + 1), len(order))
            around = order[max(0, at - 2) : at + 4]
            wrong.append(f"{key}: {len(order)} first deliveries, {around} at {at}")
    return wrong
