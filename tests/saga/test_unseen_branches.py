"""Two branches that end together: the second one decides without knowing what the first one's end
has begun, a local step, of which nothing is on record before it commits.

Whichever commits first, what a step waits for is there while it is carried out, and nothing of an
ended saga is left.
"""

from __future__ import annotations

from typing import Any

import pytest

from outbox_saga import Saga, nothing_to_undo
from outbox_saga.saga.happened import (
    Done,
    Errored,
    Happened,
    Refused,
    Resumed,
    Run,
)
from tests.saga.story import Data, Story, act, ignored


def two_branches(undo_first: Any = act, **second: Any) -> Story:
    """`first` has ended and `second` has begun; `beside` has failed, and its report has not seen
    that.
    """
    saga = Saga("s", data=Data).step("first", act, compensation=undo_first)
    saga.step("beside", act, compensation=nothing_to_undo, after=())
    options: dict[str, Any] = {"compensation": act} | second
    saga.step("second", act, after="first", **options)
    story = Story(saga)
    story.goes_on(Resumed())
    decision = story.goes_on(Done("first", "do", 1), ("beside", "do"))
    assert decision.todo == (Run("second", "do", 1),)
    story.goes_on(Refused("beside", "do", 1, "no"))
    return story


def test_a_step_commits_nothing_when_what_it_waits_for_has_been_undone() -> None:
    story = two_branches()
    story.goes_on(Done("first", "undo", 1))
    assert story.state.status == "compensated"
    late = story.goes_on(Done("second", "do", 1))
    assert (ignored(late), story.phase("second"), late.todo) == (True, "waiting", ())


def test_an_undoing_commits_nothing_while_a_step_that_depends_on_it_is_done() -> None:
    story = two_branches()
    done = story.goes_on(Done("second", "do", 1), ("first", "undo"))
    assert (story.phase("second"), done.todo) == ("done", (Run("second", "undo", 1),))
    early = story.goes_on(Done("first", "undo", 1), ("second", "undo"))
    assert (ignored(early), story.phase("first")) == (True, "done")

    # it was rolled back, and is so whatever has become of the other one when that is put on record
    story.goes_on(Done("second", "undo", 1))
    noted = story.goes_on(Done("first", "undo", 1, kept=False))
    assert (ignored(noted), story.phase("first")) == (True, "done")
    assert noted.todo == (Run("first", "undo", 1),)
    assert story.goes_on(Done("first", "undo", 1)).state.status == "compensated"


def test_a_step_commits_nothing_in_a_saga_that_has_ended() -> None:
    story = two_branches(nothing_to_undo)
    assert story.state.status == "compensated"
    late = story.goes_on(Done("second", "do", 1))
    assert (ignored(late), story.phase("second")) == (True, "waiting")


def test_a_pivot_commits_nothing_once_anything_has_been_undone() -> None:
    saga = Saga("s", data=Data).step("first", act, compensation=act)
    saga.step("beside", act, compensation=nothing_to_undo, after=())
    saga.step("other", act, compensation=act, after=())
    saga.step("second", act, after="first", pivot=True)
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Done("other", "do", 1), ("first", "do"), ("beside", "do"))
    story.goes_on(Done("first", "do", 1), ("beside", "do"))
    turned = story.goes_on(Refused("beside", "do", 1, "no"))
    assert turned.todo == (Run("other", "undo", 1), Run("first", "undo", 1))
    story.goes_on(Done("other", "undo", 1), ("first", "undo"), ("second", "do"))
    late = story.goes_on(Done("second", "do", 1), ("first", "undo"))
    assert (ignored(late), story.state.status) == (True, "compensating")


@pytest.mark.parametrize("undone", ["other", "first"])
def test_an_undoing_commits_nothing_once_the_pivot_is_carried_out(undone: str) -> None:
    saga = Saga("s", data=Data).step("first", act, compensation=act)
    saga.step("beside", act, compensation=nothing_to_undo, after=())
    saga.step("other", act, compensation=act, after=())
    saga.step("second", act, after="first", pivot=True)
    saga.step("last", act)
    story = Story(saga)
    story.goes_on(Resumed())
    story.goes_on(Done("other", "do", 1), ("first", "do"), ("beside", "do"))
    story.goes_on(Done("first", "do", 1), ("beside", "do"))
    story.goes_on(Refused("beside", "do", 1, "no"))
    story.goes_on(Done("second", "do", 1), ("first", "undo"), ("other", "undo"))
    assert story.state.status == "running"
    late = story.goes_on(Done(undone, "undo", 1))
    assert (ignored(late), story.phase(undone)) == (True, "done")


@pytest.mark.parametrize(
    "ended", [Refused("second", "do", 1, "no"), Errored("second", "do", 1, "e")]
)
def test_what_such_a_step_fails_by_opens_no_ended_saga_again(ended: Happened) -> None:
    story = two_branches(nothing_to_undo)
    late = story.goes_on(ended)
    assert (ignored(late), story.state.status) == (True, "compensated")
