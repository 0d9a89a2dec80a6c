"""`decide` when a process died with the instance in hand: again and again, and still an end."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from pydantic import BaseModel

from outbox_saga import Retry, Saga
from outbox_saga.instances import Entry, SagaState
from outbox_saga.saga.calls import SETTLING
from outbox_saga.saga.happened import (
    Call,
    Decision,
    Done,
    NotFound,
    Query,
    Refused,
    Resumed,
    Run,
    Surroundings,
)
from outbox_saga.saga.outcomes import FATAL_DEATHS
from outbox_saga.saga.progress import decide, initial

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DEATH = "its process died or stood still {} times while carrying it out"
LAST = "its process died or stood still at the last one"


class Data(BaseModel):
    n: int = 0


async def act(step: Any) -> None: ...


TWICE = Retry(max_attempts=2)


def _saga(**first: Any) -> Saga[Data]:
    return (
        Saga("deadly", data=Data)
        .step("first", act, compensation=act, retry=TWICE, compensation_retry=TWICE, **first)
        .step("last", act, compensation=act, retry=TWICE)
        .check()
    )


def _around(now: dt.datetime = START) -> Surroundings:
    return Surroundings(now, frozenset(), 30.0, "seed")


def _at_its_undo(saga: Saga[Data]) -> SagaState:
    """The first step is done, the last one refused; now the first is undone."""
    state = initial(saga, {"n": 0})
    state = decide(saga, state, Resumed(), _around()).state
    state = decide(saga, state, Done("first", "do", 1), _around()).state
    return decide(saga, state, Refused("last", "do", 1, "no"), _around()).state


def _until_it_ends(saga: Saga[Data], state: SagaState) -> tuple[SagaState, list[Entry], int]:
    """Whoever takes it up dies of what is to be done; the end, the history, and the deaths."""
    entries: list[Entry] = []
    now, deaths = START, 0
    decision = Decision(state, (), (), now)
    for _ in range(200):
        if decision.due is None:
            return decision.state, entries, deaths
        died = bool(decision.todo)
        deaths += died
        now = max(now + dt.timedelta(seconds=30), decision.due)
        happened = Resumed(deaths) if died else Resumed()
        decision = decide(saga, decision.state, happened, _around(now))
        entries += decision.entries
    raise AssertionError(f"it does not end: {decision.state}")


def test_a_local_step_is_charged_no_attempt_for_deaths_that_another_saga_may_have_caused() -> None:
    saga = _saga()
    state = initial(saga, {"n": 0})

    decision = decide(saga, state, Resumed(FATAL_DEATHS - 1), _around())

    assert decision.state == state
    assert decision.todo == (Run("first", "do", 1),)


def test_at_the_tenth_death_a_local_step_is_charged_an_attempt_and_waits_as_after_an_error() -> (
    None
):
    saga = _saga()

    decision = decide(saga, initial(saga, {"n": 0}), Resumed(FATAL_DEATHS), _around())

    assert decision.todo == ()
    first = decision.state.steps["first"]
    assert (first.phase, first.attempts, first.error) == ("waiting", 1, DEATH.format(10))
    assert first.due is not None
    assert first.due > START
    assert decision.entries == (
        Entry("STEP_FAILED", "first", 1, DEATH.format(10) + " (will be tried again)", code="died"),
    )
    again = decide(saga, decision.state, Resumed(), _around(first.due))
    assert again.todo == (Run("first", "do", 2),)


def test_a_local_step_whose_process_dies_every_time_fails_and_the_saga_is_undone() -> None:
    saga = _saga()
    state, entries, deaths = _until_it_ends(saga, initial(saga, {"n": 0}))

    assert deaths == FATAL_DEATHS + 1
    assert (state.status, state.reason) == (
        "compensated",
        f"first: gave up after 2 attempts: {DEATH.format(11)}",
    )
    assert [e.transition for e in entries] == [
        "STEP_FAILED",
        "STEP_FAILED",
        "COMPENSATION_STARTED",
        "COMPENSATED",
    ]


def test_a_local_step_after_the_pivot_whose_process_dies_every_time_is_stuck() -> None:
    saga = (
        Saga("pivotal", data=Data)
        .step("pay", act, pivot=True)
        .step("ship", act, retry=TWICE)
        .check()
    )
    state = decide(saga, initial(saga, {"n": 0}), Done("pay", "do", 1), _around()).state

    state, entries, _ = _until_it_ends(saga, state)

    assert (state.status, state.reason) == (
        "stuck",
        f"ship: after the pivot: gave up after 2 attempts: {DEATH.format(11)}",
    )
    assert [e.transition for e in entries] == ["STEP_FAILED", "STEP_FAILED", "FAILED"]


def test_a_local_compensation_whose_process_dies_every_time_is_stuck() -> None:
    saga = _saga()

    state, entries, deaths = _until_it_ends(saga, _at_its_undo(saga))

    assert deaths == FATAL_DEATHS + 1
    assert (state.status, state.reason) == (
        "stuck",
        f"first: gave up after 2 attempts: {DEATH.format(11)}",
    )
    assert [e.transition for e in entries] == [
        "COMPENSATION_FAILED",
        "COMPENSATION_FAILED",
        "FAILED",
    ]


def test_each_of_several_steps_that_would_run_now_is_charged() -> None:
    saga = (
        Saga("parallel", data=Data)
        .step("left", act, compensation=act, after=(), retry=TWICE)
        .step("right", act, compensation=act, after=(), retry=Retry(max_attempts=1))
        .check()
    )

    decision = decide(saga, initial(saga, {"n": 0}), Resumed(FATAL_DEATHS), _around())

    assert decision.state.status == "compensated"
    assert {n: s.attempts for n, s in decision.state.steps.items()} == {"left": 1, "right": 1}
    assert decision.todo == ()


def test_a_call_whose_process_dies_every_time_is_repeated_as_often_as_one_without_answer() -> None:
    saga = _saga(external=True, idempotent=True)
    most = TWICE.max_attempts + SETTLING.max_attempts - 1

    state, entries, deaths = _until_it_ends(saga, initial(saga, {"n": 0}))

    assert deaths == most
    assert (state.status, state.reason) == (
        "stuck",
        f"first: outcome unknown after {most} attempts: {LAST}",
    )
    assert [e.transition for e in entries] == ["RUNNING"] * most + ["STEP_FAILED", "FAILED"]
    assert [e.attempt for e in entries[:most]] == list(range(1, most + 1))


def test_a_call_that_ends_so_keeps_the_error_that_the_last_answer_gave() -> None:
    saga = _saga(external=True, idempotent=True)
    most = TWICE.max_attempts + SETTLING.max_attempts - 1
    state = decide(saga, initial(saga, {"n": 0}), Resumed(), _around()).state
    state = state.with_step("first", attempts=most, unknown=True, error="no answer within 5 s")

    decision = decide(saga, state, Resumed(1), _around())

    assert decision.state.reason == (
        f"first: outcome unknown after {most} attempts: {LAST} (before: no answer within 5 s)"
    )


def test_a_call_whose_policy_became_shorter_ends_with_the_error_that_was_reported() -> None:
    saga = _saga(external=True, idempotent=True)
    before = _at_its_undo(saga).with_step("first", undo_attempts=9, due=START, error="busy")

    decision = decide(saga, before, Resumed(), _around())

    assert decision.state.reason == "first: outcome unknown after 9 attempts: busy"


def test_a_settlement_whose_process_dies_every_time_ends_while_the_saga_is_being_undone() -> None:
    saga = (
        Saga("beside", data=Data)
        .step("call", act, compensation=act, external=True, idempotent=True, after=(), retry=TWICE)
        .step("other", act, compensation=act, after=())
        .check()
    )
    state = decide(saga, initial(saga, {"n": 0}), Done("other", "do", 1), _around()).state
    state = state.with_step("other", phase="failed", error="no")
    state = SagaState("compensating", state.data, state.steps, "other: no")

    state, _, _ = _until_it_ends(saga, state)

    assert state.status == "stuck"
    assert state.steps["call"].phase == "stuck"


def test_a_compensating_call_whose_process_dies_every_time_is_stuck() -> None:
    saga = _saga(external=True, idempotent=True)
    before = _at_its_undo(saga)
    assert before.steps["first"].undo_attempts == 1

    state, entries, _ = _until_it_ends(saga, before)

    assert (state.status, state.reason) == (
        "stuck",
        f"first: outcome unknown after 2 attempts: {LAST}",
    )
    assert [e.transition for e in entries] == [
        "COMPENSATING_STEP",
        "COMPENSATION_FAILED",
        "FAILED",
    ]


def test_a_question_whose_process_dies_every_time_is_charged_and_ends_stuck() -> None:
    saga = _saga(external=True, query=act)
    most = TWICE.max_attempts + SETTLING.max_attempts - 1

    state, entries, deaths = _until_it_ends(saga, initial(saga, {"n": 0}))

    # the call's own death, those without a charge, and one for each charge
    assert deaths <= FATAL_DEATHS + most
    assert (state.status, state.reason) == (
        "stuck",
        f"first: outcome unknown after {most} attempts: {DEATH.format(deaths)}",
    )
    assert {e.transition for e in entries} == {"RUNNING", "STEP_FAILED", "FAILED"}


def test_a_call_with_a_query_whose_process_dies_every_time_ends_after_its_attempts() -> None:
    saga = _saga(external=True, query=act)
    decision = decide(saga, initial(saga, {"n": 0}), Resumed(), _around())
    calls, now = 0, START
    while (due := decision.due) is not None:
        if any(isinstance(todo, Call) for todo in decision.todo):
            calls += 1  # and the process dies
            now += dt.timedelta(seconds=120)
            decision = decide(saga, decision.state, Resumed(1), _around(now))
        elif decision.todo:
            (asked,) = decision.todo
            assert isinstance(asked, Query)
            decision = decide(saga, decision.state, NotFound("first", asked.attempt), _around(now))
        else:
            now = max(now, due)
            decision = decide(saga, decision.state, Resumed(), _around(now))

    assert calls == 2
    assert decision.state.status == "compensated"


@pytest.mark.parametrize("deaths", [0, FATAL_DEATHS])
def test_deaths_are_no_reason_to_run_what_is_not_due(deaths: int) -> None:
    saga = _saga()
    later = START + dt.timedelta(seconds=9)
    state = initial(saga, {"n": 0}).with_step("first", due=later)

    decision = decide(saga, state, Resumed(deaths), _around())

    assert (decision.state, decision.todo, decision.due) == (state, (), later)
