"""A call that one branch has just decided, and that begins a moment later, is taken by no other
branch for one that nobody answered.

Its intent is committed, and who has committed it is on the way back to who makes calls. A branch
that ends in that moment finds the intent in the row, and nobody who is calling.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from typing import Any

import pytest
from pydantic import BaseModel

from outbox_saga import Failure, NotDone, Retry, Saga, Service, nothing_to_undo
from outbox_saga.ids import new_id
from outbox_saga.instances import Instance
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.happened import Call, Flight, Query, Run, flight_of
from outbox_saga.saga.operating import SagaOperations
from outbox_saga.saga.progress import initial
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database

PATIENCE = 20.0
ONCE = Retry(max_attempts=1)
OUTSIDE: Any = {"external": True, "idempotent": True, "compensation_retry": ONCE}
BESIDE: Flight = ("beside", "do")


class Order(BaseModel):
    n: int = 0


def act(_: Any) -> None: ...


class Meeting:
    """`first` has committed, and is not back before `beside` has decided, who ends only then."""

    def __init__(self, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.committed, self.decided = threading.Event(), threading.Event()
        advances = Hand.advance

        def advance(hand: Hand, instance: Instance, *, leased: bool) -> None:
            first, beside = (instance.state.steps[name].phase for name in ("first", "beside"))
            if (first, beside == phase) == (phase, False) and not self.committed.is_set():
                self.committed.set()
                assert self.decided.wait(PATIENCE)
            advances(hand, instance, leased=leased)
            if beside == phase:
                self.decided.set()

        monkeypatch.setattr(Hand, "advance", advance)

    def beside(self, _: Any) -> None:
        """In a thread of its own."""
        assert self.committed.wait(PATIENCE)


async def carried_on(url: str, saga: Saga[Order]) -> tuple[Instance, list[str]]:
    """One instance, as far as it goes by itself now, and its history."""
    service = Service("house", database=url, sagas=[saga], poll=0.02)
    with service.database.begin() as connection:
        upgrade(connection)
    async with service.unit_of_work() as uow:
        id_ = saga.start(uow, Order(), business_key="order:1")
    orchestrator = service.orchestrator()
    async with asyncio.timeout(2 * PATIENCE):
        await orchestrator.run_once()
    orchestrator.close()
    seen, history = await SagaOperations(service.database).show(id_)
    await service.close()
    entries = [each.entry for each in history if each.entry.step == "card"]
    return seen, [f"{e.transition} {e.attempt}" for e in entries]


# SQLite has one writer: two local steps cannot overlap
@pytest.mark.databases("postgres18", "mariadb")
async def test_a_call_that_was_not_made_yet_is_not_taken_for_one_whose_outcome_nobody_knows(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = Meeting("done", monkeypatch)

    def not_done(_: Any) -> None:
        raise NotDone("the line is dead")

    saga = Saga("s", data=Order).step("first", act, compensation=act)
    saga.step("beside", meeting.beside, compensation=nothing_to_undo, after=())
    saga.step("card", not_done, compensation=act, after="first", retry=ONCE, **OUTSIDE)
    ended, history = await carried_on(database.url, saga)
    assert meeting.decided.is_set()
    assert history == ["RUNNING 1", "STEP_FAILED 1"]
    assert (ended.state.status, ended.state.steps["card"].attempts) == ("compensated", 1)


# SQLite has one writer: two local steps cannot overlap
@pytest.mark.databases("postgres18", "mariadb")
async def test_an_undoing_that_was_not_called_yet_has_not_used_up_its_only_attempt(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = Meeting("undone", monkeypatch)
    undone: list[int] = []

    def undo(step: Any) -> None:
        undone.append(step.attempt)

    def refuse(_: Any) -> Any:
        return Failure("no")

    saga = Saga("s", data=Order).step("card", act, compensation=undo, **OUTSIDE)
    saga.step("first", act, compensation=act, after="card")
    saga.step("beside", act, compensation=meeting.beside, after=())
    saga.step("no", refuse, compensation=nothing_to_undo, after=("first", "beside"))
    ended, history = await carried_on(database.url, saga)
    assert meeting.decided.is_set()
    assert history[-2:] == ["COMPENSATING_STEP 1", "STEP_COMPENSATED 1"]
    assert (ended.state.status, undone) == ("compensated", [1])


@pytest.mark.parametrize("todo", [Call("card", "do", 1), Query("card", 1)])
def test_only_what_the_row_has_the_intent_of_is_on_its_way(todo: Call | Query) -> None:
    saga = Saga("s", data=Order).step("card", act, compensation=act, query=act, **OUTSIDE)
    saga.step("beside", act, compensation=act, after=())
    before = initial(saga, {"n": 0})
    intent = before.with_step("card", phase="calling", attempts=1)
    seen = Instance(1, "s", 1, saga.shape, "s", None, "", 0, 1, before)
    now = dt.datetime(2026, 11, 29, tzinfo=dt.UTC)
    hand = Hand(saga, seen, new_id(), now, 0.0, 30.0, in_flight={BESIDE})
    card = flight_of(todo)

    hand.will_begin(BESIDE, [todo, Run("first", "do", 1)])
    assert hand.deciding(intent, BESIDE).in_flight == {card}
    assert hand.deciding(before, None).in_flight == {BESIDE}  # it was not committed, or not yet
    hand.will_begin(BESIDE, [])  # it was rolled back, and is decided anew
    assert hand.deciding(intent, None).in_flight == {BESIDE}

    hand.will_begin(BESIDE, [todo])
    assert hand.begins(todo)
    assert not hand.begins(todo)
    hand.in_flight.discard(card)  # it has ended
    assert hand.deciding(intent, None).in_flight == {BESIDE}
