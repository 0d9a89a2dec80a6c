"""Commands on a wire that loses, doubles and disorders: decided without any database.

An adversary does what it likes for a while, then the wire is well. The saga ends, and what the
participants know agrees with how.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any, Literal

from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from outbox_saga import Command, Retry, Saga
from outbox_saga.instances import ENDED, SagaState
from outbox_saga.saga.happened import Decision, Done, Refused, Resumed, Run, Send, Surroundings
from outbox_saga.saga.progress import decide, initial, replied
from outbox_saga.saga.steps import Step

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
PATIENCE = 60.0
NAMES = "abcde"


class Data(BaseModel):
    number: int = 0


class Do(Command, topic="x"):
    number: int


class Undo(Command, topic="x"):
    number: int


async def act(step: Any) -> None: ...


@dataclass(frozen=True)
class Plan:
    """A saga, and who says no in it."""

    definition: Saga[Data]
    refusing: frozenset[str]


undoings = st.sampled_from((Undo, act))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Up to five steps, each local or commanded, and undone by either, one after another or side
    by side.
    """
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    saga = Saga("random", data=Data)
    for index, name in enumerate(names):
        after = draw(st.sets(st.sampled_from(names[:index]))) if index else set()
        options: dict[str, Any] = {"after": tuple(sorted(after))}
        action, options["compensation"] = draw(st.sampled_from((Do, act))), draw(undoings)
        if action is Do:
            options |= {"timeout": PATIENCE, "retry": Retry(max_attempts=draw(st.integers(1, 3)))}
        saga.step(name, action, compensation_timeout=PATIENCE, **options)
    refusing = draw(st.sets(st.sampled_from(names), max_size=1))
    return Plan(saga.check(), frozenset(refusing))


@dataclass
class Answer:
    """On its way to the saga."""

    happened: Done | Refused
    generation: int


@dataclass
class World:
    """The saga, the wire, and what the other sides know."""

    plan: Plan
    state: SagaState
    now: dt.datetime = START
    wire: list[Send | Answer] = field(default_factory=list)
    known: dict[str, Literal["done", "refused", "undone", "cancelled"]] = field(
        default_factory=dict
    )
    local: dict[str, int] = field(default_factory=dict)

    @property
    def around(self) -> Surroundings:
        return Surroundings(self.now, started_at=START)

    def carry_on(self) -> None:
        """As far as the saga goes by itself."""
        happened: Any = Resumed()
        while self.state.status not in ENDED:
            decision = decide(self.plan.definition, self.state, happened, self.around)
            self._take(decision)
            runs = [todo for todo in decision.todo if isinstance(todo, Run)]
            if not runs:
                return
            happened = self._carry_out(runs[0])

    def _take(self, decision: Decision) -> None:
        self.state = decision.state
        self.wire += decision.sends

    def _carry_out(self, run: Run) -> Done | Refused:
        if run.direction == "do" and run.step in self.plan.refusing:
            return Refused(run.step, "do", run.attempt, "no")
        if self.plan.definition.steps[run.step].kind == "command":
            assert self.known[run.step] == "done"  # a function undoes what certainly was done
            self.known[run.step] = "undone"
            return Done(run.step, run.direction, run.attempt)
        self.local[run.step] = self.local.get(run.step, 0) + (1 if run.direction == "do" else -1)
        return Done(run.step, run.direction, run.attempt)

    def deliver(self, at: int, *, twice: bool = False) -> None:
        """One of what is on its way arrives; again, perhaps."""
        arriving = self.wire[at] if twice else self.wire.pop(at)
        if isinstance(arriving, Send):
            self.wire.append(Answer(self._participate(arriving), arriving.generation))
        elif self.state.status not in ("completed", "compensated"):
            self.state, _ = replied(
                self.plan.definition,
                self.state,
                arriving.happened,
                arriving.generation,
                self.around,
            )
            self.carry_on()

    def _participate(self, send: Send) -> Done | Refused:
        """What the barrier makes of it."""
        before = self.known.get(send.step)
        done = Done(send.step, send.direction, send.attempt)
        if self.plan.definition.steps[send.step].kind != "command":  # it undoes what was done here
            if before is None:
                self.known[send.step] = "undone"
                self.local[send.step] -= 1
            return done
        if send.direction == "undo":
            if before is None:
                self.known[send.step] = "cancelled"
            elif before == "done":
                self.known[send.step] = "undone"
            return done
        if before is None:
            self.known[send.step] = "refused" if send.step in self.plan.refusing else "done"
        no = self.known[send.step] in ("refused", "cancelled")
        return Refused(send.step, "do", send.attempt, "no") if no else done


@given(plans(), st.data())
def test_whatever_the_wire_does_the_saga_ends_and_everybody_agrees(
    plan: Plan, data: st.DataObject
) -> None:
    world = World(plan, initial(plan.definition, {"number": 1}))
    world.carry_on()
    for _ in range(data.draw(st.integers(0, 20), label="how long")):
        what = data.draw(st.sampled_from(("deliver", "twice", "lose", "wait")), label="then")
        if what == "wait" or not world.wire:
            world.now += dt.timedelta(seconds=PATIENCE + 1)
            world.carry_on()
            continue
        at = data.draw(st.integers(0, len(world.wire) - 1), label="which")
        if what == "lose":
            world.wire.pop(at)
        else:
            world.deliver(at, twice=what == "twice")

    for _ in range(100):  # the wire is well again
        while world.wire:
            world.deliver(0)
        if world.state.status in ENDED:
            break
        world.now += dt.timedelta(seconds=PATIENCE + 1)
        world.carry_on()

    _check(world)


def _check(world: World) -> None:
    status = world.state.status
    commanded = {n: s for n, s in world.plan.definition.steps.items() if s.kind == "command"}
    local = [n for n, s in world.plan.definition.steps.items() if s.kind == "action"]
    if status == "completed":
        assert all(world.known[name] == "done" for name in commanded)
        assert all(world.local[name] == 1 for name in local)
    elif status == "compensated":
        assert "done" not in world.known.values()
        assert all(world.local.get(name, 0) == 0 for name in local)
    else:  # nothing was answered, as often as it may leave
        assert status == "stuck"
        steps = world.state.steps
        for name in (name for name, step in steps.items() if step.phase == "stuck"):
            undoing = steps[name].stuck == "undo"
            told = "outcome unknown" if undoing else f"no answer within {PATIENCE:g} s"
            assert told in str(world.state.reason)
            assert undoing or plan_of(world, name).compensation is act
    assert set(world.local.values()) <= {0, 1}


def plan_of(world: World, name: str) -> Step:
    return world.plan.definition.steps[name]
