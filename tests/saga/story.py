"""A saga's transitions decided one after the other, each with what its reporter saw on its way."""

from __future__ import annotations

import datetime as dt
from typing import Any

from pydantic import BaseModel

from outbox_saga import Saga
from outbox_saga.instances import SagaState
from outbox_saga.saga.happened import (
    Decision,
    Done,
    Errored,
    Flight,
    Happened,
    Query,
    Refused,
    Resumed,
    Surroundings,
    ToDo,
)
from outbox_saga.saga.interventions import Intervention, intervene
from outbox_saga.saga.progress import arrived, came_late, decide, initial, replied

NOW = dt.datetime(2026, 11, 29, tzinfo=dt.UTC)


class Data(BaseModel):
    """As little as a saga may have."""

    n: int = 0
    receipt: str | None = None


async def act(_: Any) -> None:
    """A step of which only the name matters; nobody calls it."""


class Story:
    """One instance, from its start; nothing of it is carried out."""

    def __init__(self, saga: Saga[Data]) -> None:
        self.saga = saga.check()
        self.state: SagaState = initial(saga, {"n": 0, "receipt": None})
        self.now = NOW
        self.stopping = False

    def goes_on(self, happened: Happened, *seen: Flight) -> Decision:
        """What is decided when this has happened, and these are seen on their way."""
        around = Surroundings(self.now, frozenset(seen), 30.0, "seed", NOW, stopping=self.stopping)
        decision = decide(self.saga, self.state, happened, around)
        self.state = decision.state
        return decision

    def helped(self, kind: Any, step: str | None, *, new_key: bool = False) -> Decision:
        """What is decided when an operator has done this about that step."""
        action = Intervention(kind, step, "ada", new_key=new_key)
        self.state, _ = intervene(self.saga, self.state, action)
        return self.goes_on(Resumed())

    def ended_late(self, happened: Done, generation: int = 0) -> Decision:
        """What is decided when a call has succeeded of whoever had the instance before."""
        self.state, _ = came_late(self.saga, self.state, happened, generation)
        return self.goes_on(Resumed())

    def hears(self, step: str, **brought: Any) -> Decision:
        """What is decided when the event of this step has come."""
        self.state, _ = arrived(self.saga, self.state, step, brought)
        return self.goes_on(Resumed())

    def is_answered(self, happened: Done | Refused, generation: int = 0) -> Decision:
        """What is decided when a participant's answer has come."""
        around = Surroundings(self.now, started_at=NOW)
        self.state, _ = replied(self.saga, self.state, happened, generation, around)
        return self.goes_on(Resumed())

    def goes_on_until_stuck(self, step: str) -> list[ToDo]:
        """All that is done about a step of which nobody gets to know what came of it."""
        done: list[ToDo] = []
        while self.state.status != "stuck":
            self.now += dt.timedelta(hours=1)
            done += (todo := self.goes_on(Resumed()).todo)
            for each in todo:
                attempt = each.attempt + isinstance(each, Query)
                self.goes_on(Errored(step, "do", attempt, "no answer", unknown=True))
        return done

    def phase(self, step: str) -> str:
        """Of this step now."""
        return self.state.steps[step].phase


def ignored(decision: Decision) -> bool:
    """Whether what happened changed nothing."""
    return any(entry.transition == "IGNORED" for entry in decision.entries)
