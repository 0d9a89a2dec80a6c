"""The thread that cuts connections sleeps until it has something to cut."""

from __future__ import annotations

import threading
import time

from outbox_saga.watchdog import Watch, _Watchdog


class Counted(threading.Condition):
    """Knows how often somebody was woken, and whether somebody sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.woken = 0
        self.asleep = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.asleep.set()
        return super().wait(timeout)

    def notify(self, n: int = 1) -> None:
        self.woken += 1
        super().notify(n)


def in_seconds(seconds: float) -> Watch:
    return Watch(time.monotonic() + seconds, [])


def test_only_a_deadline_before_all_others_wakes_it() -> None:
    """Each commit has one: woken by each, the thread would cost more than the deadline."""
    watchdog, counted = _Watchdog(), Counted()
    watchdog._changed = counted
    watchdog.watch(in_seconds(60))
    assert counted.asleep.wait(20)
    woken = counted.woken
    for _ in range(5):
        watchdog.forget(watchdog.watch(in_seconds(61)))
    assert counted.woken == woken
    sooner, cut = in_seconds(0.05), threading.Event()
    sooner.cuts.append(cut.set)
    watchdog.watch(sooner)
    assert cut.wait(20)
    assert counted.woken == woken + 1


def test_what_it_slept_for_may_be_forgotten() -> None:
    watchdog, counted = _Watchdog(), Counted()
    watchdog._changed = counted
    forgotten = watchdog.watch(in_seconds(0.2))
    assert counted.asleep.wait(20)
    watchdog.forget(forgotten)
    later, cut = in_seconds(0.4), threading.Event()
    later.cuts.append(cut.set)
    watchdog.watch(later)
    assert cut.wait(20)
    assert later.passed
