"""Pure: each effect has a key of its own, and so has each undoing; nothing that is there is taken
for nothing.
"""

from __future__ import annotations

import datetime as dt

import pytest

from outbox_saga import Command, Event, Retry, Saga, nothing_to_undo
from outbox_saga.errors import ActionRefused
from outbox_saga.saga.happened import (
    Call,
    Done,
    Errored,
    NotFound,
    Query,
    Refused,
    Resumed,
    Run,
)
from tests.saga.story import Data, Story, act


class Ship(Command, topic="shipping"):
    n: int


class Unship(Command, topic="shipping"):
    n: int
    receipt: str | None = None


class Paid(Event, topic="payments"):
    n: int


def later(story: Story, seconds: float = 3600.0) -> Story:
    story.now += dt.timedelta(seconds=seconds)
    return story


# --- two effects of one call ---------------------------------------------------------------------


def called_twice() -> Story:
    """The other side was believed when it said that the first call had not arrived."""
    saga = Saga("s", data=Data).step("card", act, compensation=act, external=True, query=act)
    saga.step("next", act, compensation=nothing_to_undo)
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Errored("card", "do", 1, "no answer", unknown=True))
    later(story).goes_on(Resumed())
    story.goes_on(NotFound("card", 1))
    later(story).goes_on(Resumed())
    story.goes_on(Done("card", "do", 2, {"receipt": "second"}))
    return story


def test_the_undoing_of_a_second_effect_is_not_taken_for_that_of_the_first() -> None:
    story = called_twice()
    story.goes_on(Refused("next", "do", 1, "no"))
    first = story.state.steps["card"].key_number("undo")
    story.goes_on(Done("card", "undo", 1))
    assert story.state.status == "compensated"

    again = story.ended_late(Done("card", "do", 1, {"receipt": "first"}))
    assert again.todo == (Call("card", "undo", 1),)
    assert story.state.steps["card"].key_number("undo") != first
    assert story.state.steps["card"].key_number("do") == 0


def test_an_attempt_from_before_an_operators_retry_is_not_taken_for_one_from_after_it() -> None:
    saga = Saga("s", data=Data).step("card", act, compensation=act, external=True, query=act)
    saga.step("next", act, compensation=nothing_to_undo)
    story = Story(saga)
    story.goes_on_until_stuck("card")
    asked = story.helped("retry", "card")
    assert [type(each) for each in asked.todo] == [Query]
    story.goes_on(NotFound("card", 0))
    (call,) = later(story).goes_on(Resumed()).todo
    assert isinstance(call, Call)
    story.goes_on(Done("card", "do", call.attempt, {"receipt": "new"}))
    story.goes_on(Refused("next", "do", 1, "no"))
    story.goes_on(Done("card", "undo", 1))
    assert story.state.status == "compensated"

    assert story.ended_late(Done("card", "do", 1)).todo == (Call("card", "undo", 1),)


def test_a_retried_step_has_all_its_attempts_again() -> None:
    saga = Saga("s", data=Data).step("first", act, pivot=True)
    saga.step("card", act, external=True, idempotent=True, retry=Retry(max_attempts=2))
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Done("first", "do", 1))
    for _ in range(2):
        begun = story.state.steps["card"].attempts
        story.goes_on(Errored("card", "do", begun, "closed", code="not_done"))
        later(story).goes_on(Resumed())
        story.goes_on(Errored("card", "do", begun + 1, "closed", code="not_done"))
        assert story.state.status == "stuck"
        story.helped("retry", "card")
    assert story.state.steps["card"].attempts == 5


# --- stuck ---------------------------------------------------------------------------------------


def test_a_late_success_is_what_was_waited_for_where_nobody_knew() -> None:
    saga = Saga("s", data=Data)
    saga.step("card", act, compensation=act, external=True, idempotent=True)
    story = Story(saga)
    story.goes_on_until_stuck("card")
    story.ended_late(Done("card", "do", 1, {"receipt": "r"}))
    assert (story.state.status, story.state.data["receipt"]) == ("completed", "r")


def test_who_answers_questions_is_asked_before_a_person_is() -> None:
    saga = Saga("s", data=Data)
    saga.step("card", act, compensation=act, external=True, idempotent=True, query=act)
    done = Story(saga).goes_on_until_stuck("card")
    kinds = [type(each) for each in done]
    assert (kinds[:26], kinds[26:]) == ([Call] * 26, [Query] * 3)


