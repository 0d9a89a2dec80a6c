"""Which schedules there are to try, depth first; and which of them need not be. Pure.

Two steps that reach nothing in common come to the same whichever goes first. So of all schedules
that differ only in the order of such steps one is enough. Two known ways find it together:

* *backtracking by races* (source sets; Abdulla, Aronis, Jonsson and Sagonas 2014): one actor is
  taken wherever several could go on; when the run is over, another one is put down to be tried
  there if a step that came later, and might have come first, reaches something in common with the
  step that was taken;
* *sleep sets* (Godefroid 1996): after an actor's step was tried somewhere it sleeps there, until a
  step is taken that reaches what its own does. Where only sleepers could go on, all was tried.

A step that sets somebody free who waits for a lock does what that one's statement does, too: what
it reaches is what both reach. And who waits for a lock could not have gone on before the step that
set it free, so these two are in no race.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from outbox_saga.errors import ConfigurationError


class Diverged(AssertionError):
    """The same choices led elsewhere: something besides the schedule decides, as a clock would."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What a step may read and change, in any words; what it locks, it changes.

    A step without any reach belongs to the step before: nobody could tell whether another actor's
    step came between them.

    Args:
        frees: It may set those free that wait for a lock. A statement that leaves its transaction
            open does not, unless it fails.
    """

    reads: frozenset[str] = frozenset()
    changes: frozenset[str] = frozenset()
    frees: bool = True

    def __bool__(self) -> bool:
        return bool(self.reads or self.changes)

    def meets(self, other: Reach) -> bool:
        """Whether it matters which of the two comes first."""
        return bool(self.changes & (other.reads | other.changes) or other.changes & self.reads)


@dataclass(slots=True)
class _Decision:
    ready: Mapping[str, Reach | None]
    asleep: frozenset[str]
    waiting: Mapping[str, Reach | None]
    running: str | None  # who took the step before
    spent_before: int
    choice: str
    wanted: set[str]  # to be tried here, `choice` among them
    done: list[str] = field(default_factory=list)

    def reach(self, name: str) -> Reach | None:
        """What this one's step reaches here, with the statements of those it may set free."""
        reach = self.ready[name]
        if reach is None or not reach.frees:
            return reach
        return _together(reach, self.waiting.values())

    @property
    def spent(self) -> int:
        """Preemptions up to here: leaving an actor that could go on is one."""
        return self.spent_before + (self.running in self.ready and self.choice != self.running)

    @property
    def asleep_after(self) -> frozenset[str]:
        tried, taken = self.asleep.union(self.done), self.reach(self.choice)
        return frozenset(name for name in tried if not _meet(taken, self.reach(name)))

    def options(self) -> list[str]:
        """What is still to be tried, whoever went on last first."""
        left = [n for n in self.ready if n in self.wanted - self.asleep and n not in self.done]
        return sorted(left, key=lambda name: name != self.running)


