"""What a crash explorer's proof does with its operations: explore, cancel, plant; and its parts.

The parts of one kind, one for each database, run at the same time in processes of their own.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from proofs.crash_worlds import DATABASES, world_on
from proofs.registry import Outcome, parts, say
from tests.crash.cancelling import Canceller, When
from tests.crash.explorer import Explorer
from tests.crash.hunting import hunt
from tests.crash.operation import Operation
from tests.crash.planted_messages import Bug
from tests.crash.world import World

ROOT = Path(__file__).resolve().parents[1]
SEED = 20261128
STANDSTILL = 300.0  # seconds
WANTED_PAIRS = 2_000
WANTED_BUGS = 15
ONLY = frozenset(filter(None, os.environ.get("OUTBOX_SAGA_PROOF_OPERATIONS", "").split(":")))


@dataclass(frozen=True)
class Crashes:
    """A proof by the crash explorer.

    Args:
        module: Its own, which runs one part by `main`.
        groups: Its operations.
        bugs: Those that are planted, by the rule they break.
        pairs: Of deaths, for each operation and database.
    """

    module: str
    groups: Mapping[str, Iterable[Operation]]
    bugs: Mapping[str, Bug]
    pairs: int

    @cached_property
    def operations(self) -> dict[str, Operation]:
        """By name."""
        return {o.name: o for group in self.groups.values() for o in group}

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of parts."""
        return (*self.groups, "cancel", "planted")

    @property
    def parts(self) -> list[str]:
        """Each kind on each database."""
        return [f"{database} {kind}" for kind in self.kinds for database in DATABASES]

    def shown(self) -> Outcome:
        """The bar is met by all operations of all parts."""
        wanted = parts(self.parts)
        measured = self.measured(wanted)
        return Outcome(measured["right"] and wanted == self.parts, measured)

    def measured(self, wanted: Sequence[str]) -> dict[str, Any]:
        """The parts of one kind at the same time, one kind after another."""
        if unknown := ONLY - self.operations.keys():
            raise LookupError(
                f"no operations {sorted(unknown)}; there are {list(self.operations)}"
            )
        found: dict[str, dict[str, Any]] = {}
        for kind in self.kinds:
            names = [name for name in wanted if name.endswith(f" {kind}")]
            running = {name: self._begun(*name.split(" ")) for name in names}
            for name, child in running.items():
                out, _ = child.communicate()
                if child.returncode:
                    raise AssertionError(f"{name}: exit code {child.returncode}")
                found[name] = json.loads(out)
        summary = _sum(found)
        whole = all(part in wanted for part in self.parts) and not ONLY
        right = (
            whole
            and not summary["violations"]
            and summary["pairs"] >= WANTED_PAIRS
            and len(summary["bugs"]) >= WANTED_BUGS
            and not summary["not_caught"]
        )
        return {"right": right, "whole": whole, **summary, "parts": found}

    def _begun(self, database: str, kind: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", self.module, database, kind],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    def main(self) -> None:
        """One part, for the proof: prints what was measured."""
        logging.disable(logging.CRITICAL)  # thousands of deaths are no news
        database, kind = sys.argv[1:]
        with world_on(database) as world:
            if kind == "cancel":
                told = self.cancel(world)
            elif kind == "planted":
                told = self.plant(world)
            else:
                told = self.explore(world, self.groups[kind])
            print(json.dumps(told))

    # --- the kinds of parts ----------------------------------------------------------------------

    def explore(self, world: World, operations: Iterable[Operation]) -> dict[str, Any]:
        """Every single point of these, and some pairs of each.

        The moment after one statement and the moment before the next are one (`CrashPoints`), and
        are tried once.
        """
        points: dict[str, int] = {}
        singles = pairs = 0
        violations: list[str] = []
        for operation in operations:
            if world.name not in operation.databases or not _is_asked_for(operation.name):
                continue
            explorer = Explorer(world, operation)
            undisturbed = explorer.come_to()
            count = points[operation.name] = undisturbed.count
            found, recoveries = [], {}
            for number, at in enumerate(undisturbed.moments, 1):
                _must_end()
                run = explorer.crash(at)
                found.append(run)
                recoveries[at] = run.recovery
                if number % 100 == 0:
                    say(f"{world.name}, {operation.name}: {at} of {count}")
            singles += len(undisturbed.moments)
            # a sample, not a secret
            chance = random.Random(f"{SEED} {world.name} {operation.name}")
            for _ in range(self.pairs):
                _must_end()
                at = chance.choice([at for at, recovery in recoveries.items() if recovery])
                found.append(explorer.crash_twice(at, chance.randint(1, recoveries[at])))
                pairs += 1
            bad = [str(run) for run in found if run.violations]
            violations += bad
            say(
                f"{world.name}, {operation.name}: {count} points, "
                f"{len(undisturbed.moments)} moments, {len(bad)} bad runs"
            )
            for text in bad[:2]:
                say(f"    {text[:1000]}")
        return {"points": points, "singles": singles, "pairs": pairs, "violations": violations}

    def cancel(self, world: World) -> dict[str, Any]:
        """Every suspension of every operation that can be cancelled, at once and when answered."""
        suspensions: dict[str, dict[str, int]] = {}
        told: dict[str, int] = {}
        violations: list[str] = []
        cancels = excused = 0
        for operation in self.operations.values():
            if world.name not in operation.databases or not operation.cancels:
                continue
            if not _is_asked_for(operation.name):
                continue
            canceller = Canceller(world, operation)
            canceller.count()
            canceller.told.clear()
            bad: list[str] = []
            found = suspensions[operation.name] = {}
            for when in get_args(When):
                runs = []
                for run in canceller.every(when):
                    _must_end()
                    runs.append(run)
                found[when] = len(runs)
                bad += [str(run) for run in runs if run.violations]
            cancels += sum(found.values())
            excused += canceller.excused
            violations += bad
            for name, times in canceller.told.items():
                told[name] = told.get(name, 0) + times
            say(f"{world.name}, {operation.name}: cancelled {found}, {len(bad)} bad runs")
            for text in bad[:2]:
                say(f"    {text[:1000]}")
        return {
            "suspensions": suspensions,
            "cancels": cancels,
            "callers_were_told": told,
            "may_be_lost_in_wait_for": excused,
            "violations": violations,
        }

    def plant(self, world: World) -> dict[str, Any]:
        """Each bug that there can be on this database, and how it was caught."""
        planted = {}
        for rule, bug in self.bugs.items():
            if world.name in bug.databases and _is_asked_for(bug.operation):
                _must_end()
                planted[rule] = hunt(world, bug).as_dict() | {"operation": bug.operation}
                caught = planted[rule]
                told = caught["told"][:160]
                say(f"{world.name}, without {rule!r}: {caught['by']}, {told!r}")
        return {"planted": planted}


def _sum(measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    def total(name: str) -> int:
        return sum(part.get(name, 0) for part in measured.values())

    planted: dict[str, list[str]] = {}
    missed: list[str] = []
    for name, part in measured.items():
        for bug, found in part.get("planted", {}).items():
            planted.setdefault(bug, []).append(name.split(" ")[0])
            if not found["caught"]:
                missed.append(f"{name}: {bug}")
    return {
        "operations": {
            database: sum(
                len(part.get("points", {}))
                for name, part in measured.items()
                if name.startswith(database)
            )
            for database in DATABASES
        },
        "points": sum(
            count for part in measured.values() for count in part.get("points", {}).values()
        ),
        "singles": total("singles"),
        "pairs": total("pairs"),
        "cancels": total("cancels"),
        "violations": [v for part in measured.values() for v in part.get("violations", [])],
        "bugs": planted,
        "not_caught": missed,
        "seed": SEED,
    }


def _is_asked_for(operation: str) -> bool:
    return not ONLY or operation in ONLY


def _must_end() -> None:
    """A run that stands still ends all, and says where each thread stood."""
    faulthandler.dump_traceback_later(STANDSTILL, exit=True)
