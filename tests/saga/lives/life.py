"""One saga's life by chance: answers get lost, processes die, people act; then all goes well.

A seed makes the same life again, and `told` says what happened in it.
"""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

from outbox_saga.errors import ActionRefused, MessageRefused
from outbox_saga.instances import (
    ENDED,
    OVER_FOR_GOOD,
    Entry,
    SagaState,
    dump_data,
    dump_progress,
    load_state,
)
from outbox_saga.saga.happened import (
    Call,
    Decision,
    Done,
    Errored,
    Flight,
    Happened,
    NotFound,
    Query,
    Refused,
    Resumed,
    Run,
    Send,
    Surroundings,
    ToDo,
    Unusable,
)
from outbox_saga.saga.interventions import Intervention, intervene
from outbox_saga.saga.progress import arrived, came_late, decide, initial, replied
from tests.saga.lives.definitions import Data, made_by
from tests.saga.lives.effects import Effects, Wrong

NOW = dt.datetime(2026, 11, 29, tzinfo=dt.UTC)
WELL_WITHIN = 600  # steps of a life in which all goes well
Answered = tuple[Done | Refused, int]


class Life:
    """From the start of an instance to its end.

    Args:
        seed: Of all that happens.
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.saga = made_by(self.chance)
        steps = self.saga.steps
        self.effects = Effects(self.saga, {n for n in steps if self.chance.random() < 0.25})
        self.state: SagaState = initial(self.saga, self.saga.dump(Data()))
        self.now = NOW
        self.told: list[str] = []
        self._due: dt.datetime | None = NOW
        self._flight: dict[Flight, tuple[ToDo, int]] = {}  # with the number of its key
        self._passed: list[tuple[Call, int]] = []  # calls of processes that were passed
        self._wire: list[Send | Answered] = []
        self._heard: set[str] = set()
        self._deaths = 0
        self._well = self._stopping = False
        self._count = 0

    def is_lived(self) -> str:
        """How it ends. Raises Wrong when a promise was broken on the way."""
        self._resume()
        for _ in range(self.chance.randint(5, 60)):
            self._something()
        self._well = True
        self._tell("from now on all goes well")
        for _ in range(WELL_WITHIN):
            if not self._goes_well():
                phases: dict[str, str] = {n: s.phase for n, s in self.state.steps.items()}
                self.effects.check_the_end(self.state.status, phases)
                return self.state.status
        raise Wrong("it does not end")

    # --- what happens ----------------------------------------------------------------------------

    def _something(self) -> None:
        alive = self.state.status not in ENDED
        stuck = any(step.phase == "stuck" for step in self.state.steps.values())
        acts = [self._time_passes, self._time_passes, self._an_event_comes]
        acts += [self._one_reports] * 6 * bool(self._flight) + [self._resume] * alive
        acts += [self._one_arrives] * 4 * bool(self._wire) + [self._dies] * bool(self._flight)
        acts += [self._one_comes_late] * 2 * bool(self._passed) + [self._a_person_acts] * 3 * stuck
        acts += [self._is_cancelled] * (self.state.status == "running" and self._is_rare())
        acts += [self._stops] * self._is_rare()
        self.chance.choice(acts)()

    def _is_rare(self) -> bool:
        return self.chance.random() < 0.1

    def _goes_well(self) -> bool:
        if self._passed:
            self._one_comes_late()
        elif self._flight:
            self._one_reports()
        elif self._wire:
            self._one_arrives()
        elif self.state.status in ENDED:
            return False
        else:
            if self._due is not None and self._due > self.now:
                self.now = self._due
            before = self.state, self._due
            self._resume()
            if (self.state, self._due) == before and not self._flight and not self._wire:
                raise Wrong(f"it is due at {self._due}, and nothing is to be done")
        return True

    def _time_passes(self) -> None:
        self.now += dt.timedelta(seconds=self.chance.choice([1, 5, 35, 65, 120]))
        if self.state.status not in ENDED:
            self._resume()

    def _resume(self, deaths: int = 0) -> None:
        self._take(decide(self.saga, self.state, Resumed(deaths), self._around()))

    def _stops(self) -> None:
        self._stopping = True
        while self._flight:
            self._one_reports()
        self._stopping = False
        if self.state.status not in ENDED:
            self._resume()

    def _dies(self) -> None:
        self._tell("its process dies")
        for todo, number in list(self._flight.values()):
            if not isinstance(todo, Call):
                continue
            done = self._carried_out(todo, number) in ("done", "done, and silent")
            if done and todo.direction == "do" and self.chance.random() < 0.6:
                self._passed.append((todo, number))
        self._flight.clear()
        self._deaths += 1
        self.now += dt.timedelta(seconds=31)
        if self.state.status not in ENDED:
            self._resume(self._deaths)

    def _one_comes_late(self) -> None:
        call, number = self._passed.pop(self.chance.randrange(len(self._passed)))
        done = Done(call.step, "do", call.attempt, self._brings(call.step))
        usable = self.chance.random() < 0.8
        state, entries = came_late(self.saga, self.state, done, number, usable=usable)
        self._moves(f"{done} comes late", state, entries)

    def _an_event_comes(self) -> None:
        names = [n for n, rule in self.saga.steps.items() if rule.kind == "event"]
        if not names or self.state.status in OVER_FOR_GOOD:
            return
        name = self.chance.choice(names)
        brought: Any = "it will not come" if self.chance.random() < 0.2 else self._fits(name)
        state, entries = arrived(self.saga, self.state, name, brought)
        self._moves(f"the event of {name}: {brought}", state, entries)

    def _is_cancelled(self) -> None:
        self._is_done_by_a_person(Intervention("cancel", None, "ada"))

    def _a_person_acts(self) -> None:
        stuck = [name for name, step in self.state.steps.items() if step.phase == "stuck"]
        name, kind = self.chance.choice(stuck), self.chance.choice(
            ["retry", "new key", "skip", "mark_done", "resume"]
        )  # fmt: skip
        if kind == "new key":
            at = self.state.steps[name].stuck
            # nobody asks for it who sees the effect, or knows of a command or answer on its way
            if not (at == "do" and self.effects.is_there(name)) and not self._awaits(name):
                self._is_done_by_a_person(Intervention("retry", name, "ada", new_key=True))
        elif kind == "resume":
            self._is_done_by_a_person(Intervention("resume", None, "ada"))
        else:
            self._is_done_by_a_person(Intervention(kind, name, "ada"))  # type: ignore[arg-type]

    def _is_done_by_a_person(self, action: Intervention) -> None:
        at = None if action.step is None else self.state.steps[action.step].stuck
        try:
            state, entries = intervene(self.saga, self.state, action)
        except ActionRefused as refused:
            self._tell(f"{action.kind} {action.step} is refused: {refused}")
            return
        if action.kind in ("mark_done", "skip"):
            assert action.step is not None
            self.effects.by_hand.add(action.step)
            if action.kind == "mark_done":
                self.effects.there[action.step] = ["by hand"] if at == "do" else []
                self._wire = [each for each in self._wire if not self._is_to(each, action.step)]
        how = " under a new key" if action.new_key else ""
        self._moves(f"{action.kind} {action.step}{how}", state, entries, resumed=True)

    # --- what comes of what is carried out -------------------------------------------------------

    def _one_reports(self) -> None:
        flight = self.chance.choice(list(self._flight))
        todo, number = self._flight[flight]
        if isinstance(todo, Run):
            self._reports(flight, self._ran(todo))
        elif isinstance(todo, Query):
            self._reports(flight, self._answered(todo, number))
        else:
            self._reports(flight, self._called(todo, number))

    def _ran(self, run: Run) -> Happened:
        step, direction, attempt = run.step, run.direction, run.attempt
        if direction == "do" and step in self.effects.refusing:
            return Refused(step, "do", attempt, "no")
        if self._fails(0.05) and direction == "undo":
            return Refused(step, "undo", attempt, "no")
        if self._fails(0.3):
            return Errored(step, direction, attempt, "trouble")
        return Done(step, direction, attempt, self._fits(step) if direction == "do" else None)

    def _answered(self, query: Query, number: int) -> Happened:
        if self._fails(0.4):
            return Errored(query.step, "do", query.attempt + 1, "trouble", unknown=True)
        if self.effects.was_called(query.step, number):
            return Done(query.step, "do", query.attempt, self._brings(query.step))
        return NotFound(query.step, query.attempt)

    def _called(self, call: Call, number: int) -> Happened:
        step, direction, attempt = call.step, call.direction, call.attempt
        came = self._carried_out(call, number)
        if came == "not there":
            certain = direction == "undo" or not self.effects.was_called(step, number)
            unknown = not (certain and self.chance.random() < 0.4)
            return Errored(step, direction, attempt, "trouble", unknown=unknown)
        if came.endswith("silent"):
            return Errored(step, direction, attempt, "no answer", unknown=True)
        if came == "no":
            return Refused(step, direction, attempt, "no")
        return Done(step, direction, attempt, self._brings(step) if direction == "do" else None)

    def _carried_out(self, call: Call, number: int) -> str:
        """done, no, either of them and silent (its answer is lost), or not there."""
        if self._fails(0.25):
            return "not there"
        if call.direction == "do":
            came: str = self.effects.called(call.step, number, call.attempt)
        elif not self.effects.was_undone(call.step, number) and self._fails(0.1):
            return "no"
        else:
            self.effects.undoing_called(call.step, number)
            came = "done"
        return f"{came}, and silent" if self._fails(0.5) else came

    def _reports(self, flight: Flight, happened: Happened) -> None:
        self._tell(f"reports {happened}")
        try:
            decision = decide(self.saga, self.state, happened, self._around(flight))
        except MessageRefused as refused:
            assert isinstance(happened, Done)
            unusable = Unusable(happened.step, happened.attempt, str(refused))
            decision = decide(self.saga, self.state, unusable, self._around(flight))
        if isinstance(self._flight[flight][0], Run) and isinstance(happened, Done):
            if any(entry.transition == "IGNORED" for entry in decision.entries):
                undone = Done(happened.step, happened.direction, happened.attempt, kept=False)
                decision = decide(self.saga, self.state, undone, self._around(flight))
            elif happened.direction == "do":
                self.effects.appears(happened.step, "local")
            else:
                self.effects.goes(happened.step)
        del self._flight[flight]
        self._deaths = 0
        self._take(decision)

    # --- commands --------------------------------------------------------------------------------

    def _one_arrives(self) -> None:
        index = self.chance.randrange(len(self._wire))
        arrives = self._wire[index]
        if not self._fails(0.2):
            del self._wire[index]  # else it comes once more
        if self._fails(0.15):
            return
        if isinstance(arrives, Send):
            self._wire.append(self._answer_to(arrives))
            return
        answer, generation = arrives
        if self.state.status in OVER_FOR_GOOD:
            return
        around = Surroundings(self.now, started_at=NOW)
        state, entries = replied(self.saga, self.state, answer, generation, around)
        self._moves(f"{answer} arrives", state, entries)

    def _answer_to(self, send: Send) -> Answered:
        done = self.effects.commanded(send, unwilling=self._fails(0.2))
        if not done:
            return Refused(send.step, send.direction, send.attempt, "no"), send.generation
        brought = self._brings(send.step) if send.direction == "do" else None
        return Done(send.step, send.direction, send.attempt, brought), send.generation

    def _awaits(self, step: str) -> bool:
        about = (each if isinstance(each, Send) else each[0] for each in self._wire)
        return any(each.step == step for each in about)

    @staticmethod
    def _is_to(each: Send | Answered, step: str) -> bool:
        return isinstance(each, Send) and each.step == step

    # --- what is decided -------------------------------------------------------------------------

    def _around(self, reporting: Flight | None = None) -> Surroundings:
        seen = frozenset(self._flight) - ({reporting} if reporting else set())
        return Surroundings(self.now, seen, 30.0, "seed", NOW, stopping=self._stopping)

    def _moves(
        self, why: str, state: SagaState, entries: tuple[Entry, ...], *, resumed: bool = False
    ) -> None:
        self._tell(why, *entries)
        changed = state != self.state
        self._is(state)
        if resumed or (changed and state.status not in ENDED):
            self._resume()

    def _take(self, decision: Decision) -> None:
        self._tell("", *decision.entries)
        self._is(decision.state)
        self._due = decision.due
        state = decision.state
        if decision.due is None and state.status not in ENDED:
            raise Wrong("nobody would look at it any more")
        if state.status == "stuck" and not state.reason:
            raise Wrong("stuck without a reason")
        if state.status == "stuck" and all(s.phase != "stuck" for s in state.steps.values()):
            raise Wrong("stuck, and no step of it is")
        for send in decision.sends:
            self.effects.asked(send.step, send.direction, send.generation, dict(send.fields))
            self._undoing_begins(send.step, send.direction)
            self._wire.append(send)
        for todo in decision.todo:
            self._begins(todo)

    def _begins(self, todo: ToDo) -> None:
        flight: Flight = (todo.step, "do" if isinstance(todo, Query) else todo.direction)
        if flight in self._flight or (self._stopping and isinstance(todo, Run)):
            return
        step = self.state.steps[todo.step]
        number = step.key_number(flight[1])
        if isinstance(todo, Call):
            assert step.input is not None
            self.effects.asked(todo.step, todo.direction, number, dict(step.input))
        self._undoing_begins(*flight)
        self._flight[flight] = (todo, number)

    def _undoing_begins(self, step: str, direction: str) -> None:
        if direction == "undo":
            self.effects.on_their_way.add(step)

    def _is(self, state: SagaState) -> None:
        for name, step in state.steps.items():
            if step.attempts < self.state.steps[name].attempts:
                raise Wrong(f"the attempts of {name} fell")
        kept = load_state(state.status, dump_data(state.data), dump_progress(state), state.reason)
        if kept != SagaState(
            state.status, state.data, state.steps, state.reason, state.before, state.parked
        ):
            raise Wrong("it is not read back as it was written")
        self.state = state
        pivots = [n for n, rule in self.saga.steps.items() if rule.pivot]
        self.effects.only_forward = state.status == "running" and any(
            state.steps[pivot].phase == "done" for pivot in pivots
        )
        if not self.effects.only_forward:
            return
        # what nobody carries out any more would be asked anew
        under_way = {step for step, direction in self._flight if direction == "undo"}
        sent = {s.step for s in self._wire if isinstance(s, Send) and s.direction == "undo"}
        self.effects.on_their_way &= under_way | sent

    # --- small things ----------------------------------------------------------------------------

    def _fails(self, probability: float) -> bool:
        return not self._well and self.chance.random() < probability

    def _fits(self, step: str) -> dict[str, Any]:
        self._count += 1
        return {step: self._count}

    def _brings(self, step: str) -> dict[str, Any]:
        return {step: "of no use"} if self._fails(0.1) else self._fits(step)

    def _tell(self, what: str, *entries: Entry) -> None:
        if what:
            self.told.append(what)
        for entry in entries:  # what an event tells of is there
            name = entry.step
            if entry.transition != "STEP_COMPLETED" or name is None or name in self._heard:
                continue
            if self.saga.steps[name].kind == "event":
                self._heard.add(name)
                if not self.effects.is_there(name):
                    self.effects.appears(name, "event")
        self.told += [f"    {e.transition} {e.step} {e.attempt} {e.detail}" for e in entries]
