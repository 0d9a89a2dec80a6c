"""A saga's transitions decided one after the other, each with what its reporter saw on its way."""

from __future__ import annotations

import datetime as dt
from typing import Any

from pydantic import BaseModel

from outbox_saga import Saga
from outbox_saga.instances import SagaState
from outbox_saga.saga.happened import Decision, Flight, Happened, Resumed, Surroundings
from outbox_saga.saga.interventions import Intervention, intervene
from outbox_saga.saga.progress import decide, initial

NOW = dt.datetime(2026, 11, 29, tzinfo=dt.UTC)


class Data(BaseModel):
    """As little as a saga may have."""

    n: int = 0


async def act(_: Any) -> None:
    """A step of which only the name matters; nobody calls it."""


class Story:
    """One instance, from its start; nothing of it is carried out."""

    def __init__(self, saga: Saga[Data]) -> None:
        self.saga = saga.check()
        self.state: SagaState = initial(saga, {"n": 0})
        self.now = NOW

    def goes_on(self, happened: Happened, *seen: Flight) -> Decision:
        """What is decided when this has happened, and these are seen on their way."""
        around = Surroundings(self.now, frozenset(seen), 30.0, "seed", NOW)
        decision = decide(self.saga, self.state, happened, around)
        self.state = decision.state
        return decision

    def helped(self, kind: Any, step: str) -> Decision:
        """What is decided when an operator has done this about that step."""
        self.state, _ = intervene(self.saga, self.state, Intervention(kind, step, "ada"))
        return self.goes_on(Resumed())

    def phase(self, step: str) -> str:
        """Of this step now."""
        return self.state.steps[step].phase


def ignored(decision: Decision) -> bool:
    """Whether what happened changed nothing."""
    return any(entry.transition == "IGNORED" for entry in decision.entries)
