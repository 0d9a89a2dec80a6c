"""Which proofs there are, and how one is written.

A proof N.M lives in a module `proofs/pN_M_<what>.py` and is one function:

    @proof("1.4")
    def key_lock() -> Outcome:
        ...
        return Outcome(ok=inversions == 0, measured={"interleavings": n, "inversions": inversions})

It tells its progress with `say`, which writes to standard error; standard output belongs to the
one JSON object that the runner prints. It may raise: that is a missed bar too, with the reason.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import proofs

# Every proof that was promised, with the bar it has to meet. A promise without a module stands
# in the list as failing, so that nobody takes "nothing failed" for "everything was shown".
PROMISED = {
    "1.1": (
        "On a fresh clone: `./dev demo --orders ../shared/data/northwind --kill 10` and `./dev "
        "demo --postgres --nats --orders ../shared/data/northwind --kill 10`, all checks green, "
        "refunds > 0; `./dev test --require-services` passes. Cold and warm times noted. Also "
        "from the wheel in an empty environment: `outbox-saga demo`."
    ),
    "1.2": (
        "A bare Debian root (debootstrap: Python + pip + CA certificates only) runs both "
        "commands too."
    ),
    "1.3": (
        "Write path: the schedules of DESIGN 5 (nested savepoints, publish from users' own flush "
        "and commit hooks, AsyncSession without SQL, Connection, join modes, AUTOCOMMIT, "
        "two-phase, several engines) and the refusals of DESIGN 7 that touch what exists, on "
        "both SQLAlchemy lines; after each refusal the caller's transaction still works."
    ),
    "1.4": (
        "The key lock: rows in pg_locks counted; two writers of one key and one of another, "
        "relay making two passes: all interleavings on real PostgreSQL and MariaDB, zero out of "
        "order, count stated; with the lock taken out the explorer finds the inversion."
    ),
    "1.5": (
        "Crash explorer: points per operation and database, zero violations; three planted bugs "
        "(mark before publish, key re-made on retry, effect and progress in two transactions) "
        "each caught."
    ),
    "1.6": (
        "An orchestrator stopped (SIGSTOP) past its lease at *every* statement boundary of a "
        "step, row locks held, and resumed after another took over: takes over within lease + "
        "step timeout + 2 s, changes nothing afterwards (real processes, PostgreSQL; what SQLite "
        "cannot do is documented)."
    ),
    "1.7": (
        "First figures from `./dev bench` (write path against the same transaction without "
        "outbox; relay with a no-op publisher against the raw driver floor; three-step sagas per "
        "second against a Core-level floor), in `docs/performance.md`."
    ),
    "1.8": (
        "The wheel installs nothing but `outbox_saga`, `outbox_saga_relay`, "
        "`outbox_saga_migrations`; `import outbox_saga` takes under 1.5 × `import sqlalchemy, "
        "sqlalchemy.orm, pydantic` and loads no click, alembic or broker client."
    ),
    "2.1": (
        "Write path on PostgreSQL 18, base transaction = ORM `session.get`, one attribute change, "
        "one `session.add`, commit; the same with one keyed event: ≥ 0.90 sync and ≥ 0.85 async "
        "of its throughput, 1 and 4 clients; three events ≥ 0.80."
    ),
    "2.2": (
        "Relay with a no-op publisher, backlog 200 k, keys from 2,000: ≥ 0.5 of the raw driver "
        "floor (same SELECT + DELETE pipeline, same batch, rows touched, nothing else) and ≥ 3 × "
        "the best peer; with a publisher that sleeps 5 ms *per message*, 2,000 keys: ≥ 2 × the "
        "best peer; one hot key: ≥ 0.95 of the bare publisher loop."
    ),
    "2.3": (
        "To NATS, acknowledged and deleted: ≥ 0.7 × 1/(1/no-op rate + 1/best public-API rate of "
        "nats-py)."
    ),
    "2.4": (
        "Commit → handled by a NATS subscriber, idle system: p50 ≤ 5 ms, p99 ≤ 30 ms with the "
        "hint; ≤ poll interval without. Idle relay: at most 1 query per poll interval besides "
        "lease renewal, 2 connections."
    ),
    "2.5": (
        "Backlog 1 M and 5 M rows: ≥ 0.7 of the rate at 10 k. An old READ snapshot held open for "
        "the whole run: ≥ 0.7 of the rate without; an old WRITING transaction: ≥ 3 × the best "
        "peer. WAL bytes, commits and dead tuples per event reported. Memory of the relay flat at "
        "5 M rows and with 256 KiB bodies (< 200 MB)."
    ),
    "2.6": (
        "50 keys × 200 events, 8 concurrent writers, one commit in fifty paused 0–3 s between the "
        "outbox insert and COMMIT, 3 relays joining and leaving, SIGKILL and SIGSTOP at random, "
        "broker refusing some, on PostgreSQL and MariaDB, with and without held snapshots: first "
        "deliveries of each key 1…200, nothing lost, no dead letter unexplained."
    ),
    "2.7": (
        "Exhaustive interleavings on real PostgreSQL: {two writers of one key, one of another, a "
        "relay making two passes with the mark}, {two relays handing over a partition}, {broker "
        "refuses n and would take n+1}, {late commit and sweep}, {replay and relay}: zero bad, "
        "counts stated; each finds its bug when the rule it tests is taken out."
    ),
    "2.8": (
        "Crash explorer over every public operation of this issue on the three databases, singles "
        "exhaustive, pairs ≥ 2,000; cancel at every await for async; ≥ 15 planted bugs all caught."
    ),
    "2.9": (
        "Broker down 5 minutes with 100 k events added, then back: nothing lost, no dead letter, "
        "one probe at a time, reconnect and publish rate bounded, drained. 1,000 poison messages "
        "in front, half refused, half hanging until the timeout: other keys' throughput ≥ 0.9 and "
        "p99 ≤ 1.5 × the undisturbed run (median of 5)."
    ),
    "2.10": (
        "Scenarios 1–4, 6–13, 15–20 and 28 of the list of acceptance scenarios (NATS in place of "
        "other brokers) green; the only reason for a missing one is a peer that cannot be had "
        "here."
    ),
    "3.1": (
        "For a saga of five mixed steps with a parallel pair: failure at each step × each kind "
        "of step × {Failure after partial writes, exception until retries end, timeout, crash "
        "before, crash after}: ends compensated (or completed after the pivot), each effect "
        "undone exactly once in reverse dependency order, money conserved: table of cases and "
        "counts, on three databases, async and `def` steps."
    ),
    "3.2": (
        "Crash explorer over every transition, singles exhaustive, pairs ≥ 2,000; cancellation "
        "at every await; exhaustive interleavings on real PostgreSQL of the pairs from {reply, "
        "timeout, operator cancel, second orchestrator, sibling branch, early event}: zero "
        "violations, counts stated; ≥ 15 planted bugs all caught."
    ),
    "3.3": (
        "All 120 orders of {do, retry of do, undo, retry of undo, late do} at a participant, "
        "and each pair of them concurrently: no effect left, the original answer given again."
    ),
    "3.4": (
        "Payment provider that did it but did not answer / did not do it and did not answer / "
        "answers after the deadline / does it after `query` said no, with `idempotent`, with "
        "`query`, with both: net charged as the saga's end says, never twice; a zombie "
        "orchestrator's late charge is undone."
    ),
    "3.5": (
        "Three services, NATS, PostgreSQL, 2,000 orders with 8 in flight, SIGKILL of every kind "
        "of process at random ≥ 100 times (half in flight), PostgreSQL restarted in immediate "
        "mode 5 times, NATS 5 times: all sagas ended, books balanced across the three "
        "databases, nothing stuck without a reason."
    ),
    "3.6": (
        "Workers whose clocks are wrong by ± 2 h: no timer early by the database's clock, none "
        "lost."
    ),
    "3.7": (
        "v1 instances waiting at each step, v2 deployed with a step removed, renamed, "
        "reordered: v1 instances finish on v1; with v1 gone they are parked with the reason; "
        "`saga check` had refused the deployment."
    ),
    "3.8": (
        "Throughput in one run with dbos and python-saga-orchestrator (benchmark scripts of "
        "both), PostgreSQL 18, durable settings, 8 in flight, three local steps each one Core "
        "UPDATE, one COMMIT per step at least (xact_commit counted): ≥ 2 × the better peer with "
        "one orchestrator process, forward and compensating, and ≥ 0.5 of a Core-level floor "
        "(per step one transaction: business UPDATE, saga compare-and-set, history INSERT, "
        "outbox INSERT); with two processes no slower, lost claims < 1 %. 100 k waiting and 10 "
        "k due instances: claim cost flat."
    ),
    "3.9": ("Scenarios 5 and 21–26 of the list of acceptance scenarios green."),
}

_MODULE = re.compile(r"p(\d+)_(\d+)_\w+")


@dataclass(frozen=True)
class Outcome:
    """What a proof found. `measured` holds plain JSON values."""

    ok: bool
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Proof:
    """A promise and, once it is written, how it is shown."""

    number: str
    bar: str
    show: Callable[[], Outcome] | None


_written: dict[str, Callable[[], Outcome]] = {}


def proof(number: str) -> Callable[[Callable[[], Outcome]], Callable[[], Outcome]]:
    """Register the decorated function as the proof of that promise."""
    if number not in PROMISED:
        raise LookupError(f"{number} is not among the promises in proofs/registry.py")

    def register(function: Callable[[], Outcome]) -> Callable[[], Outcome]:
        if number in _written:
            raise LookupError(f"two proofs of {number}: {_written[number]} and {function}")
        _written[number] = function
        return function

    return register


def modules() -> dict[str, str]:
    """The module that shows each number, by the pattern of its name; nothing is imported."""
    found = {}
    for module in pkgutil.iter_modules(proofs.__path__):
        if name := _MODULE.fullmatch(module.name):
            found[f"{name[1]}.{name[2]}"] = f"{proofs.__name__}.{module.name}"
    return found


def find(number: str) -> Proof:
    """The promise of that number; its module is imported only now, so others cannot break it."""
    if number not in PROMISED:
        raise LookupError(f"no proof {number}; there are {', '.join(PROMISED)}")
    if module := modules().get(number):
        importlib.import_module(module)
    return Proof(number, PROMISED[number], _written.get(number))


def parts(names: Collection[str]) -> list[str]:
    """Those of a proof's parts that shall be run: all, or those with `OUTBOX_SAGA_PROOF_PART` in
    their names. A bar is met only by all of them.
    """
    wanted = os.environ.get("OUTBOX_SAGA_PROOF_PART", "")
    exact = [name for name in names if name == wanted]
    found = exact or [name for name in names if wanted in name]
    if not found:
        raise LookupError(f"no part {wanted!r}; there are {list(names)}")
    return found


def say(text: str) -> None:
    """Tell how far the proof is, on standard error."""
    print(text, file=sys.stderr, flush=True)
