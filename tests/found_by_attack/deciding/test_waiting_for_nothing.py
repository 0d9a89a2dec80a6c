"""A moment that has come is no moment to wait for, if the step cannot be undone yet.

`first` waits for its next undoing when `second`, which depends on it, turns out to be done. From
then on the time of `first` says nothing: `second` is undone before.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from outbox_saga import (
    Command,
    Failure,
    Retry,
    Saga,
    Service,
    StepContext,
    local,
    nothing_to_undo,
)
from outbox_saga.queries import sagas
from outbox_saga.saga.hand import Hand
from outbox_saga.saga.happened import (
    Done,
    Errored,
    Flight,
    Refused,
    Resumed,
    Run,
    Surroundings,
)
from outbox_saga_migrations import upgrade
from tests.fixtures.databases import Database
from tests.saga.story import Data, Story, act

PATIENCE = 20.0


class Ship(Command, topic="shipping"):
    n: int


@pytest.fixture
def story() -> Story:
    """`first` could not be undone at its first attempt, and `second` is done."""
    saga = Saga("s", data=Data).step("first", act, compensation=act)
    saga.step("beside", act, compensation=nothing_to_undo, after=())
    saga.step("second", act, after="first", compensation=act)
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Done("first", "do", 1), ("beside", "do"))
    story.goes_on(Refused("beside", "do", 1, "no"))
    story.goes_on(Errored("first", "undo", 1, "a deadlock"), ("second", "do"))
    decision = story.goes_on(Done("second", "do", 1))
    assert decision.todo == (Run("second", "undo", 1),)
    return story


def test_a_saga_of_which_nothing_can_go_on_is_stuck_and_waits_for_no_moment(story: Story) -> None:
    stuck = story.goes_on(Refused("second", "undo", 1, "cannot"))
    assert (story.state.status, stuck.due) == ("stuck", None)


def test_a_saga_that_waits_is_not_due_before_anything_of_it_is(story: Story) -> None:
    story.now += dt.timedelta(seconds=60)  # the time of `first` has come
    waits = story.goes_on(Errored("second", "undo", 1, "a deadlock"))
    assert (waits.todo, waits.due) == ((), story.state.steps["second"].due)


def test_what_may_not_be_undone_before_a_call_is_settled_is_not_due_before_that() -> None:
    saga = Saga("s", data=Data)
    saga.step(
        "ship",
        Ship,
        compensation=local(act),
        timeout=3600,
        retry=Retry(max_attempts=1),
        after=(),
    )
    saga.step("b", act, compensation=act, after=())
    saga.step("c", act, compensation=nothing_to_undo, after="b")
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Done("b", "do", 1))
    story.now += dt.timedelta(seconds=3601)  # nobody has answered
    story.goes_on(Resumed(), ("c", "do"))
    assert story.phase("ship") == "stuck"
    story.goes_on(Refused("c", "do", 1, "no"))
    story.goes_on(Errored("b", "undo", 1, "a deadlock"))
    story.helped("retry", "ship")
    story.now += dt.timedelta(seconds=60)  # the time of `b` has come
    waits = story.goes_on(Resumed())
    assert (story.phase("ship"), story.phase("b"), waits.todo) == ("calling", "done", ())
    assert waits.due == story.state.steps["ship"].due
    assert waits.due is not None
    assert waits.due > story.now


# --- with everything real ------------------------------------------------------------------------


class Yard:
    """`first` has ended and `second` begun while `beside` reports its no, having looked who is on
    his way just when nobody was (as in tests/saga/test_unseen_branches_at_work.py).
    """

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.second_began, self.first_failed = asyncio.Event(), asyncio.Event()
        quick = Retry(max_attempts=5, initial=0.01, max_delay=0.02)
        saga = Saga("yard", data=Data)
        saga.step("first", act, compensation=self.undo_first, compensation_retry=quick)
        saga.step("beside", self.refuse, compensation=nothing_to_undo, after=())
        self.saga = saga.step("second", self.second, compensation=self.cannot, after="first")
        self.service = Service("yard", database=url, sagas=[self.saga])
        with self.service.database.begin() as connection:
            upgrade(connection)
        looks = Hand.surroundings

        def surroundings(hand: Hand, reporting: Flight | None) -> Surroundings:
            seen = looks(hand, reporting)
            if reporting == ("first", "undo"):
                self.first_failed.set()
            beside = reporting == ("beside", "do")
            return replace(seen, in_flight=frozenset()) if beside else seen

        monkeypatch.setattr(Hand, "surroundings", surroundings)

    async def refuse(self, _: StepContext[Data]) -> Any:
        async with asyncio.timeout(PATIENCE):
            await self.second_began.wait()
        return Failure("no")

    async def second(self, _: StepContext[Data]) -> None:
        self.second_began.set()
        async with asyncio.timeout(PATIENCE):
            await self.first_failed.wait()

    async def undo_first(self, _: StepContext[Data]) -> None:
        raise RuntimeError("once more, please")

    async def cannot(self, _: StepContext[Data]) -> Any:
        return Failure("cannot")


@pytest.mark.databases("postgres18", "mariadb")
async def test_a_saga_that_cannot_go_on_is_not_taken_up_again_and_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = Yard(database.url, monkeypatch)
    async with yard.service.unit_of_work() as uow:
        id_ = yard.saga.start(uow, Data())
    orchestrator = yard.service.orchestrator()
    taken_up = [await orchestrator.run_once() for _ in range(200)]
    orchestrator.close()
    found = await yard.service.database.look(sagas.read, yard.service.database.tables, id_)
    await yard.service.close()
    assert found is not None
    assert (found.state.status, found.state.steps["second"].phase) == ("stuck", "stuck"), (
        f"taken up {sum(taken_up)} times"
    )
