"""Proof 3.2 leaves out schedules that come to the same as one it tries. Here none is left out.

Pairs of those who may move one saga are tried in every order of their steps there is, and then in
those orders only that `SagaReaches` leaves: both come to the same ends, the saga's history
included.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from outbox_saga.testing.interleaving import Exploration, Play, Point, Reach, Run, explore
from proofs.interleaved.saga_plays import PAIRS, pair
from proofs.interleaved.saga_stage import SagaStage, saga_stage

pytestmark = pytest.mark.needs_a_session(
    "the explorer asks the server who waits, by a session's number"
)

QUICK = ("reply and event", "reply and cancel")
LONG = [name for name in PAIRS if name not in QUICK]


@pytest.fixture(scope="module")
def on() -> Iterator[SagaStage]:
    with saga_stage() as there:
        yield there


def ends(on: SagaStage, name: str, *, reduced: bool) -> tuple[Exploration, set[str]]:
    """How many schedules there were, and how they ended."""
    found: set[str] = set()
    begin = pair(name)

    def play() -> Play:
        begun = begin(on)

        def check(run: Run) -> str | None:
            at_once = end(on)  # before somebody goes on alone
            wrong = begun.check(run)
            found.add(repr((at_once, end(on), on.others, on.cancels)))
            return wrong

        return Play(begun.actors, check)

    def every_step_matters(point: Point) -> Reach | None:
        reach = on.reaches(point)
        return None if reach else reach

    explored = explore(play, on.engines, reach=on.reaches if reduced else every_step_matters)
    assert explored.exhausted
    assert not explored.problems, explored.report()
    return explored, found


def end(on: SagaStage) -> object:
    """The saga, its history, and how many messages are to leave; no ids and no times."""
    t = on.tables
    seen = on.instance()
    with on.database.begin() as connection:
        history = connection.execute(
            sa.select(
                t.saga_history.c.revision,
                t.saga_history.c.transition,
                t.saga_history.c.step,
                t.saga_history.c.attempt,
                t.saga_history.c.detail,
            ).order_by(t.saga_history.c.number)
        ).all()
        leaving = connection.scalar(sa.select(sa.func.count()).select_from(t.outbox))
    phases = {name: step.phase for name, step in seen.state.steps.items()}
    return (seen.state.status, seen.revision, phases, seen.state.data, leaving, history)


def compare(on: SagaStage, name: str) -> None:
    few, reached = ends(on, name, reduced=True)
    every, there_are = ends(on, name, reduced=False)
    assert reached == there_are, f"{few.schedules} of {every.schedules} schedules"
    assert few.schedules <= every.schedules


@pytest.mark.parametrize("name", QUICK)
def test_the_orders_that_are_tried_come_to_all_that_any_order_comes_to(
    on: SagaStage, name: str
) -> None:
    compare(on, name)


@pytest.mark.parametrize("name", LONG)
def test_so_do_those_of_longer_plays(on: SagaStage, name: str, soak: bool) -> None:
    if not soak:
        pytest.skip("thousands of schedules: ./dev soak")
    compare(on, name)


def test_a_step_whose_reach_is_not_told_makes_ends_go_missing(
    on: SagaStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, there_are = ends(on, QUICK[0], reduced=False)
    monkeypatch.setattr(on.reaches, "_statement", lambda *_: Reach())
    _, reached = ends(on, QUICK[0], reduced=True)
    assert reached < there_are
