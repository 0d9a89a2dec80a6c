"""What becomes of an instance when a call succeeds that was made by whoever had it before."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from outbox_saga import Saga, StepContext, nothing_to_undo
from outbox_saga.instances import Entry, SagaState, Status
from outbox_saga.saga.happened import Done, Happened, NotFound, Refused, Resumed, Surroundings
from outbox_saga.saga.progress import came_late, decide, initial

NOW = dt.datetime(2026, 11, 29, tzinfo=dt.UTC)
NO = "sold out"


class Order(BaseModel):
    receipt: str | None = None


async def _act(_: StepContext[Order]) -> Any: ...


def paying(*, idempotent: bool, beside: bool = False) -> Saga[Order]:
    """It pays, and then reserves, or beside that."""
    return (
        Saga("pay", data=Order)
        .step(
            "pay",
            _act,
            compensation=_act,
            external=True,
            idempotent=idempotent,
            query=None if idempotent else _act,
        )
        .step("reserve", _act, compensation=nothing_to_undo, after=[] if beside else ["pay"])
        .check()
    )


def after(definition: Saga[Order], *happened: Happened) -> SagaState:
    """The state after all that, each of it an hour later."""
    state = initial(definition, {"receipt": None})
    for hours, each in enumerate((Resumed(), *happened)):
        around = Surroundings(NOW + dt.timedelta(hours=hours))
        state = decide(definition, state, each, around).state
    return state


def told(entries: tuple[Entry, ...]) -> list[str]:
    return [entry.transition for entry in entries]


def test_a_call_that_was_not_found_is_undone_if_the_saga_has_been_undone_meanwhile() -> None:
    definition = paying(idempotent=False, beside=True)
    ended = after(definition, Resumed(), NotFound("pay", 1), Refused("reserve", "do", 1, NO))
    assert (ended.status, ended.steps["pay"].phase) == ("compensated", "waiting")

    state, entries = came_late(definition, ended, Done("pay", "do", 1, {"receipt": "r1"}), 0)

    assert (state.status, state.steps["pay"].phase) == ("compensating", "done")
    assert told(entries) == ["STEP_COMPLETED", "COMPENSATION_STARTED"]
    assert state.data["receipt"] == "r1"


def test_it_is_undone_though_another_step_of_the_undone_saga_is_stuck() -> None:
    definition = paying(idempotent=False, beside=True)
    ended = after(definition, Resumed(), NotFound("pay", 1), Refused("reserve", "do", 1, NO))
    before: tuple[Status, str] = ("compensating", NO)
    stuck = replace(ended, status="stuck", reason="a person is needed", before=before)

    state, _ = came_late(definition, stuck, Done("pay", "do", 1, {"receipt": "r1"}), 0)

    assert (state.status, state.steps["pay"].phase) == ("compensating", "done")
    assert (state.reason, state.before) == (NO, None)


def test_what_was_done_once_under_one_key_is_not_undone_again() -> None:
    definition = paying(idempotent=True)
    ended = after(
        definition,
        Resumed(),
        Done("pay", "do", 2),
        Refused("reserve", "do", 1, NO),
        Done("pay", "undo", 1),
    )
    assert ended.status == "compensated"

    state, entries = came_late(definition, ended, Done("pay", "do", 1), 0)

    assert (state, told(entries)) == (ended, ["IGNORED"])


def test_a_call_that_a_question_had_found_is_not_undone_again() -> None:
    definition = paying(idempotent=False)
    ended = after(
        definition,
        Done("pay", "do", 1),
        Refused("reserve", "do", 1, NO),
        Done("pay", "undo", 1),
    )
    assert ended.status == "compensated"

    state, entries = came_late(definition, ended, Done("pay", "do", 1), 0)

    assert (state, told(entries)) == (ended, ["IGNORED"])


def test_a_call_that_a_question_had_not_found_is_undone_beside_the_one_that_was_made_again() -> (
    None
):
    definition = paying(idempotent=False)
    ended = after(
        definition,
        Resumed(),
        NotFound("pay", 1),
        Resumed(),
        Done("pay", "do", 2),
        Refused("reserve", "do", 1, NO),
        Done("pay", "undo", 1),
    )
    assert ended.status == "compensated"

    state, _ = came_late(definition, ended, Done("pay", "do", 1), 0)

    assert (state.status, state.steps["pay"].phase) == ("compensating", "done")


def test_a_call_under_a_key_that_a_person_has_replaced_is_not_taken_for_the_new_one() -> None:
    definition = paying(idempotent=True)
    called = after(definition)
    again = called.with_step("pay", generation=1)

    state, entries = came_late(definition, again, Done("pay", "do", 1, {"receipt": "r1"}), 0)

    assert (state, told(entries)) == (again, ["IGNORED"])
