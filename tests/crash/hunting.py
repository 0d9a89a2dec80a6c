"""Whether a planted bug is caught, by what, and where."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy.exc import DBAPIError

from outbox_saga.errors import OutboxSagaError
from tests.crash.cancelling import Canceller
from tests.crash.explorer import Explorer, Run
from tests.crash.operations import OPERATIONS
from tests.crash.planted_messages import Bug
from tests.crash.world import World


@dataclass(frozen=True)
class Hunt:
    """How it went.

    Args:
        by: "undisturbed", "crash" or "cancel".
        tried: Runs until it was caught, or all there are.
        where: The point or the suspension, and what stands there.
        told: What was found.
    """

    caught: bool
    by: str
    tried: int
    where: str = ""
    told: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def hunt(world: World, bug: Bug) -> Hunt:
    """The runs with this bug, until one of them is wrong."""
    gc.collect()  # what a bug before has left behind
    tried = 0
    by: str = bug.by
    with bug.plant():
        try:
            for by, run in _runs(world, bug):
                tried += 1
                if run.violations:
                    where = f"{run.at} {' '.join(run.places)}"
                    return Hunt(True, by, tried, where, "; ".join(map(str, run.violations))[:500])
        except (TimeoutError, DBAPIError, OutboxSagaError) as error:
            # it never came to rest, or what was left behind is refused by the tables themselves
            return Hunt(True, by, tried + 1, "", f"{type(error).__name__}: {error}"[:500])
    return Hunt(False, by, tried)


def _runs(world: World, bug: Bug) -> Iterator[tuple[str, Run]]:
    operation = OPERATIONS[bug.operation]
    if bug.by == "cancel":
        canceller = Canceller(world, operation, bug.code)
        for when in ("at once", "answered"):
            for run in canceller.every(when):
                yield "cancel", run
        return
    explorer = Explorer(world, operation, bug.code)
    points, run = explorer.undisturbed()
    yield "undisturbed", run
    for at in points.moments:
        yield "crash", explorer.crash(at)
