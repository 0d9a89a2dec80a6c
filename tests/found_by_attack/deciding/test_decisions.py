"""Pure: what breaks "undone in reverse order of dependency", or what nobody can resolve."""

from __future__ import annotations

import pytest

from outbox_saga import Retry, Saga, nothing_to_undo
from outbox_saga.instances import ENDED
from outbox_saga.saga.happened import (
    Call,
    Done,
    Errored,
    Refused,
    Resumed,
    Run,
)
from tests.saga.story import Data, Story, act


def fails(_: Data) -> bool:
    raise LookupError


def never(_: Data) -> bool:
    return False


# --- a step that was left out stands between two that depend on each other -----------------------


def chain() -> Story:
    saga = Saga("s", data=Data).step("a", act, compensation=act)
    saga.step("b", act, compensation=act, when=never)
    saga.step("c", act, compensation=act)
    saga.step("d", act, compensation=act)
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Done("a", "do", 1))
    story.goes_on(Done("c", "do", 1))
    assert story.phase("b") == "skipped"
    return story


def test_what_a_step_waits_for_is_not_undone_before_it_though_one_between_was_left_out() -> None:
    turned = chain().goes_on(Refused("d", "do", 1, "no"))
    assert turned.todo == (Run("c", "undo", 1),)


def test_an_undoing_commits_nothing_while_a_step_behind_one_left_out_is_done() -> None:
    story = chain()
    story.goes_on(Refused("d", "do", 1, "no"))
    early = story.goes_on(Done("a", "undo", 1), ("c", "undo"))
    assert (story.phase("a"), [e.transition for e in early.entries]) == ("done", ["IGNORED"])


# --- a call whose intent was decided by what turned the saga back --------------------------------


def test_a_call_begins_once_though_a_branch_beside_it_fails_as_it_begins() -> None:
    saga = Saga("s", data=Data).step("first", act, compensation=act)
    saga.step("card", act, compensation=act, external=True, idempotent=True, after="first")
    saga.step("third", act, compensation=act, after="first", when=fails)
    story = Story(saga)
    story.goes_on(Resumed())
    decision = story.goes_on(Done("first", "do", 1))
    assert decision.todo == (Call("card", "do", 1),)
    assert story.state.steps["card"].attempts == 1


def test_a_call_that_was_certainly_not_made_is_not_asked_for_again_while_it_is_undone() -> None:
    saga = Saga("s", data=Data).step("first", act, compensation=act)
    saga.step(
        "card", act, compensation=act, external=True, idempotent=True, after="first",
        retry=Retry(max_attempts=1),
    )  # fmt: skip
    saga.step("third", act, compensation=act, after="first", when=fails)
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Done("first", "do", 1))
    ended = story.goes_on(Errored("card", "do", 1, "it is shut", code="not_done"))
    assert (story.phase("card"), ended.todo) == ("failed", (Run("first", "undo", 1),))


# --- what commits while the instance is stuck ----------------------------------------------------


def beside_a_pivot() -> Story:
    """`first` is done, and is being undone because `beside` has failed, whose report has not seen
    that `second`, the pivot, had begun.
    """
    saga = Saga("s", data=Data).step("first", act, compensation=act)
    saga.step("beside", act, compensation=nothing_to_undo, after=())
    saga.step("second", act, after=(), pivot=True)
    saga.step("last", act, after=("first", "second"))
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Done("first", "do", 1), ("beside", "do"), ("second", "do"))
    turned = story.goes_on(Refused("beside", "do", 1, "no"))
    assert turned.todo == (Run("first", "undo", 1),)
    return story


def test_an_undoing_commits_nothing_after_the_pivot_though_a_person_is_waited_for() -> None:
    saga = Saga("s", data=Data).step("first", act, compensation=act)
    saga.step("beside", act, compensation=nothing_to_undo, after=())
    saga.step("second", act, after=(), pivot=True)
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Done("first", "do", 1), ("beside", "do"), ("second", "do"))
    story.goes_on(Refused("beside", "do", 1, "no"))
    story.goes_on(Done("second", "do", 1))
    assert (story.state.status, story.state.before) == ("stuck", ("running", None))
    late = story.goes_on(Done("first", "undo", 1))
    assert story.phase("first") == "done", late.entries


def test_after_the_pivot_a_saga_goes_forward_though_it_was_stuck_when_that_committed() -> None:
    story = beside_a_pivot()
    story.goes_on(Refused("first", "undo", 1, "cannot"))
    assert story.state.status == "stuck"
    story.goes_on(Done("second", "do", 1))
    assert story.phase("second") == "done"
    if story.phase("first") == "stuck":
        story.helped("retry", "first")
    # it can only go forward: the pivot needs no compensation
    assert story.phase("second") == "done", story.state.reason


@pytest.mark.parametrize("kind", ["skip", "mark_done"])
def test_after_the_pivot_no_decision_of_a_person_takes_a_step_as_undone(kind: str) -> None:
    """The pivot committed when its neighbour could not be undone."""
    saga = Saga("s", data=Data).step("first", act, compensation=act)
    saga.step("beside", act, compensation=nothing_to_undo, after=())
    saga.step("second", act, after=(), pivot=True)
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Done("first", "do", 1), ("beside", "do"), ("second", "do"))
    story.goes_on(Refused("beside", "do", 1, "no"))
    story.goes_on(Refused("first", "undo", 1, "cannot"), ("second", "do"))
    story.goes_on(Done("second", "do", 1))
    assert (story.state.status, story.phase("beside")) == ("stuck", "stuck")
    if story.phase("first") == "stuck":
        story.helped(kind, "first")
    story.helped("skip", "beside")
    assert story.state.status == "completed", (
        f"stuck for {story.state.reason!r}, at "
        f"{ {name: story.phase(name) for name in story.state.steps} }"
    )


# --- what nobody can resolve ---------------------------------------------------------------------


def test_whoever_is_stuck_has_a_reason_and_a_step_that_a_person_can_help() -> None:
    """The pivot's call had no answer, its neighbour was undone, and then a person found out that
    the pivot was carried out.
    """
    saga = Saga("s", data=Data).step("stock", act, compensation=act)
    saga.step("check", act, compensation=nothing_to_undo, after=())
    saga.step(
        "card", act, after=(), pivot=True, external=True, idempotent=True,
        retry=Retry(max_attempts=2),
    )  # fmt: skip
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Done("stock", "do", 1), ("check", "do"), ("card", "do"))
    decision = story.goes_on(Refused("check", "do", 1, "no"), ("card", "do"))
    attempt = 1
    while story.phase("card") != "stuck":
        decision = story.goes_on(Errored("card", "do", attempt, "no answer", unknown=True))
        if story.phase("card") != "stuck":
            assert decision.due is not None
            story.now = max(story.now, decision.due)
            (again,) = story.goes_on(Resumed()).todo
            assert isinstance(again, Call)
            attempt = again.attempt
    assert decision.todo == (Run("stock", "undo", 1),)
    story.goes_on(Done("stock", "undo", 1))
    story.helped("mark_done", "card")
    for _ in range(3):
        stuck = [name for name in story.state.steps if story.phase(name) == "stuck"]
        if story.state.status not in ENDED or not stuck:
            break
        story.helped("skip", stuck[0])
    if story.state.status == "stuck":
        pytest.fail(
            f"stuck for {story.state.reason!r}, at "
            f"{ {name: story.phase(name) for name in story.state.steps} }"
        )
