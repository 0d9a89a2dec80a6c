"""The choices of the explorer: of schedules that come to the same one is tried, none is missed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from outbox_saga.errors import ConfigurationError
from outbox_saga.testing.choices import Choices, Diverged, Reach


@dataclass(frozen=True)
class Step:
    """Reads and changes; with a lock, which it has until the actor's last step.

    While somebody else has the lock it waits: it has read before that, and changes after it.
    """

    reads: frozenset[str] = frozenset()
    changes: frozenset[str] = frozenset()
    lock: bool = False


Program = Sequence[Sequence[Step]]

words = st.frozensets(st.sampled_from("xyz"), max_size=2)
plain_steps = st.builds(Step, words, words)
locking_steps = st.builds(Step, words, words, st.booleans())


def programs(steps: st.SearchStrategy[Step], most: int) -> st.SearchStrategy[Program]:
    return st.lists(st.lists(steps, min_size=1, max_size=most), min_size=2, max_size=3)


class World:
    """What a program comes to: of everything there is, who read or changed it, in order."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.at = dict.fromkeys(map(str, range(len(program))), 0)
        self.holder: str | None = None
        self.waiting: list[str] = []
        self.history: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        self.read: dict[tuple[str, int, str], int] = {}

    def ready(self) -> dict[str, Reach]:
        return {
            name: self.reach(name)
            for name, at in self.at.items()
            if name not in self.waiting and at < len(self.program[int(name)])
        }

    def waits(self) -> dict[str, Reach]:
        return {name: self.reach(name) for name in self.waiting}

    def reach(self, name: str) -> Reach:
        step = self.program[int(name)][self.at[name]]
        locking = any(step.lock for step in self.program[int(name)])
        locks = frozenset({"lock"} if locking and (step.lock or self.is_last(name)) else ())
        return Reach(step.reads, step.changes | locks, frees=self.is_last(name))

    def is_last(self, name: str) -> bool:
        return self.at[name] == len(self.program[int(name)]) - 1

    def take(self, name: str) -> None:
        number = self.at[name]
        for word in self.program[int(name)][number].reads:
            self.read[name, number, word] = len(self.history[word])
        if self.program[int(name)][self.at[name]].lock and self.holder not in (None, name):
            self.waiting.append(name)
        else:
            self.carry_out(name)

    def carry_out(self, name: str) -> None:
        number = self.at[name]
        step = self.program[int(name)][number]
        if step.lock:
            self.holder = name
            self.history["lock"].append((name, number))
        for word in step.changes:
            self.history[word].append((name, number))
        last = self.is_last(name)
        self.at[name] += 1
        if last and self.holder == name:
            self.holder = None
            if self.waiting:
                self.carry_out(self.waiting.pop(0))

    def outcome(self) -> object:
        return (
            frozenset((word, tuple(who)) for word, who in self.history.items()),
            frozenset(self.read.items()),
        )


def outcomes(program: Program, *, by_reach: bool) -> list[object]:
    """What every schedule comes to that was tried to its end."""
    choices = Choices(by_reach=by_reach)
    found = []
    while True:
        world, depth = World(program), 0
        while ready := world.ready():
            chosen = choices.choose(ready, depth, waiting=world.waits())
            if chosen is None:
                break
            world.take(chosen)
            depth += 1
        else:
            assert not world.waiting
            found.append(world.outcome())
        if not choices.next():
            return found


@settings(max_examples=200, deadline=None)
@given(programs(plain_steps, 3))
def test_by_reach_every_outcome_is_tried_once(program: Program) -> None:
    few = outcomes(program, by_reach=True)
    assert set(few) == set(outcomes(program, by_reach=False))
    assert len(few) == len(set(few))


x = frozenset("x")


# who could be set free must be thought of in what was tried already, too
@example([[Step(lock=True), Step()], [Step(changes=x)] * 2, [Step(x, x, lock=True)]])
@settings(max_examples=200, deadline=None)
@given(programs(locking_steps, 3))
def test_by_reach_every_outcome_is_tried_where_some_wait_for_locks(program: Program) -> None:
    few = outcomes(program, by_reach=True)
    assert set(few) == set(outcomes(program, by_reach=False))


def test_what_a_step_does_that_was_set_free_comes_before_and_after_what_it_reaches() -> None:
    holder = [Step(lock=True), Step()]
    waits = [Step(reads=frozenset("y"), changes=frozenset("x"), lock=True)]
    others = [Step(changes=frozenset("y")), Step(reads=frozenset("x"))]
    program = [holder, waits, others]
    few = outcomes(program, by_reach=True)
    assert set(few) == set(outcomes(program, by_reach=False))


def test_what_nobody_else_reaches_is_tried_once_while_some_wait_for_a_lock() -> None:
    lock, end, other = Step(lock=True), Step(), Step(changes=frozenset("z"))
    alone = outcomes([[lock, end], [lock, end]], by_reach=True)
    beside = outcomes([[lock, end], [lock, end], [other] * 3], by_reach=True)
    assert len(beside) == len(alone)


def test_what_reaches_nothing_in_common_is_tried_in_one_order() -> None:
    x, y = Step(changes=frozenset("x")), Step(changes=frozenset("y"))
    assert len(outcomes([[x, x], [y, y]], by_reach=True)) == 1
    assert len(outcomes([[x, x], [y, y]], by_reach=False)) == 6
    assert len(outcomes([[x, y], [y, y]], by_reach=True)) == 3


def test_the_same_choices_must_lead_to_the_same_place() -> None:
    choices = Choices()
    choices.choose({"a": None, "b": None}, 0)
    assert choices.next()
    with pytest.raises(Diverged):
        choices.choose({"a": None}, 0)


def test_a_bound_on_preemptions_is_refused_beside_reaches() -> None:
    with pytest.raises(ConfigurationError):
        Choices(2, by_reach=True)
