"""Lanes keep the order of keys, know what is in memory, and let no key fill it."""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from outbox_saga.queries.relay import OutboxRow
from outbox_saga_relay.lanes import Lanes

DEPTH = 3


def row(position: int, key: str | None = None, partition: int = 0) -> OutboxRow:
    return OutboxRow(position, UUID(int=position), partition, "t", key, "{}", b"x" * position)


def test_of_one_key_one_message_is_on_its_way() -> None:
    lanes = Lanes(DEPTH)
    lanes.add([row(1, "a"), row(2, "a"), row(3), row(4, "b")])
    assert [r.position for r in lanes.take(10)] == [1, 3, 4]
    assert lanes.take(10) == []
    lanes.accepted([row(1, "a")])
    assert [r.position for r in lanes.take(10)] == [2]


def test_what_waits_behind_a_refused_message_is_forgotten() -> None:
    lanes = Lanes(DEPTH)
    lanes.add([row(1, "a"), row(2, "a"), row(3, "a")])
    (first,) = lanes.take(10)
    lanes.refused(first)
    assert (lanes.rows, lanes.size, lanes.flying) == (0, 0, 0)
    assert lanes.take(10) == []


def test_a_long_key_is_held_where_it_was_cut_until_all_of_it_is_read() -> None:
    lanes = Lanes(DEPTH)
    lanes.add(row(n, "a") for n in range(1, 9))
    assert lanes.held == {"a": 3}
    assert lanes.rows == DEPTH
    lanes.add([row(9, "a"), row(10, "b")])  # of a held key nothing is taken
    assert lanes.rows == DEPTH + 1
    assert lanes.wanting() == []
    for n in (1, 2):
        (taken,) = [r for r in lanes.take(5) if r.key == "a"]
        assert taken.position == n
        lanes.accepted([taken])
    assert lanes.wanting() == ["a"]
    lanes.more_of("a", [row(4, "a"), row(5, "a")], all_of_it=False)
    assert lanes.held == {"a": 5}
    lanes.more_of("a", [], all_of_it=True)
    assert lanes.held == {}
    lanes.add([row(11, "a")])
    assert lanes.held == {"a": 5}  # three wait again


def test_a_row_that_was_put_back_goes_before_what_waits() -> None:
    lanes = Lanes(DEPTH)
    lanes.add([row(5, "a"), row(7, "a")])
    lanes.add([row(2, "a")])
    assert [r.position for r in lanes.take(1)] == [2]


def test_of_partitions_that_are_left_only_what_is_on_its_way_stays() -> None:
    lanes = Lanes(DEPTH)
    lanes.add([row(1, "a", 1), row(2, "a", 1), row(3, None, 1), row(4, "b", 2), row(5, None, 2)])
    first = lanes.take(1)
    assert [r.position for r in first] == [1]
    lanes.leave({1})
    assert lanes.flying_of({1}) == 1
    assert sorted(r.position for r in lanes.take(10)) == [4, 5]
    lanes.accepted([first[0]])
    assert lanes.flying_of({1}) == 0
    lanes.removed(first)
    assert lanes.rows == 2


def test_what_comes_back_of_partitions_that_are_left_is_left_too() -> None:
    lanes = Lanes(DEPTH)
    lanes.add([row(1, "a", 1), row(2, "a", 1), row(3, None, 1)])
    taken = lanes.take(10)
    lanes.leave({1})
    for each in taken:
        lanes.returned(each)
    assert (lanes.ready, lanes.rows, lanes.size, lanes.flying) == (0, 0, 0, 0)
    lanes.left({1})
    lanes.add([row(1, "a", 1), row(2, "a", 1)])  # when they are its own again
    (first,) = lanes.take(10)
    lanes.returned(first)
    assert (lanes.ready, lanes.rows) == (1, 2)


def test_what_comes_back_goes_behind_an_earlier_one_that_was_put_back() -> None:
    lanes = Lanes(DEPTH)
    lanes.add([row(5, "a"), row(7, "a")])
    (flying,) = lanes.take(1)
    lanes.add([row(2, "a")])
    lanes.returned(flying)
    order = []
    while taken := lanes.take(5):
        order += [r.position for r in taken]
        lanes.accepted([taken[0]])
    assert order == [2, 5, 7]


