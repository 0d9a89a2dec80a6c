"""Every interleaving of a few writers and a relay, on real servers: a small one of proof 1.4."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from outbox_saga.testing.interleaving import Play, Run, explore, replay
from tests.write_path.contest import Contest, least_steps
from tests.write_path.shop import INSERT, Shop

pytestmark = [
    pytest.mark.databases("postgres18", "mariadb"),
    pytest.mark.needs_a_session("the explorer asks the server who waits, by a session's number"),
]


@pytest.fixture
def contest(shop: Shop) -> Iterator[Contest]:
    contest = Contest(shop.url)
    yield contest
    contest.engine.dispose()


def test_with_the_key_lock_no_schedule_of_two_writers_and_a_relay_is_out_of_order(
    contest: Contest,
) -> None:
    found = explore(
        lambda: contest.play(
            {
                "writer1": contest.writer([("k", "one")]),
                "writer2": contest.writer([("k", "two")]),
                "relay": contest.relay(1),
            }
        ),
        [contest.engine],
        steps=least_steps,
    )
    assert not found.problems, found.report()
    assert found.exhausted
    assert found.with_waits > 0, "no schedule ever waited for the lock: it was not tried"
    assert found.deadlocks == 0


def test_without_the_key_lock_the_explorer_finds_the_inversion_and_replays_it(
    contest: Contest,
) -> None:
    def play() -> Play:
        return contest.play(
            {
                "bare1": contest.writer([("k", "one")], key_locks=False),
                "bare2": contest.writer([("k", "two")], key_locks=False),
                "relay": contest.relay(1),
            }
        )

    found = explore(play, [contest.engine], steps=least_steps)
    assert found.problems, found.report()
    bad = found.problems[0]
    again = replay(play, [contest.engine], " ".join(bad.schedule), steps=least_steps)
    assert (again.problem, again.trace) == (bad.problem, bad.trace)


def test_the_same_play_is_explored_in_the_same_order_each_time(contest: Contest) -> None:
    def schedules() -> list[list[str]]:
        seen: list[list[str]] = []

        def note(run: Run) -> str | None:
            seen.append(run.schedule)
            return contest.check(run)

        def play() -> Play:
            fresh = contest.play(
                {
                    "writer1": contest.writer([("k", "one")]),
                    "writer2": contest.writer([("k", "two")]),
                }
            )
            return Play(fresh.actors, note)

        explore(play, [contest.engine], steps=least_steps)
        return seen

    first = schedules()
    assert first == schedules()
    assert len(first) == len({tuple(schedule) for schedule in first}) > 2


def test_writers_of_two_keys_do_not_deadlock_because_their_locks_are_sorted(
    contest: Contest,
) -> None:
    found = explore(
        lambda: contest.play(
            {
                "writer1": contest.writer([("a", "1a"), ("b", "1b")]),
                "writer2": contest.writer([("b", "2b"), ("a", "2a")]),
            }
        ),
        [contest.engine],
    )
    assert not found.problems, found.report()
    assert found.deadlocks == 0
    assert found.with_waits > 0


def test_with_locks_as_the_keys_come_the_explorer_finds_the_deadlock(contest: Contest) -> None:
    found = explore(
        lambda: contest.play(
            {
                "writer1": contest.careless_writer([("a", "1a"), ("b", "1b")], in_order=False),
                "writer2": contest.careless_writer([("b", "2b"), ("a", "2a")], in_order=False),
            }
        ),
        [contest.engine],
        preemptions=1,
    )
    assert found.deadlocks > 0, found.report()
    assert not found.problems, found.report()


def test_a_preemption_bound_leaves_schedules_out(shop: Shop) -> None:
    def actor(name: str) -> None:
        with shop.engine.begin() as connection:
            connection.execute(INSERT, {"note": name})
            connection.execute(sa.text("select 1"))

    def play() -> Play:
        actors = {name: (lambda name=name: actor(name)) for name in ("one", "two")}
        return Play(actors, lambda run: None)

    counts = [
        explore(play, [shop.engine], preemptions=bound).schedules for bound in (0, 1, 2, None)
    ]
    assert counts[0] == 2  # one after the other, either first
    assert counts == sorted(counts)
    # each: insert, select, commit, and the pool's rollback; 8! / (4! 4!)
    assert counts[-1] == 70
