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
import pkgutil
import re
import sys
from collections.abc import Callable
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


def say(text: str) -> None:
    """Tell how far the proof is, on standard error."""
    print(text, file=sys.stderr, flush=True)