def test_what_was_put_back_before_a_message_goes_though_that_is_refused() -> None:
    """What looks again for the key's sake looks from the refused message on, and no lower."""
    lanes = Lanes(DEPTH)
    lanes.add([row(5, "a"), row(7, "a")])
    (flying,) = lanes.take(1)
    lanes.add([row(2, "a"), row(3, "a")])
    lanes.refused(flying)
    order = []
    while taken := lanes.take(5):
        order += [r.position for r in taken]
        lanes.accepted([taken[0]])
        lanes.removed(taken)
    assert order == [2, 3]
    assert (lanes.rows, lanes.size) == (0, 0)


def test_what_ends_after_all_was_forgotten_changes_nothing() -> None:
    lanes = Lanes(DEPTH)
    for end in (lanes.returned, lanes.refused, lanes.skipped, lambda r: lanes.accepted([r])):
        lanes.add([row(1, "a"), row(2)])
        taken = lanes.take(2)
        lanes.clear()
        for each in taken:
            end(each)
        assert (lanes.rows, lanes.size, lanes.flying, lanes.ready) == (0, 0, 0, 0)


class AgainstAModel(RuleBasedStateMachine):
    """Random arrivals and outcomes; what leaves of a key leaves in order, and each row once."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes(DEPTH)
        self.outbox: dict[int, OutboxRow] = {}
        self.position = 0
        self.flying: dict[int, OutboxRow] = {}
        self.accepted: list[OutboxRow] = []
        self.first: dict[str, list[int]] = defaultdict(list)
        self.blocked: set[str] = set()

    @rule(keys=st.lists(st.sampled_from([None, "a", "b", "c"]), max_size=6))
    def commit(self, keys: list[str | None]) -> None:
        for key in keys:
            self.position += 1
            self.outbox[self.position] = row(self.position, key)

    @rule(limit=st.integers(1, 5))
    def read(self, limit: int) -> None:
        known, held = set(self.lanes.positions(-1)), self.lanes.held
        there = [
            r
            for p, r in sorted(self.outbox.items())
            if p not in known and r.key not in held and r.key not in self.blocked
        ]
        self.lanes.add(there[:limit])

    @rule(limit=st.integers(1, 4))
    def read_more(self, limit: int) -> None:
        for key in self.lanes.wanting()[:1]:
            after = self.lanes.held[key]
            rows = [r for p, r in sorted(self.outbox.items()) if r.key == key and p > after]
            self.lanes.more_of(key, rows[:limit], all_of_it=len(rows) < limit)

    @rule(limit=st.integers(1, 4))
    def take(self, limit: int) -> None:
        for taken in self.lanes.take(limit):
            assert taken.position not in self.flying
            assert taken.key is None or all(r.key != taken.key for r in self.flying.values())
            self.flying[taken.position] = taken

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), what=st.sampled_from(["accept", "accept", "return", "refuse", "skip"]))
    def end(self, data: st.DataObject, what: str) -> None:
        position = data.draw(st.sampled_from(sorted(self.flying)))
        ended = self.flying.pop(position)
        if what == "accept":
            self.lanes.accepted([ended])
            self.accepted.append(ended)
            self._left(ended)
        elif what == "return":
            self.lanes.returned(ended)
        elif what == "refuse":
            self.lanes.refused(ended)
            if ended.key is not None:
                self.blocked.add(ended.key)
        else:
            del self.outbox[position]
            self.lanes.skipped(ended)
            self._left(ended)

    @rule()
    def remove(self) -> None:
        for gone in self.accepted:
            del self.outbox[gone.position]
        self.lanes.removed(self.accepted)
        self.accepted = []

    @precondition(lambda self: self.blocked)
    @rule()
    def unblock(self) -> None:
        self.blocked.clear()

    def _left(self, gone: OutboxRow) -> None:
        if gone.key is not None:
            self.first[gone.key].append(gone.position)

    @invariant()
    def keeps_order_and_count(self) -> None:
        for order in self.first.values():
            assert order == sorted(order)
        assert self.lanes.flying == len(self.flying)
        assert self.lanes.rows >= len(self.flying) + len(self.accepted)
        waiting = self.lanes.rows - len(self.flying) - len(self.accepted)
        assert waiting <= (DEPTH + 1) * 3 + sum(r.key is None for r in self.outbox.values())

    def teardown(self) -> None:
        """Everything leaves in the end."""
        self.blocked.clear()
        for _ in range(4 * self.position + 4):
            for ended in self.flying.values():
                self.lanes.accepted([ended])
                self.accepted.append(ended)
                self._left(ended)
            self.flying = {}
            self.remove()
            self.read(5)
            self.read_more(4)
            self.take(4)
        assert not self.outbox
        self.keeps_order_and_count()


AgainstAModel.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, print_blob=True
)
TestAgainstAModel = AgainstAModel.TestCase
