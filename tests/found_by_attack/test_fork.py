"""Deadlines after a fork."""

from __future__ import annotations

import os
import signal
import threading
import time

from outbox_saga.watchdog import _watchdog, cut_after


def test_a_child_of_a_fork_has_deadlines_whatever_the_parent_did_at_that_moment() -> None:
    with cut_after(60, []):
        pass
    held, over = threading.Event(), threading.Event()

    def hold() -> None:  # as the watchdog does for a moment, and whoever begins a deadline
        with _watchdog._changed:
            held.set()
            over.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        with cut_after(60, []):
            os._exit(0)
    over.set()
    thread.join()
    ends = time.monotonic() + 5
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < ends:
        time.sleep(0.01)
    if found == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert found != (0, 0), "the child hangs"