def test_a_no_to_the_question_ends_it_once_the_last_call_can_no_longer_be_on_its_way() -> None:
    saga = Saga("s", data=Data)
    saga.step("card", act, compensation=act, external=True, idempotent=True, query=act)
    story, asked_at = Story(saga), None
    (todo,) = story.goes_on(Resumed()).todo
    while isinstance(todo, Call):
        waits = story.goes_on(Errored("card", "do", todo.attempt, "no answer", unknown=True))
        asked_at = waits.due
        (todo,) = later(story).goes_on(Resumed()).todo
    assert asked_at is not None
    assert asked_at - (story.now - dt.timedelta(hours=1)) >= dt.timedelta(seconds=30 + 30)
    story.goes_on(NotFound("card", todo.attempt))
    assert story.state.status == "compensated"


def test_a_pivot_is_not_left_out() -> None:
    saga = Saga("s", data=Data).step("first", act, compensation=act)
    saga.step("card", act, external=True, idempotent=True, pivot=True)
    story = Story(saga.step("last", act))
    story.goes_on(Resumed())
    story.goes_on(Done("first", "do", 1))
    story.goes_on_until_stuck("card")
    with pytest.raises(ActionRefused, match="no point of no return"):
        story.helped("skip", "card")
    story.helped("cancel", None)
    story.helped("skip", "card")
    assert story.goes_on(Done("first", "undo", 1)).state.status == "compensated"


def test_what_can_be_tried_again_is_though_something_else_cannot() -> None:
    saga = Saga("s", data=Data).step("a", act, compensation=act, after=())
    saga.step("pivot", act, external=True, query=act, pivot=True, after=())
    saga.step("last", act, compensation=nothing_to_undo, after="a", retry=Retry(max_attempts=2))
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Done("a", "do", 1), ("pivot", "do"))
    story.goes_on(Errored("pivot", "do", 1, "no", code="not_done"))
    for attempt in (2, 3):
        later(story).goes_on(Resumed())
        story.goes_on(Errored("pivot", "do", attempt, "no", code="not_done"))
    # nothing of the pivot was done, as far as anybody knows; and then it was, to be undone
    story.state = story.state.with_step("last", phase="failed")
    story.goes_on(Refused("a", "undo", 1, "cannot"))
    assert (story.state.status, story.phase("a")) == ("stuck", "stuck")
    story.state = story.state.with_step("pivot", phase="stuck", stuck="undo")
    resumed = story.helped("resume", None)
    assert resumed.todo == (Run("a", "undo", 1),)
    assert story.phase("pivot") == "stuck"


def test_a_definite_no_beyond_the_pivot_may_be_asked_again_under_a_new_key() -> None:
    saga = Saga("s", data=Data).step("first", act, pivot=True)
    story = Story(saga.step("card", act, external=True, idempotent=True))
    story.goes_on(Resumed())
    story.goes_on(Done("first", "do", 1))
    story.goes_on(Errored("card", "do", 1, "no answer", unknown=True))
    later(story).goes_on(Resumed())
    story.goes_on(Refused("card", "do", 2, "no such account"))
    assert story.helped("retry", "card", new_key=True).todo == (Call("card", "do", 3),)


def test_a_no_that_comes_again_is_told_once() -> None:
    saga = Saga("s", data=Data).step("first", act, pivot=True)
    story = Story(saga.step("ship", Ship, timeout=60, retry=Retry(max_attempts=2)))
    story.goes_on(Resumed())
    story.goes_on(Done("first", "do", 1))
    for _ in range(2):
        later(story).goes_on(Resumed())
    told = [
        entry.transition
        for attempt in (1, 2)
        for entry in story.is_answered(Refused("ship", "do", attempt, "no")).entries
    ]
    assert told.count("FAILED") == 1


# --- commands ------------------------------------------------------------------------------------


def shipped_and_refused_to_undo() -> Story:
    saga = Saga("s", data=Data)
    saga.step(
        "ship", Ship, compensation=Unship, timeout=60, compensation_retry=Retry(max_attempts=1)
    )
    story = Story(saga.step("next", act, compensation=nothing_to_undo))
    story.goes_on(Resumed())
    story.is_answered(Done("ship", "do", 1))
    story.goes_on(Refused("next", "do", 1, "no"))
    story.is_answered(Refused("ship", "undo", 1, "closed"))
    assert story.state.status == "stuck"
    return story


def test_an_undoing_by_who_carried_it_out_stays_under_the_key_it_was_carried_out_under() -> None:
    story = shipped_and_refused_to_undo()
    with pytest.raises(ActionRefused, match="under its own key"):
        story.helped("retry", "ship", new_key=True)
    (send,) = story.helped("retry", "ship").sends
    assert (send.direction, send.generation) == ("undo", 0)


