"""Proof 1.5: the process dies at every point of every operation, on each database.

Planted bugs are caught.
"""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from proofs.crash_worlds import DATABASES, world_on
from proofs.registry import Outcome, proof, say
from tests.crash.explorer import Explorer, singles
from tests.crash.operations import FIRST
from tests.crash.planted import PLANTED
from tests.crash.world import World

ROOT = Path(__file__).resolve().parents[1]
SEED = 20261123
PAIRS = 12  # for each operation and database: a crash, and another one in its recovery
KILLS = 2  # for each operation and database: real processes, real SIGKILL
WANTED = {  # where a planted bug must show
    "mark before publish": "relay to a broker",
    "key re-made on retry": "saga external-idempotent",
    "effect and progress in two transactions": "saga local-async",
}


@proof("1.5")
def crash_points() -> Outcome:
    """All singles, sampled pairs, sampled kills, and the planted bugs.

    The databases at the same time.
    """
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", "proofs.p1_5_crash_points", name],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in DATABASES
    }
    measured: dict[str, Any] = {}
    for name, child in running.items():
        out, _ = child.communicate()
        if child.returncode:
            raise AssertionError(f"{name}: exit code {child.returncode}")
        measured[name] = json.loads(out)
    violations = sum(len(m["violations"]) for m in measured.values())
    caught = all(bug["caught"] for m in measured.values() for bug in m["planted"].values())
    return Outcome(
        ok=violations == 0 and caught,
        measured={
            "points": {name: m["points"] for name, m in measured.items()},
            "runs": {name: m["runs"] for name, m in measured.items()},
            "violations": [v for m in measured.values() for v in m["violations"]],
            "planted_bugs": {name: m["planted"] for name, m in measured.items()},
            "seed_of_pairs": SEED,
        },
    )


def explore(world: World) -> dict[str, Any]:
    """Everything, in one world."""
    points: dict[str, int] = {}
    runs = {"singles": 0, "pairs": 0, "sigkill": 0}
    violations: list[str] = []
    for name, operation in FIRST.items():
        explorer = Explorer(world, operation)
        undisturbed = explorer.come_to()
        count = points[name] = undisturbed.count
        found = []
        recoveries = {}
        for run in singles(explorer, undisturbed.moments):
            found.append(run)
            recoveries[run.at[0]] = run.recovery
        runs["singles"] += len(undisturbed.moments)
        chance = random.Random(f"{SEED} {world.name} {name}")  # a sample, not a secret
        for _ in range(PAIRS):
            at = chance.choice([at for at, recovery in recoveries.items() if recovery])
            found.append(explorer.crash_twice(at, chance.randint(1, recoveries[at])))
            runs["pairs"] += 1
        for at in chance.sample(range(1, count + 1), KILLS):
            found.append(explorer.kill(at))
            runs["sigkill"] += 1
        bad = [str(run) for run in found if run.violations]
        violations += bad
        say(f"{world.name}, {name}: {count} points, {len(bad)} runs with violations")
    planted = {bug: plant(world, bug) for bug in PLANTED}
    return {"points": points, "runs": runs, "violations": violations, "planted": planted}


def plant(world: World, bug: str) -> dict[str, Any]:
    """At which points the explorer catches this bug."""
    explorer = Explorer(world, FIRST[WANTED[bug]], PLANTED[bug])
    moments = explorer.moments()
    count = len(moments)
    caught = [run for run in singles(explorer, moments) if run.violations]
    invariants = sorted({v.invariant for run in caught for v in run.violations})
    say(f"{world.name}, planted {bug!r}: caught at {len(caught)} of {count} points")
    return {
        "caught": bool(caught),
        "operation": WANTED[bug],
        "points": count,
        "caught_at": {str(run.at[0]): run.places[0] for run in caught},
        "invariants": invariants,
    }


def main() -> None:
    """One database, for the proof: prints what was measured."""
    logging.disable(logging.CRITICAL)  # thousands of deaths are no news
    with world_on(sys.argv[1]) as world:
        print(json.dumps(explore(world)))


if __name__ == "__main__":
    main()
