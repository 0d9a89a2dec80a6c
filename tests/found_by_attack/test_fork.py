"""Deadlines after a fork."""

from __future__ import annotations

import os
import signal
import threading

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
        signal.alarm(30)  # ends it where it hangs
        with cut_after(60, []):
            os._exit(0)
    over.set()
    thread.join()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "the child hung"
