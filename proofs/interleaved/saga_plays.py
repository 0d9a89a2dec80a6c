"""The plays of proof 3.2: all pairs of those who may move one saga at the same moment.

{reply, timeout, operator cancel, second orchestrator, sibling branch, early event}: 15 pairs, and
each makes sense. A timeout is found by whichever orchestrator is there after the command's time.
A second orchestrator takes over what the first one had in hand, whose lease has run out. A sibling
branch is the first one itself: it makes the call beside the command and reports what came of it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

from outbox_saga.testing.interleaving import Play
from proofs.interleaved.saga_stage import TAKEN_OVER, UNANSWERED, SagaStage

WHO = ("reply", "timeout", "cancel", "second", "branch", "event")
PAIRS = [f"{one} and {other}" for one, other in combinations(WHO, 2)]


def pair(name: str) -> Callable[[SagaStage], Play]:
    """The play of these two."""
    names = name.split(" and ")

    def play(on: SagaStage) -> Play:
        on.fresh(branch_done=not {"branch", "second"}.intersection(names))
        return on.play(**{each: _actor(on, each) for each in names})

    return play


def _actor(on: SagaStage, name: str) -> Callable[[], Any]:
    actors: dict[str, Callable[[], Callable[[], Any]]] = {
        "reply": lambda: on.reply,
        "cancel": lambda: on.cancel,
        "event": lambda: on.event,
        "timeout": lambda: on.goes_on(UNANSWERED),
        "second": lambda: on.goes_on(TAKEN_OVER),
        "branch": lambda: on.branch,
    }
    return actors[name]()
