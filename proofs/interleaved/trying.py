"""Plays are tried: all orders of their steps, or those until one is bad; and what was found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import sqlalchemy as sa

from outbox_saga.testing.interleaving import Exploration, Play, Point, Reach, explore
from proofs.registry import say


class _Enough(Exception):
    """A problem was found: no need to try the other orders."""


def tried(
    name: str,
    play: Callable[[], Play],
    engines: Sequence[sa.Engine],
    reach: Callable[[Point], Reach | None],
    *,
    until_one_is_bad: bool,
) -> Exploration:
    """Every order of the play's steps, or those until a problem was found."""
    latest: list[Exploration] = []

    def progress(found: Exploration) -> None:
        latest[:] = [found]
        if found.schedules % 500 == 0:
            say(f"{name}: {found.report().splitlines()[0]}")
        if until_one_is_bad and found.problems:
            raise _Enough

    with contextlib.suppress(_Enough):
        explore(play, engines, reach=reach, progress=progress)
    say(f"{name}: {latest[0].report()}")
    return latest[0]


def judged(found: Exploration, *, a_rule_is_out: bool) -> dict[str, Any]:
    """The figures, and whether they are as they should be."""
    if a_rule_is_out:
        right = bool(found.problems)
    else:
        right = found.exhausted and not found.problems and not found.deadlocks
    return {"right": right} | figures(found)


def result_of(future: Future[dict[str, Any]]) -> dict[str, Any]:
    """What was found, or why it was not."""
    error = future.exception()
    return future.result() if error is None else {"right": False, "error": repr(error)}


def figures(found: Exploration) -> dict[str, Any]:
    """Counts, and the first schedule that went wrong."""
    told: dict[str, Any] = {
        "schedules": found.schedules,
        "exhausted": found.exhausted,
        "given_up_as_tried_already": found.left_out,
        "with_lock_waits": found.with_waits,
        "deadlocks": found.deadlocks,
        "bad": len(found.problems),
        "seconds": round(found.seconds, 1),
    }
    if found.problems:
        told["first"] = found.problems[0].report().splitlines()
    return told
