"""Order within a key, as pure bookkeeping; the whole of it on a simulated broker."""

from __future__ import annotations

from collections import defaultdict
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from outbox_saga.brokers.lanes import Lanes


def test_the_second_of_a_key_waits_for_the_first() -> None:
    lanes: Lanes[str, str] = Lanes(patience=1)

    assert lanes.enter("k", 1, "first")
    assert not lanes.enter("k", 2, "second")
    assert lanes.enter("other", 3, "free")
    assert lanes.leave("k") == "second"
    assert lanes.leave("k") is None
    assert lanes.enter("k", 4, "again free")


def test_a_redelivered_message_stands_before_later_ones_that_wait() -> None:
    lanes: Lanes[str, str] = Lanes(patience=1)
    lanes.enter("k", 1, "first")
    lanes.enter("k", 9, "late")
    lanes.enter("k", 5, "redelivered")

    assert lanes.leave("k") == "redelivered"
    assert lanes.leave("k") == "late"


def test_those_behind_a_message_sent_back_go_back_too_and_earlier_ones_stay() -> None:
    lanes: Lanes[str, str] = Lanes(patience=1)
    lanes.enter("k", 5, "handled")
    lanes.enter("k", 3, "earlier")
    lanes.enter("k", 7, "later")

    assert lanes.send_back("k", 5, 10, "ticket") == ["later"]
    assert lanes.leave("k") == "earlier"
    assert lanes.leave("k") is None


def test_nothing_passes_a_message_that_is_away_until_it_is_overdue() -> None:
    lanes: Lanes[str, str] = Lanes(patience=2)
    lanes.away("k", 5, 10, "ticket")

    assert lanes.blocked_until("k", 6, now=9) == 10
    assert lanes.blocked_until("k", 4, now=9) is None
    assert lanes.blocked_until("other", 6, now=9) is None
    assert lanes.blocked_until("k", 6, now=12) == 10
    assert lanes.blocked_until("k", 6, now=12.1) is None


def test_a_message_that_came_back_is_no_longer_awaited() -> None:
    lanes: Lanes[str, str] = Lanes(patience=2)
    lanes.away("k", 5, 10, "ticket")

    assert lanes.blocked_until("k", 5, now=10) is None
    assert lanes.blocked_until("k", 6, now=10) is None


def test_what_is_overdue_is_forgotten() -> None:
    lanes: Lanes[str, str] = Lanes(patience=2)
    for n in range(100):
        lanes.away(f"k{n}", n, 10, "ticket")

    lanes.forget_overdue(now=13)

    assert all(lanes.blocked_until(f"k{n}", 1000, now=0) is None for n in range(100))


def test_what_is_away_is_called_back_while_it_is_not_due_and_then_nothing_waits_for_it() -> None:
    lanes: Lanes[str, str] = Lanes(patience=2)
    lanes.away("k", 7, 30, "later")
    lanes.away("k", 5, 20, "earlier")
    lanes.away("k", 3, 10, "due")
    lanes.away("other", 4, 20, "other")

    called = lanes.call_back(lambda key, _: key == "k", since=15)

    assert sorted(called) == [(5, "earlier"), (7, "later")]
    assert "k" not in lanes
    assert "other" in lanes


class Simulation:
    """Delivers in order at first, and what was sent back in any order once it is due."""

    def __init__(self, keys: list[str], failing: set[int]) -> None:
        self.keys = keys
        self.lanes: Lanes[int, int] = Lanes(patience=1000)
        self.stream = list(range(len(keys)))
        self.back: dict[int, float] = {}
        self.running: list[int] = []
        self.failing = failing
        self.done: dict[str, list[int]] = defaultdict(list)
        self.now = 0.0

    def step(self, choice: int) -> None:
        self.now += 1
        due = [place for place, at in self.back.items() if at <= self.now]
        moves = [
            *((self.finish, place) for place in self.running),
            *((self.deliver, place) for place in due),
            *((self.deliver, place) for place in self.stream[:1]),
        ]
        if moves:
            move, place = moves[choice % len(moves)]
            move(place)

    def deliver(self, place: int) -> None:
        if self.back.pop(place, None) is None:
            self.stream.remove(place)
        key = self.keys[place]
        if self.lanes.blocked_until(key, place, self.now) is not None:
            self.send_back(place)
        elif self.lanes.enter(key, place, place):
            self.running.append(place)

    def finish(self, place: int) -> None:
        key = self.keys[place]
        self.running.remove(place)
        if place in self.failing:
            self.failing.discard(place)
            for other in [place, *self.lanes.send_back(key, place, self.now + 1, place)]:
                self.send_back(other)
        else:
            self.done[key].append(place)
        following = self.lanes.leave(key)
        if following is not None:
            self.running.append(following)

    def send_back(self, place: int) -> None:
        self.back[place] = self.now + 1
        self.lanes.away(self.keys[place], place, self.now + 1, place)


@given(
    keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=25),
    failing=st.sets(st.integers(0, 24)),
    seed=st.randoms(use_true_random=False),
)
def test_successes_of_a_key_come_in_order_and_one_by_one_whatever_is_sent_back(
    keys: list[str], failing: set[int], seed: Random
) -> None:
    world = Simulation(keys, set(failing))
    while world.stream or world.back or world.running:
        world.step(seed.randrange(1000))
        running = [keys[place] for place in world.running]
        assert len(running) == len(set(running))

    for key in set(keys):
        assert world.done[key] == [place for place, each in enumerate(keys) if each == key]
