"""Deadlines and hints after a fork."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga import hints
from outbox_saga.watchdog import _watchdog, cut_after


@contextmanager
def held_by_another_thread(lock: Any) -> Iterator[None]:
    """As those who use it do for a moment."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            over.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


def in_a_child(work: Callable[[], object]) -> int:
    """Its exit code."""
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends it where it hangs
        try:
            work()
        finally:
            os._exit(1)
    return child


def code_of(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def test_a_child_of_a_fork_has_deadlines_whatever_the_parent_did_at_that_moment() -> None:
    def work() -> None:
        with cut_after(60, []):
            os._exit(0)

    with cut_after(60, []):
        pass
    with held_by_another_thread(_watchdog._changed):
        child = in_a_child(work)
    assert code_of(child) == 0, "the child hung"


@pytest.mark.parametrize("lock", ["of a sender", "of all senders"])
def test_a_child_of_a_fork_tells_relays_whatever_the_parent_did_at_that_moment(lock: str) -> None:
    # nobody listens at this address: what is tried is that a commit gets past the sender
    engine = sa.create_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    hints.wake_relays(engine)
    sender = hints._senders[engine]

    def work() -> None:
        another = sa.create_engine(engine.url)
        hints.wake_relays(another)
        sender.committed(None)
        hints._senders[another].committed(None)
        os._exit(0)

    with held_by_another_thread(sender._ready if lock == "of a sender" else hints._lock):
        child = in_a_child(work)
    assert code_of(child) == 0, "the child hung"
    engine.dispose()
