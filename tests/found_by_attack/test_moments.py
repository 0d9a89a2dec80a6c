"""What goes on beside a point may end between it and the next one."""

from __future__ import annotations

from outbox_saga.testing.crash_points import CrashPoints


def test_while_another_effect_is_under_way_every_point_is_a_moment() -> None:
    """What is published while a statement ends may be out when the next one begins, and a death
    there leaves "published, and nothing removed", which no other point leaves.
    """
    points = CrashPoints()
    with points.effect("publish"):
        with points.effect("SELECT"):
            pass
        with points.effect("COMMIT"):
            pass
    assert points.names[3] == "before COMMIT"
    assert points.moments == [1, 2, 3, 4, 5, 6]


def test_what_another_branch_ends_between_two_statements_makes_two_moments_of_it() -> None:
    """Two tasks: the one's commit is on its way when the other one comes from a statement to the
    next. In one run it has ended by then, in another it has not.
    """
    points = CrashPoints()
    first, second = points.effect("COMMIT of one"), points.effect("SELECT of another")
    first.__enter__()
    second.__enter__()
    second.__exit__(None, None, None)
    third = points.effect("COMMIT of another")
    third.__enter__()
    third.__exit__(None, None, None)
    first.__exit__(None, None, None)
    assert points.names[3] == "before COMMIT of another"
    assert 4 in points.moments