def test_a_command_says_under_one_key_what_it_said_before() -> None:
    story = shipped_and_refused_to_undo()
    story.state = story.state.with_step("next", phase="failed")
    data = dict(story.state.data) | {"receipt": "which came since"}
    object.__setattr__(story.state, "data", data)
    (send,) = story.helped("retry", "ship").sends
    assert send.fields == {"n": 0, "receipt": None}


# --- beside a pivot that was carried out late ----------------------------------------------------


def beside_a_late_pivot() -> Story:
    """`ship` is done, `gift` has failed, and nobody knows what came of the pivot."""
    saga = Saga("s", data=Data).step("ship", Ship, compensation=Unship, timeout=60, after=())
    saga.step("pay", Ship, pivot=True, timeout=60, after=(), retry=Retry(max_attempts=2))
    saga.step("gift", act, compensation=nothing_to_undo, after="ship", retry=Retry(max_attempts=2))
    story = Story(saga)
    story.goes_on(Resumed())
    story.is_answered(Done("ship", "do", 1))
    story.goes_on(Refused("gift", "do", 1, "no"))
    while story.phase("pay") == "calling":
        later(story).goes_on(Resumed())
    return story


def test_what_was_undone_and_has_to_be_there_is_done_under_a_new_key() -> None:
    story = beside_a_late_pivot()
    story.is_answered(Done("ship", "undo", 1))
    assert story.phase("ship") == "undone"
    story.is_answered(Done("pay", "do", 1))
    story.helped("skip", "gift")
    assert (story.state.status, story.phase("ship")) == ("stuck", "stuck")

    (send,) = story.helped("resume", None).sends
    assert (send.step, send.direction, send.generation) == ("ship", "do", 1)
    assert story.is_answered(Done("ship", "do", 2), 1).state.status == "completed"


def test_what_may_have_been_undone_is_done_again_only_when_a_person_says_that_it_was() -> None:
    story = beside_a_late_pivot()
    assert story.phase("ship") == "undoing"  # and no answer has come
    story.is_answered(Done("pay", "do", 1))
    story.helped("skip", "gift")
    assert (story.state.status, story.phase("ship")) == ("stuck", "stuck")

    with pytest.raises(ActionRefused, match="nobody knows whether step ship has been undone"):
        story.helped("retry", "ship")
    with pytest.raises(ActionRefused, match="mark it as done if its effect is there"):
        story.helped("resume", None)
    (send,) = story.helped("retry", "ship", new_key=True).sends
    assert (send.direction, send.generation) == ("do", 1)


def test_an_event_in_time_is_kept_while_the_pivot_may_still_be_carried_out() -> None:
    saga = Saga("s", data=Data)
    saga.step("pivot", act, external=True, idempotent=True, pivot=True, after=())
    saga.wait_for("paid", Paid, timeout=36_000, after=())
    saga.step("other", act, compensation=nothing_to_undo, retry=Retry(max_attempts=2), after=())
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Refused("other", "do", 1, "no"), ("pivot", "do"))
    assert (story.state.status, story.phase("paid")) == ("compensating", "listening")
    story.hears("paid")
    story.goes_on(Done("pivot", "do", 1))
    assert story.phase("paid") == "done"


# --- what a decision says of what is beside it ---------------------------------------------------


def test_a_process_that_stops_begins_nothing_and_leaves_nothing_for_stuck() -> None:
    saga = Saga("s", data=Data).step("card", act, compensation=act, external=True, idempotent=True)
    story = Story(saga.step("next", act, compensation=nothing_to_undo))
    story.stopping = True
    left = story.goes_on(Resumed())
    assert (left.todo, left.due, left.busy, story.state.status) == (
        (),
        story.now,
        False,
        "running",
    )


def test_a_decision_says_when_something_beside_what_is_carried_out_is_due() -> None:
    saga = Saga("s", data=Data, deadline=500)
    saga.step("slow", act, compensation=nothing_to_undo, external=True, query=act, after=())
    saga.timer("pause", 20, after=())
    story = Story(saga)
    decision = story.goes_on(Resumed())
    assert decision.busy
    assert decision.look_at == story.now + dt.timedelta(seconds=20)
    later(story, 20.0)
    # the question about a call that is being made is no matter of its time
    assert story.goes_on(Resumed(), ("slow", "do")).look_at == story.now + dt.timedelta(
        seconds=480
    )