class Choices:
    """One way through a tree after the other.

    Args:
        preemptions: How often an actor that could go on may be left; None: any number of times.
        by_reach: Steps have a reach, and what comes to the same is tried once.
    """

    def __init__(self, preemptions: int | None = None, *, by_reach: bool = False) -> None:
        if preemptions is not None and by_reach:
            # a bound on one way to the same is none on another: some would be left out unseen
            raise ConfigurationError("give `preemptions` or `reach`, not both")
        self._most = preemptions
        self._by_reach = by_reach
        self._decisions: list[_Decision] = []
        self._end: Mapping[str, Reach | None] = {}

    def choose(
        self,
        ready: Mapping[str, Reach | None],
        depth: int,
        *,
        waiting: Mapping[str, Reach | None] = MappingProxyType({}),
    ) -> str | None:
        """Whose step is next; None: every way on from here was tried elsewhere.

        Args:
            ready: Who can take a step, and what it may reach; None: anything.
            depth: Steps taken so far in this run.
            waiting: Who waits for a lock, and what the statement that waits may reach.
        """
        if depth < len(self._decisions):
            known = self._decisions[depth]
            if tuple(known.ready) != tuple(ready):
                raise Diverged(
                    f"step {depth}: {tuple(ready)} can go on; after the same choices before, "
                    f"{tuple(known.ready)} could"
                )
            return known.choice
        last = self._decisions[-1] if self._decisions else None
        running, spent = (last.choice, last.spent) if last else (None, 0)
        asleep = last.asleep_after if last and self._by_reach else frozenset()
        made = _Decision(ready, asleep, waiting, running, spent, "", set(ready))
        if running in ready and self._most is not None and spent >= self._most:
            made.wanted = {running} if running is not None else set()
        options = made.options()
        if not options:
            self._end = ready
            return None
        made.choice = options[0]
        if self._by_reach:
            made.wanted = {made.choice}
        self._decisions.append(made)
        return made.choice

    def next(self) -> bool:
        """Turns to the next untried choice, deepest first; False when there is none."""
        if self._by_reach:
            self._look_for_races()
        while self._decisions:
            decision = self._decisions[-1]
            decision.done.append(decision.choice)
            options = decision.options()
            if options:
                decision.choice = options[0]
                return True
            self._decisions.pop()
        return False

    def _look_for_races(self) -> None:
        """Puts down who is to be tried where, by what the run that is over has shown."""
        steps: list[_Step] = []
        latest: dict[str, _Step] = {}
        run = [(d.choice, d.reach(d.choice)) for d in self._decisions]
        # if it was given up, these were about to go on
        for at, (actor, reach) in enumerate([*run, *self._end.items()]):
            steps = steps[: len(run)]
            step = _Step(min(at, len(run)), actor, reach)
            if actor in latest:
                step.comes_after(latest[actor])
                freed_by = self._freed_by(actor, latest[actor].at, step.at)
                if freed_by is not None:
                    step.comes_after(steps[freed_by])
            for before in reversed(steps):
                # not if one between them must come after that one and before this
                if not step.follows(before) and _meet(before.reach, reach):
                    self._wants_first(before, steps, step)
                    step.comes_after(before)
            steps.append(step)
            if at < len(run):
                latest[actor] = step
        self._end = {}

    def _freed_by(self, actor: str, last: int, at: int) -> int | None:
        """The step that ended this actor's wait for a lock, between these two of its own."""
        waited = (i for i in range(at - 1, last, -1) if actor not in self._decisions[i].ready)
        return next(waited, None)

    def _wants_first(self, one: _Step, steps: list[_Step], other: _Step) -> None:
        """Somewhere in place of `one` a way is taken that leads to `other` without it."""
        way = [step for step in steps[one.at + 1 :] if not step.follows(one)] + [other]
        beginnings = {
            step.actor
            for i, step in enumerate(way)
            if not any(step.follows(earlier) for earlier in way[:i])
        }
        decision = self._decisions[one.at]
        if beginnings & decision.wanted:
            return
        ready = beginnings.intersection(decision.ready)
        decision.wanted |= {min(ready)} if ready else set(decision.ready)


class _Step:
    """One step of a run, with all that had to come before it: the last of each actor."""

    def __init__(self, at: int, actor: str, reach: Reach | None) -> None:
        self.at = at
        self.actor = actor
        self.reach = reach
        self._behind: dict[str, int] = {}

    def comes_after(self, other: _Step) -> None:
        for actor, at in (*other._behind.items(), (other.actor, other.at)):
            self._behind[actor] = max(self._behind.get(actor, -1), at)

    def follows(self, other: _Step) -> bool:
        return self._behind.get(other.actor, -1) >= other.at


def _together(one: Reach, others: Iterable[Reach | None]) -> Reach | None:
    reads, changes = one.reads, one.changes
    for other in others:
        if other is None:
            return None
        reads, changes = reads | other.reads, changes | other.changes
    return Reach(reads, changes)


def _meet(one: Reach | None, other: Reach | None) -> bool:
    return one is None or other is None or one.meets(other)
