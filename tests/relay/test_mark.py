"""The low-water mark passes nothing that somebody may still show: against a model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from outbox_saga_relay.mark import Mark
from proofs.interleaved.rules import PassesAtOnce


@dataclass
class Transaction:
    id: int
    positions: list[int] = field(default_factory=list)


class World:
    """PostgreSQL as far as the mark goes: ids, positions, what is open and what is visible."""

    def __init__(self, mark: Mark) -> None:
        self.mark = mark
        self.next_id = 1
        self.next_position = 1
        self.open: list[Transaction] = []
        self.visible: set[int] = set()
        self.seen: set[int] = set()
        self.unread: list[int] = []
        self.completed = 0
        self.gone: set[int] = set()

    def begin(self) -> Transaction:
        transaction = Transaction(self.next_id)
        self.next_id += 1
        self.open.append(transaction)
        return transaction

    def write(self, which: int) -> None:
        if self.open:
            self.open[which % len(self.open)].positions.append(self.next_position)
            self.next_position += 1

    def commit(self, which: int) -> None:
        if self.open:
            transaction = self.open.pop(which % len(self.open))
            self.visible |= set(transaction.positions)
            self.completed = max(self.completed, transaction.id)

    def xmin(self) -> int:
        return min([t.id for t in self.open], default=self.xmax())

    def xmax(self) -> int:
        return self.completed + 1

    def put_back(self, which: int) -> None:
        """An operator replays one that has gone."""
        if gone := sorted(self.gone - self.visible):
            position = gone[which % len(gone)]
            self.visible.add(position)
            self.mark.lower(position - 1)

    def start(self) -> int:
        """Above what a page would be read now: as its statement decides."""
        ids = {transaction.id for transaction in self.open}
        ended = [floor for id_, floor in self.mark.open.items() if id_ not in ids]
        return min([self.mark.position, *ended])

    def exchange(self, limit: int, late: int | None = None) -> None:
        """Removes what was read the last time, and reads the next page, as the relay does.

        Args:
            late: Which transaction commits between the snapshot that is told and the page's.
        """
        if self.seen:
            own = self.begin()
            self.visible -= self.seen
            self.gone |= self.seen
            self.seen = set()
            self.mark.began(own.id)
            self.commit(self.open.index(own))
        oldest, latest = self.xmin(), self.xmax()
        in_progress = {t.id for t in self.open if t.id < latest}
        if late is not None:
            self.commit(late)
        start = self.start()
        missed = [p for p in self.visible if p <= start]
        assert not missed, f"the mark {start} has passed {missed}"
        page = sorted(p for p in self.visible if p > start)[:limit]
        self.mark.read(
            oldest,
            page[-1] if page else None,
            full=len(page) == limit,
            in_progress=in_progress,
        )
        self.seen = set(page)
        passed = [p for p in self.visible if p <= self.start() and p not in self.seen]
        assert not passed, f"the mark {self.mark.position} has passed {passed}"


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["begin", "write", "write", "commit", "read", "read", "read late", "put back"]
        ),
        st.integers(0, 5),
    ),
    max_size=60,
)


def play(mark: Mark, events: list[tuple[str, int]], world: type[World] = World) -> World:
    there = world(mark)
    for event, number in events:
        if event == "begin":
            there.begin()
        elif event == "write":
            there.write(number)
        elif event == "commit":
            there.commit(number)
        elif event == "put back":
            there.put_back(number)
        elif event == "read late":
            there.exchange(1 + number // 2, late=number)
        else:
            there.exchange(1 + number)
    return there


@settings(max_examples=400, deadline=None, print_blob=True)
@given(steps)
def test_nothing_that_becomes_visible_is_ever_below_the_mark_unread(
    events: list[tuple[str, int]],
) -> None:
    there = play(Mark(), events)
    while there.open:
        there.commit(0)
    for _ in range(200):
        if not there.visible:
            break
        there.exchange(3)
    assert not there.visible, "rows were left behind"


@settings(max_examples=150, deadline=None, print_blob=True)
@given(steps)
def test_with_nobody_else_about_the_mark_comes_as_far_as_what_was_read(
    events: list[tuple[str, int]],
) -> None:
    there = play(Mark(), events)
    while there.open:
        there.commit(0)
    there.begin()
    there.write(0)
    there.commit(0)
    for _ in range(200):
        if not there.visible:
            break
        there.exchange(3)
    there.exchange(3)
    assert there.mark.position == there.next_position - 1


class GoesByTheLatest(World):
    """The page itself says the latest transaction, instead of one of our own that came after."""

    def exchange(self, limit: int, late: int | None = None) -> None:
        latest = self.xmax() - 1
        self.mark.began = lambda transaction: None  # type: ignore[method-assign]
        super().exchange(limit, late)
        Mark.began(self.mark, latest)


class DoesNotLookBehindThePage(Mark):
    """Forgets that a full page has seen nothing behind its end."""

    def read(
        self,
        oldest: int | None,
        highest: int | None,
        *,
        full: bool,
        in_progress: Collection[int] = (),
    ) -> None:
        super().read(oldest, highest, full=False, in_progress=in_progress)


class ForgetsWhoIsOpen(Mark):
    """What an open transaction has written is not looked for when it has ended."""

    def read(self, *told: Any, **more: Any) -> None:
        super().read(*told, **more)
        self.open = {}


class HasFloorsTooHigh(Mark):
    """An open transaction may have written below what was read last."""

    def read(self, *told: Any, **more: Any) -> None:
        super().read(*told, **more)
        self.open = dict.fromkeys(self.open, self.position)


class ForgetsThemWhenItIsLowered(Mark):
    """One read is enough to pass it again, whoever is open."""

    def lower(self, position: int) -> None:
        before = self.position
        super().lower(position)
        if self.position < before:
            self._seen[0].after = 0


@pytest.mark.parametrize(
    ("mark", "world"),
    [
        (PassesAtOnce, World),
        (DoesNotLookBehindThePage, World),
        (ForgetsWhoIsOpen, World),
        (HasFloorsTooHigh, World),
    ],
)
def test_the_model_finds_a_mark_that_goes_too_far(
    mark: Callable[[], Mark], world: type[World]
) -> None:
    def goes_too_far(events: list[tuple[str, int]]) -> bool:
        try:
            play(mark(), events, world)
        except AssertionError:
            return True
        return False

    try:
        # always the same examples: whether a search finds it must not be luck
        sure = settings(
            max_examples=20_000,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
        )
        found = find(steps, goes_too_far, settings=sure)
    except NoSuchExample:
        pytest.fail("the model does not find it")
    assert any(event.startswith("read") for event, _ in found)


def test_a_mark_that_goes_by_the_latest_transaction_passes_one_that_is_open() -> None:
    """The reason why pg_snapshot_xmax is no measure: an open transaction may be above it."""
    schedule = [("begin", 0), ("begin", 0), ("write", 1), ("write", 0), ("commit", 0)]
    schedule += [("read", 0), ("read", 0), ("commit", 0), ("read", 0)]
    with pytest.raises(AssertionError, match="the mark 2 has passed"):
        play(Mark(), schedule, GoesByTheLatest)
    play(Mark(), schedule)


def test_a_lowered_mark_that_forgets_who_was_open_passes_what_they_bring() -> None:
    schedule = [("begin", 0), ("begin", 0), ("begin", 0), ("commit", 0), ("begin", 0)]
    schedule += [("write", 1), ("commit", 1), ("write", 0), ("write", 1), ("begin", 0)]
    schedule += [("begin", 0), ("read late", 5), ("read", 0), ("put back", 0)]
    schedule += [("read late", 2), ("read late", 0)]
    with pytest.raises(AssertionError, match="the mark 3 has passed"):
        play(ForgetsThemWhenItIsLowered(), schedule)
    play(Mark(), schedule)


def test_a_lowered_mark_needs_one_look_to_come_back() -> None:
    mark = Mark()
    mark.read(1, 10, full=False)
    mark.began(5)
    mark.read(6, 20, full=False)
    assert mark.position == 10

    mark.lower(3)
    assert mark.position == 3
    mark.read(6, 4, full=True)
    assert mark.position == 4  # a full page has not come back to where we were
    mark.read(6, None, full=False)
    assert mark.position == 10


def test_of_two_open_writers_only_the_one_that_ends_is_looked_for() -> None:
    mark = Mark()
    mark.read(1, 10, full=True)
    mark.began(5)
    mark.read(3, 20, full=True, in_progress=[3, 6])
    assert (mark.position, mark.open) == (10, {3: 0})
    mark.began(8)
    mark.read(3, 30, full=True, in_progress=[3, 6, 9])
    assert (mark.position, mark.open, mark.holder) == (20, {3: 0, 6: 10}, 3)
    mark.read(3, None, full=False, in_progress=[3, 9])
    assert (mark.position, mark.open, mark.lowest) == (20, {3: 0}, 0)
    mark.read(9, None, full=False, in_progress=[9])
    assert (mark.position, mark.open, mark.lowest) == (20, {}, 20)


def test_the_mark_says_which_transaction_it_waits_for() -> None:
    mark = Mark()
    mark.read(1, 10, full=False)
    mark.began(5)
    mark.read(3, None, full=False)
    assert (mark.position, mark.holder) == (0, 3)
    mark.read(6, None, full=False)
    assert (mark.position, mark.holder) == (10, None)
