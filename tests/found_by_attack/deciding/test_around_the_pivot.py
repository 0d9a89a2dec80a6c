"""Pure: a pivot that was carried out, or may have been, and what stands beside it."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from outbox_saga import Command, Retry, Saga, nothing_to_undo
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
    Unusable,
)
from tests.saga.story import NOW, Data, Story, act

TWICE = Retry(max_attempts=2, initial=1.0)


class Do(Command, topic="x"):
    n: int
    receipt: str | None = None


class Undo(Command, topic="x"):
    n: int


def passes(story: Story, *seen: tuple[str, str], times: int = 1) -> None:
    """The time of a command, as often, without an answer."""
    for _ in range(times):
        story.now += dt.timedelta(seconds=61)
        story.goes_on(Resumed(), *seen)  # type: ignore[arg-type]


def outside(saga: Saga[Data], name: str, **options: object) -> Saga[Data]:
    """A step that is called, by its key."""
    given: dict[str, object] = {"after": (), "compensation": act, "idempotent": True, **options}
    return saga.step(name, act, external=True, **given)  # type: ignore[arg-type]


# --- a command that nobody answered --------------------------------------------------------------


def reserved_by_nobody() -> Story:
    saga = Saga("s", data=Data)
    saga.step("reserve", Do, compensation=Undo, timeout=60, retry=TWICE, after=())
    outside(saga, "pay", compensation=None, pivot=True)
    story = Story(saga)
    story.goes_on(Resumed())
    passes(story, ("pay", "do"), times=2)
    assert story.state.status == "compensating"
    return story


def test_a_command_that_nobody_answered_does_not_count_as_done_beside_the_pivot() -> None:
    story = reserved_by_nobody()
    story.goes_on(Done("pay", "do", 1))
    assert (story.state.status, story.phase("reserve")) == ("stuck", "stuck")
    assert story.is_answered(Done("reserve", "do", 1)).state.status == "completed"


def test_its_answer_settles_it_though_it_was_to_be_undone_whatever_came_of_it() -> None:
    story = reserved_by_nobody()
    story.is_answered(Refused("reserve", "do", 1, "sold out"))
    assert story.phase("reserve") == "failed"
    story.goes_on(Done("pay", "do", 1))
    assert (story.state.status, story.phase("reserve")) == ("stuck", "stuck")


def paid_by_nobody() -> Story:
    saga = Saga("s", data=Data)
    saga.step("pay", Do, compensation=Undo, pivot=True, timeout=60, retry=TWICE, after=())
    story = Story(outside(saga, "charge"))
    story.goes_on(Resumed())
    passes(story, ("charge", "do"), times=2)
    assert story.state.status == "compensating"
    return story


def test_a_pivot_that_nobody_answered_is_no_point_of_no_return_while_it_is_undone() -> None:
    story = paid_by_nobody()
    story.goes_on(Unusable("charge", 1, "its answer does not fit"))
    assert story.phase("charge") in ("done", "undoing")
    refused = paid_by_nobody()
    refused.goes_on(Refused("charge", "do", 1, "no"))
    assert refused.phase("charge") == "failed"


def test_a_retried_command_leaves_though_its_policy_grants_one_attempt() -> None:
    saga = Saga("s", data=Data)
    saga.step("a", Do, compensation=act, timeout=60, retry=Retry(max_attempts=1))
    story = Story(saga)
    story.goes_on(Resumed())
    passes(story)
    assert story.state.status == "stuck"
    assert story.helped("retry", "a").sends


def test_a_retried_question_leads_to_a_call_though_its_policy_grants_one_attempt() -> None:
    saga = Saga("s", data=Data)
    saga.step("a", act, compensation=act, external=True, query=act, retry=Retry(max_attempts=1))
    story = Story(saga)
    story.goes_on_until_stuck("a")
    (question,) = story.helped("retry", "a").todo
    assert isinstance(question, Query)
    story.goes_on(NotFound("a", question.attempt))
    story.now += dt.timedelta(seconds=100)
    assert [type(each) for each in story.goes_on(Resumed()).todo] == [Call]


def test_a_pivot_that_has_no_undoing_is_sent_as_often_as_it_may_be_before_a_person_is_asked() -> (
    None
):
    saga = Saga("s", data=Data).step("b", act, compensation=act)
    saga.step("pay", Do, pivot=True, timeout=60, retry=Retry(max_attempts=3))
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Done("b", "do", 1))
    story.helped("cancel", None)
    passes(story, times=2)
    assert (story.state.status, story.state.steps["pay"].attempts) == ("compensating", 3)


# --- a pivot of which the answer is of no use ----------------------------------------------------


def paid_and_not_understood() -> Story:
    saga = Saga("s", data=Data, deadline=100).step("other", act, compensation=act, after=())
    outside(saga, "pay", pivot=True)
    saga.step("more", act, compensation=act, after="other", retry=TWICE)
    saga.timer("pause", 500, after="more")
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Done("other", "do", 1, {"n": 7}), ("pay", "do"))
    story.goes_on(Unusable("pay", 1, "its answer does not fit"), ("more", "do"))
    return story


def test_it_is_the_point_of_no_return_all_the_same() -> None:
    story = paid_and_not_understood()
    with pytest.raises(ActionRefused, match="pivot"):
        story.helped("cancel", None)
    no = story.goes_on(Refused("more", "do", 1, "no"))
    assert (no.todo, story.phase("other")) == ((), "done")


def test_no_deadline_undoes_what_is_beside_it() -> None:
    story = paid_and_not_understood()
    story.goes_on(Done("more", "do", 1))
    story.now = NOW + dt.timedelta(seconds=101)
    assert story.goes_on(Resumed()).todo == ()
    assert story.state.status == "running"


def test_it_is_asked_for_its_answer_again_under_its_key_and_with_what_it_was_given() -> None:
    story = paid_and_not_understood()
    story.goes_on(Done("more", "do", 1))
    story.goes_on(Resumed())
    assert story.helped("retry", "pay").todo == (Call("pay", "do", 2),)
    pay = story.state.steps["pay"]
    assert (pay.generation, pay.input) == (0, {"n": 0, "receipt": None})


def test_a_question_about_it_charges_nothing_whatever_it_says() -> None:
    saga = Saga("s", data=Data)
    saga.step("pay", act, external=True, query=act, pivot=True, retry=TWICE)
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Unusable("pay", 1, "its answer does not fit"))
    assert [type(each) for each in story.helped("resume", None).todo] == [Query]
    story.goes_on(NotFound("pay", 1))
    assert (story.state.status, story.phase("pay")) == ("stuck", "stuck")
    found = story.helped("resume", None)
    assert [type(each) for each in found.todo] == [Query]
    assert story.goes_on(Done("pay", "do", 1, {"receipt": "r"})).state.status == "completed"


# --- what is done, undone, or done anew ----------------------------------------------------------


def test_a_step_beside_the_pivot_is_called_again_with_what_it_was_given() -> None:
    saga = Saga("s", data=Data).step("pay", act, pivot=True, after=())
    story = Story(outside(saga, "ship"))
    story.goes_on(Resumed())
    story.goes_on(Refused("ship", "do", 1, "no"), ("pay", "do"))
    story.goes_on(Done("pay", "do", 1, {"receipt": "r"}))
    assert story.phase("ship") == "stuck"
    story.helped("retry", "ship")
    ship = story.state.steps["ship"]
    assert (ship.generation, ship.input) == (0, {"n": 0, "receipt": None})


def test_what_had_nothing_to_undo_is_there_once_the_pivot_is_carried_out() -> None:
    saga = Saga("s", data=Data).timer("pause", 5, after=())
    outside(saga, "mail", compensation=nothing_to_undo)
    saga.step("pay", Do, compensation=act, pivot=True, timeout=60, retry=TWICE, after=())
    story = Story(saga.step("end", act, after=("mail", "pay", "pause")))
    story.goes_on(Resumed())
    story.goes_on(Done("mail", "do", 1))
    passes(story, times=3)
    story.helped("cancel", None)
    assert story.phase("mail") == "undone"
    forward = story.is_answered(Done("pay", "do", 1))
    assert (story.state.status, forward.todo) == ("running", (Run("end", "do", 1),))


def test_the_call_that_a_question_found_is_no_other_effect_when_it_is_reported_itself() -> None:
    saga = Saga("s", data=Data).step("charge", act, compensation=act, external=True, query=act)
    story = Story(saga.step("next", act, compensation=act))
    story.goes_on(Resumed())
    story.now += dt.timedelta(seconds=61)
    assert story.goes_on(Resumed()).todo == (Query("charge", 1),)
    story.goes_on(Errored("charge", "do", 2, "the question failed", unknown=True))
    story.now += dt.timedelta(seconds=61)
    story.goes_on(Resumed())
    story.goes_on(Done("charge", "do", 2))
    story.goes_on(Refused("next", "do", 1, "no"))
    story.goes_on(Done("charge", "undo", 1))
    assert story.ended_late(Done("charge", "do", 1)).todo == ()
    assert story.state.status == "compensated"


def refunded_perhaps() -> Story:
    """The process died in the first refund; the second one was certainly not made."""
    saga = Saga("s", data=Data)
    outside(saga, "charge", compensation_retry=TWICE)
    saga.step("pay", Do, compensation=act, pivot=True, timeout=60, retry=TWICE, after=())
    story = Story(saga.step("next", act, compensation=act, after="charge", retry=TWICE))
    story.goes_on(Resumed())
    story.goes_on(Done("charge", "do", 1))
    story.goes_on(Refused("next", "do", 1, "no"))
    passes(story, times=2)
    assert story.phase("charge") == "undoing"
    story.goes_on(Resumed(1))
    story.goes_on(Errored("charge", "undo", 2, "certainly not", code="not_done"))
    assert story.state.status == "stuck"
    return story


def test_an_undoing_that_may_have_been_done_gets_no_new_key() -> None:
    with pytest.raises(ActionRefused, match="nobody knows"):
        refunded_perhaps().helped("retry", "charge", new_key=True)


def test_what_may_have_been_undone_does_not_count_as_there_beside_the_pivot() -> None:
    story = refunded_perhaps()
    story.is_answered(Done("pay", "do", 1))
    assert (story.phase("charge"), story.state.steps["charge"].doubt) == ("stuck", True)


def test_a_late_success_beyond_the_pivot_is_what_has_to_be_there() -> None:
    saga = Saga("s", data=Data)
    outside(saga, "hold", idempotent=False, query=act, retry=TWICE)
    saga.step("pay", Do, compensation=act, pivot=True, timeout=60, retry=TWICE, after=())
    saga.step("next", act, compensation=act, after="hold", retry=TWICE)
    story = Story(saga.timer("later", 1000, after="pay"))
    story.goes_on(Resumed())
    passes(story)
    story.goes_on(NotFound("hold", 1))
    passes(story)
    story.goes_on(Done("hold", "do", 2))
    story.goes_on(Refused("next", "do", 1, "no"))
    passes(story)
    story.goes_on(Done("hold", "undo", 1))
    story.is_answered(Done("pay", "do", 1))
    assert (story.state.status, story.phase("hold")) == ("running", "undone")
    story.ended_late(Done("hold", "do", 1))
    assert (story.state.status, story.phase("hold")) == ("running", "done")


def test_a_late_success_turns_no_saga_back_that_only_waits_for_a_person() -> None:
    saga = Saga("s", data=Data).step("pay", act, compensation=act, pivot=True)
    story = Story(saga.step("ship", act, external=True, query=act, retry=Retry(max_attempts=5)))
    story.goes_on(Resumed())
    story.goes_on(Done("pay", "do", 1))
    story.now += dt.timedelta(seconds=61)
    story.goes_on(Resumed(1))
    story.goes_on(NotFound("ship", 1))
    given_up = replace(story.state, status="stuck", reason="TypeError", before=("running", None))
    story.state = given_up
    story.ended_late(Done("ship", "do", 1))
    assert story.state.before is None or story.state.before[0] == "running"
    assert (story.state.status, story.phase("ship")) == ("stuck", "done")
