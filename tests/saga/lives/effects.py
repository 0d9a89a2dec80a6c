"""The oracle: what is there outside of the saga, as providers and participants keep it.

It knows the definition, and nothing of how is decided.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from outbox_saga import Saga
from outbox_saga.saga.happened import Send

Answer: TypeAlias = Literal["done", "no"]


class Wrong(AssertionError):
    """A promise was broken."""


@dataclass
class Effects:
    """Which steps have an effect now.

    Args:
        refusing: Steps to which everybody says no.
        by_hand: Steps that a person has settled; of those nothing is asked.
    """

    saga: Saga[Any]
    refusing: set[str]
    by_hand: set[str] = field(default_factory=set)
    there: dict[str, list[object]] = field(default_factory=dict)  # step -> keys
    only_forward: bool = False
    #: undoings that were on their way when that became known
    on_their_way: set[str] = field(default_factory=set)
    _said: dict[tuple[str, int], Answer] = field(default_factory=dict)
    _undone: set[tuple[str, int]] = field(default_factory=set)
    _barrier: dict[tuple[str, int], str] = field(default_factory=dict)
    _asked: dict[tuple[str, str, int], object] = field(default_factory=dict)

    def is_there(self, step: str) -> bool:
        """Whether the step has an effect."""
        return bool(self.there.get(step))

    def appears(self, step: str, key: object) -> None:
        """Somebody has carried it out."""
        if self.is_there(step) and step not in self.by_hand:
            raise Wrong(f"two effects of {step} at once, of {self.there[step]} and {key}")
        self.there.setdefault(step, []).append(key)

    def goes(self, step: str) -> None:
        """Somebody has undone it."""
        if not self.is_there(step):
            if step in self.by_hand:
                return
            raise Wrong(f"an undoing of {step} found no effect")
        for other in self.saga.steps.values():
            stands = step in self.saga.before(other.name) and self.is_there(other.name)
            if stands and other.has_compensation and other.name not in self.by_hand:
                raise Wrong(f"{step} is undone while {other.name}, which depends on it, stands")
        if self.only_forward and step not in self.on_their_way:
            raise Wrong(f"{step} is undone though the pivot is there")
        self.there[step].pop()

    def asked(self, step: str, direction: str, number: int, given: object) -> None:
        """Somebody is asked under this key, with that."""
        before = self._asked.setdefault((step, direction, number), given)
        if before != given:
            raise Wrong(f"key {number} to {direction} {step} says {before}, and then {given}")

    def called(self, step: str, number: int, attempt: int) -> Answer:
        """A call arrives."""
        if not self.saga.steps[step].idempotent:
            if step in self.refusing:
                return "no"
            self.appears(step, (number, attempt))
            return "done"
        if (step, number) not in self._said:
            self._said[step, number] = "no" if step in self.refusing else "done"
            if step not in self.refusing:
                self.appears(step, number)
        return self._said[step, number]

    def was_called(self, step: str, number: int) -> bool:
        """What a query is told."""
        if self.saga.steps[step].idempotent:
            return self._said.get((step, number)) == "done"
        return self.is_there(step)

    def was_undone(self, step: str, number: int) -> bool:
        """Whether a call to undo it has arrived under this key: its answer stays the same."""
        return (step, number) in self._undone

    def undoing_called(self, step: str, number: int) -> None:
        """A call to undo it arrives; under one key it is undone once."""
        if (step, number) not in self._undone:
            self.goes(step)
            self._undone.add((step, number))

    def commanded(self, send: Send, *, unwilling: bool) -> bool:
        """A command arrives: whether the answer is that it was carried out."""
        key = (send.step, send.generation)
        if self.saga.steps[send.step].kind != "command":  # an undoing, which its participant knows
            if unwilling and key not in self._undone:
                return False
            self.undoing_called(*key)
            return True
        known = self._barrier.get(key)
        if send.direction == "do":
            if known is None:
                known = self._barrier[key] = "no" if send.step in self.refusing else "done"
                if known == "done":
                    self.appears(send.step, key)
            return known in ("done", "undone")
        if known == "done" and unwilling:
            return False
        if known == "done":
            self.goes(send.step)
        self._barrier[key] = "undone" if known == "done" else known or "cancelled"
        return True

    def check_the_end(self, status: str, phases: dict[str, str]) -> None:
        """What an ended saga leaves."""
        for name, rule in self.saga.steps.items():
            if rule.kind in ("timer", "event") or name in self.by_hand:
                continue
            there = self.is_there(name)
            if status == "compensated" and there and rule.has_compensation:
                raise Wrong(f"compensated, and {name} is there")
            if status == "compensated" and there and rule.compensation is None:
                raise Wrong(f"compensated, and {name}, which cannot be undone, is there")
            if status == "completed" and there != (phases[name] == "done"):
                raise Wrong(f"completed, {name} is {phases[name]}, and its effect is {there}")
