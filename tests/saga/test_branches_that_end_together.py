"""Two branches of one instance that end at the same moment in one process."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from outbox_saga import Saga, Service, StepContext, nothing_to_undo
from outbox_saga.ids import new_id
from outbox_saga.instances import Instance
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.happened import Decision, Happened, Query, Run, ToDo
from outbox_saga.saga.progress import initial

ASKS = Query("pay", 1)
NOW = dt.datetime(2026, 11, 29, tzinfo=dt.UTC)


class Order(BaseModel):
    receipt: str | None = None


async def _act(_: StepContext[Order]) -> Any: ...


class BothEnd:
    """Execution in which the branch that commits first takes a breaker's probe for a question."""

    def __init__(self) -> None:
        self.asked = 0

    async def resume(self, hand: Hand, happened: Happened) -> Decision:
        todo: tuple[ToDo, ...] = (Run("one", "do", 1), Run("two", "do", 1))
        return Decision(hand.instance.state, (), todo, NOW, busy=True)

    async def carry_out(self, hand: Hand, todo: ToDo) -> Decision:
        if todo == ASKS:
            self.asked += 1
            return Decision(hand.instance.state, (), (), NOW)
        first = hand.instance.revision == 0  # the other one finds the probe on its way
        state = replace(hand.instance.state)
        moved = replace(hand.instance, revision=hand.instance.revision + 1, state=state)
        hand.advance(moved, leased=first)
        return Decision(state, (), (ASKS,) if first else (), NOW, busy=first)


async def test_the_question_that_has_the_probe_is_asked_whoever_committed_last(
    tmp_path: Path,
) -> None:
    saga = Saga("pay", data=Order)
    for name in ("one", "two"):
        saga.step(name, _act, compensation=nothing_to_undo, after=[])
    saga.step(
        "pay", _act, compensation=_act, external=True, query=_act, breaker="psp", after=[]
    ).check()
    service = Service("payer", database=f"sqlite:///{tmp_path}/none.db", sagas=[saga])
    orchestrator = service.orchestrator()
    both: Any = BothEnd()
    orchestrator._carrying._execution = both
    instance = Instance(
        new_id(), "pay", 1, saga.shape, "payer", None, "", 0, 1, initial(saga, {"receipt": None})
    )
    await orchestrator._drive(Hand(saga, instance, orchestrator.owner, NOW, 0.0, 30.0))
    orchestrator.close()
    assert both.asked == 1
