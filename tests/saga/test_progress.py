"""`decide` in random worlds; a ledger of effects that knows nothing of it says what may be."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from outbox_saga import Event, Retry, Saga, nothing_to_undo
from outbox_saga.errors import ActionRefused, MessageRefused
from outbox_saga.instances import ENDED, SagaState, dump_progress, load_progress
from outbox_saga.saga.calls import SETTLING
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
    Surroundings,
    ToDo,
    Unusable,
)
from outbox_saga.saga.interventions import Intervention, intervene
from outbox_saga.saga.progress import arrived, decide, initial
from outbox_saga.saga.steps import DEFAULT_TIMEOUT

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LEASE = 30.0


class Data(BaseModel):
    n: int = 0


async def act(step: Any) -> None: ...


UNDO: list[Any] = [act, act, nothing_to_undo]


def never(data: Data) -> bool:
    return False


def always(data: Data) -> bool:
    return True


def fails(data: Data) -> bool:
    raise LookupError("secret")


WHEN: list[Any] = [None] * 6 + [always, never, never, fails]


class Paid(Event, topic="payments"):
    amount: int


class Cancelled(Event, topic="payments"):
    amount: int


@st.composite
def definitions(draw: st.DrawFn) -> Saga[Data]:
    """Graphs of one to six steps of every kind, sometimes with a pivot, or steps left out."""
    saga = Saga(
        "random",
        data=Data,
        max_parallel=draw(st.integers(1, 4)),
        deadline=draw(st.one_of(st.none(), st.none(), st.integers(1, 120))),
    )
    count = draw(st.integers(1, 6))
    names = [f"s{i}" for i in range(count)]
    pivot = draw(st.one_of(st.none(), st.none(), st.sampled_from(names)))
    for index, name in enumerate(names):
        after = draw(
            st.one_of(
                st.none(), st.sets(st.sampled_from(names[:index])) if index else st.just(set())
            )
        )
        kind = draw(st.sampled_from(["local", "idempotent", "query"]))
        undo, attempts = draw(st.sampled_from(UNDO)), draw(st.integers(1, 3))
        saga.step(
            name,
            act,
            compensation=undo,
            external=kind != "local",
            idempotent=kind == "idempotent",
            query=act if kind == "query" else None,
            after=None if after is None else sorted(after),
            pivot=name == pivot,
            when=draw(st.sampled_from(WHEN)) if name != pivot else None,
            retry=Retry(max_attempts=draw(st.integers(2, 3))),
            compensation_retry=None if undo is nothing_to_undo else Retry(max_attempts=attempts),
            timeout=5,
        )
    return saga.check()


def deadly_steps(definition: Saga[Data]) -> st.SearchStrategy[set[tuple[str, str]]]:
    """Of which steps the action, the compensation or the question kills whoever carries it out."""
    kinds = [(name, kind) for name in definition.steps for kind in ("do", "undo", "ask")]
    return st.one_of(st.just(set[tuple[str, str]]()), st.sets(st.sampled_from(kinds)))


@dataclass
class World:
    """What really happened outside: the other sides' ledgers and the local effects."""

    definition: Saga[Data]
    done: dict[str, int] = field(default_factory=dict)
    undone: dict[str, int] = field(default_factory=dict)
    order: list[tuple[str, str]] = field(default_factory=list)

    def do(self, name: str) -> None:
        steps = self.definition.steps
        assert steps[name].when in (None, always), f"{name} was carried out, and its when= says no"
        for before in self.past_what_was_left_out(name, lambda n: steps[n].after):
            there = self.done.get(before) and not self.undone.get(before)
            assert there, f"{name} ran, and {before}, which it waits for, was not there"
        # idempotent at the other side: the second time changes nothing
        if not self.done.get(name):
            self.done[name] = 1
            self.order.append(("do", name))

    def past_what_was_left_out(
        self, name: str, near: Callable[[str], Iterable[str]]
    ) -> Iterator[str]:
        """The steps next to this one; instead of one that is always left out, those next to it."""
        for other in near(name):
            if self.definition.steps[other].when is never:
                yield from self.past_what_was_left_out(other, near)
            else:
                yield other

    def undo(self, name: str) -> None:
        assert self.done.get(name), f"{name} was undone, but never done"
        steps = self.definition.steps
        for other in self.past_what_was_left_out(
            name, lambda n: [each.name for each in steps.values() if n in each.after]
        ):
            if self.done.get(other):
                free = steps[other].compensation is nothing_to_undo
                assert self.undone.get(other) or free, (
                    f"{name} was undone before {other}, which depends on it"
                )
        if not self.undone.get(name):
            self.undone[name] = 1
            self.order.append(("undo", name))


@settings(
    max_examples=1000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(definitions(), st.data())
def test_every_saga_ends_and_what_was_done_is_kept_or_undone_once_in_reverse(  # noqa: C901, PLR0915 - one life, from its start to its end
    definition: Saga[Data], data: st.DataObject
) -> None:
    world = World(definition)
    state = initial(definition, {"n": 0})
    now = START
    in_flight: dict[Flight, ToDo] = {}
    trouble = data.draw(st.integers(0, 60), label="outcomes drawn before all goes well")
    kinds: list[tuple[str, str]] = [
        (n, k) for n in definition.steps for k in ("do", "undo", "ask")
    ]
    deadly = data.draw(
        st.one_of(st.just(set[tuple[str, str]]()), st.sets(st.sampled_from(kinds))),
        label="kills the process every time",
    )
    deaths = 0  # since something was reported, as the row counts them
    revisions = 0
    due: dt.datetime | None = now
    begun_last: frozenset[Flight] = frozenset()

    def step(happened: Happened, unseen: frozenset[Flight] = frozenset()) -> Decision:
        """`unseen` began while this one was being reported."""
        nonlocal state, revisions, due, deaths, begun_last
        if not isinstance(happened, Resumed):
            deaths = 0
        flight: Flight | None = None
        if isinstance(happened, Done | Refused | Errored):
            flight = (happened.step, happened.direction)
        elif isinstance(happened, NotFound):
            flight = (happened.step, "do")
        if flight is not None:
            in_flight.pop(flight, None)
        decision = decide(
            definition,
            state,
            happened,
            Surroundings(now, frozenset(in_flight) - unseen, LEASE, "seed", START),
        )
        # what is stored is what is read back
        assert load_progress(dump_progress(decision.state)) == decision.state.steps
        revisions += 1
        state, due = decision.state, decision.due
        begun: dict[Flight, ToDo] = {
            (todo.step, "do" if isinstance(todo, Query) else todo.direction): todo
            for todo in decision.todo
        }
        begun_last = frozenset(begun.keys() - in_flight.keys())
        for flight, todo in begun.items():
            in_flight.setdefault(flight, todo)
        assert unseen or len(in_flight) <= definition.max_parallel + over
        return decision

    over = 0  # more than may run at once, because whoever reported did not see what had begun
    step(Resumed())
    turns = 0
    while state.status not in ENDED:
        turns += 1
        assert turns < 2000, f"it does not end: {state}"
        if not in_flight:
            assert due is not None, f"nothing runs and nothing is due: {state}"
            now = max(now, due)
            step(Resumed())
            continue
        ends = data.draw(st.sampled_from(sorted(in_flight)), label="ends next")
        todo, unseen = in_flight[ends], frozenset[Flight]()
        beside = trouble > 0 and begun_last and ends not in begun_last
        # two branches that end together: the second decides without the first one's successors
        if beside and data.draw(st.booleans(), label="together with the one before"):
            unseen = begun_last
        if (todo.step, _kind(todo)) in deadly:
            outcome = "crash"
        elif trouble <= 0:
            outcome = "ok"
        else:
            trouble -= 1
            outcome = data.draw(
                st.sampled_from(
                    ["ok", "no", "error", "lost", "done but lost", "never left", "crash"]
                )
            )
        note(f"{todo} -> {outcome}")
        now += dt.timedelta(seconds=1)
        if outcome == "crash":
            for other in in_flight.values():
                if isinstance(other, Call) and data.draw(st.booleans(), label="it had arrived"):
                    _act(world, other)
            in_flight.clear()
            now += dt.timedelta(seconds=LEASE)
            deaths += 1
            step(Resumed(deaths))
            continue
        happened = _outcome(world, todo, outcome)
        decision = step(happened, unseen)
        if isinstance(todo, Run) and isinstance(happened, Done):
            if any(entry.transition == "IGNORED" for entry in decision.entries):
                step(replace(happened, kept=False))  # rolled back
            else:
                _act(world, todo)
        over = max(0, len(in_flight) - definition.max_parallel)

    _check_end(definition, world, state)


def _kind(todo: ToDo) -> str:
    return "ask" if isinstance(todo, Query) else todo.direction


def _act(world: World, todo: Run | Call) -> None:
    if todo.direction == "do":
        world.do(todo.step)
    else:
        world.undo(todo.step)


def _outcome(world: World, todo: ToDo, outcome: str) -> Happened:
    if isinstance(todo, Query):
        if outcome in ("error", "lost", "done but lost", "no"):
            return Errored(todo.step, "do", todo.attempt + 1, "query failed", unknown=True)
        if world.done.get(todo.step):
            return Done(todo.step, "do", todo.attempt, {})
        return NotFound(todo.step, todo.attempt)
    if isinstance(todo, Run):
        if outcome == "ok":  # it acts by the commit that reports it
            return Done(todo.step, todo.direction, todo.attempt, _returned(world, todo))
        if outcome == "no":
            return Refused(todo.step, todo.direction, todo.attempt, "no")
        return Errored(todo.step, todo.direction, todo.attempt, "exception")
    ledger = world.done if todo.direction == "do" else world.undone
    if outcome == "ok" or (outcome == "no" and ledger.get(todo.step)):
        # under one key the other side cannot say no to what it has said yes to
        _act(world, todo)
        return Done(todo.step, todo.direction, todo.attempt, _returned(world, todo))
    if outcome == "no":
        return Refused(todo.step, todo.direction, todo.attempt, "declined")
    if outcome == "done but lost":
        _act(world, todo)
    unknown = outcome != "never left"
    return Errored(todo.step, todo.direction, todo.attempt, "no answer", unknown=unknown)


def _returned(world: World, todo: Run | Call) -> dict[str, int]:
    return {} if world.definition.parallel_to(todo.step) else {"n": 1}


def _check_end(definition: Saga[Data], world: World, state: SagaState) -> None:
    steps = definition.steps.values()
    if state.status == "completed":
        assert all(world.done.get(s.name) or s.when is never for s in steps)
        assert not world.undone
    elif state.status == "compensated":
        for rule in steps:
            kept = world.done.get(rule.name) and not world.undone.get(rule.name)
            assert not kept or rule.compensation is nothing_to_undo, f"{rule.name} was kept"
    else:
        assert state.reason, "stuck without a reason for a person"
        assert any(s.phase == "stuck" for s in state.steps.values())
    for name, step in state.steps.items():
        if step.phase == "done" and state.status != "stuck":
            assert world.done.get(name)
        rule = definition.steps[name]
        assert step.attempts < rule.retry.max_attempts + SETTLING.max_attempts
        assert step.undo_attempts <= rule.compensation_retry.max_attempts


@pytest.mark.parametrize("how", ["when", "seconds", "early no"])
def test_a_branch_that_fails_as_it_begins_lets_no_other_begin_beside_its_undoing(how: str) -> None:
    """Found by the test above: what they wait for was undone while the other one ran."""
    saga = Saga("s", data=Data).step("first", act, compensation=act)
    saga.step("second", act, compensation=act, after="first")
    if how == "when":
        saga.step("third", act, compensation=act, after="first", when=fails)
    elif how == "seconds":
        saga.timer("third", lambda _: -1.0, after="first")
    else:
        saga.wait_for("third", Paid, timeout=9.0, after="first", fails_on=Cancelled)
    state = initial(saga.check(), {"n": 0})
    if how == "early no":
        state = state.with_step("third", early_no="it will not come")

    decision = decide(
        saga,
        state,
        Done("first", "do", 1, {}),
        Surroundings(START, frozenset(), LEASE, "s", START),
    )

    assert decision.state.status == "compensating"
    assert decision.todo == (Run("first", "undo", 1),)


def test_progress_is_stored_without_defaults_so_that_rows_stay_small() -> None:
    definition = Saga("small", data=Data).step("a", act, compensation=act).check()

    stored = dump_progress(initial(definition, {"n": 0}))

    assert json.loads(stored) == {"steps": {"a": {"phase": "waiting"}}}


def _linear() -> Saga[Data]:
    return (
        Saga("linear", data=Data)
        .step("reserve", act, compensation=act)
        .step("charge", act, compensation=act, external=True, idempotent=True)
        .step("book", act, compensation=act)
        .check()
    )


def _around(now: dt.datetime = START, *flights: Flight) -> Surroundings:
    return Surroundings(now, frozenset(flights), LEASE, "seed")


def test_an_intent_is_in_the_state_before_the_call_is_asked_for() -> None:
    definition = _linear()

    decision = decide(
        definition,
        initial(definition, {"n": 0}),
        Done("reserve", "do", 1, {"n": 7}),
        _around(),
    )

    assert decision.todo == (Call("charge", "do", 1),)
    charge = decision.state.steps["charge"]
    assert (charge.phase, charge.attempts, charge.input) == ("calling", 1, {"n": 7})
    assert [e.transition for e in decision.entries] == ["STEP_COMPLETED", "RUNNING"]


def test_every_later_attempt_of_a_call_gets_the_input_of_the_first() -> None:
    definition = _linear()
    state = decide(
        definition, initial(definition, {"n": 0}), Done("reserve", "do", 1, {"n": 7}), _around()
    ).state
    changed = SagaState(state.status, {"n": 99}, state.steps)

    again = decide(definition, changed, Resumed(), _around())

    assert again.todo == (Call("charge", "do", 2),)
    assert again.state.steps["charge"].input == {"n": 7}


def test_a_call_that_is_in_flight_here_is_not_made_twice() -> None:
    definition = _linear()
    state = decide(
        definition, initial(definition, {"n": 0}), Done("reserve", "do", 1), _around()
    ).state

    assert decide(definition, state, Resumed(), _around(START, ("charge", "do"))).todo == ()


def test_what_runs_settles_before_anything_is_undone() -> None:
    definition = (
        Saga("parallel", data=Data)
        .step("reserve", act, compensation=act)
        .step("left", act, compensation=act, after="reserve")
        .step("right", act, compensation=act, after="reserve")
        .check()
    )
    state = initial(definition, {"n": 0})
    started = decide(definition, state, Done("reserve", "do", 1), _around())
    assert started.todo == (Run("left", "do", 1), Run("right", "do", 1))

    failed = decide(
        definition, started.state, Refused("left", "do", 1, "no"), _around(START, ("right", "do"))
    )
    assert failed.todo == ()
    settled = decide(definition, failed.state, Done("right", "do", 1), _around())

    assert settled.todo == (Run("right", "undo", 1),)


def test_an_unknown_outcome_stays_unknown_when_a_later_attempt_never_left() -> None:
    definition = _linear()
    state = initial(definition, {"n": 0})
    state = decide(definition, state, Done("reserve", "do", 1), _around()).state
    lost = Errored("charge", "do", 1, "no answer", unknown=True)
    state = decide(definition, state, lost, _around()).state
    never_left = Errored("charge", "do", 3, "connection refused")

    decision = decide(definition, state, never_left, _around())

    assert decision.state.status == "running"
    assert decision.state.steps["charge"].phase == "calling"


def test_a_late_success_is_undone_even_after_the_saga_was_compensated() -> None:
    definition = _linear()
    state = initial(definition, {"n": 0})
    state = decide(definition, state, Done("reserve", "do", 1), _around()).state
    state = decide(definition, state, Refused("charge", "do", 1, "declined"), _around()).state
    ended = decide(definition, state, Done("reserve", "undo", 1), _around()).state
    assert ended.status == "compensated"

    late = decide(definition, ended, Done("charge", "do", 1, {}), _around())

    assert late.state.status == "compensating"
    assert late.todo == (Call("charge", "undo", 1),)


def _beside_the_pivot() -> Saga[Data]:
    return (
        Saga("pivotal", data=Data)
        .step("reserve", act, compensation=act)
        .step("pay", act, external=True, idempotent=True, pivot=True)
        .step("notify", act, compensation=act, after="reserve")
        .step("ship", act, after="pay")
        .check()
    )


def test_a_failure_beside_a_pivot_that_is_under_way_waits_for_it_and_then_undoes_nothing() -> None:
    definition = _beside_the_pivot()
    state = initial(definition, {"n": 0})
    state = decide(definition, state, Done("reserve", "do", 1), _around()).state
    failed = decide(
        definition, state, Refused("notify", "do", 1, "no address"), _around(START, ("pay", "do"))
    )
    assert (failed.state.status, failed.todo) == ("compensating", ())

    paid = decide(definition, failed.state, Done("pay", "do", 1), _around())

    assert paid.state.status == "running"
    assert paid.todo == (Run("ship", "do", 1),)
    ended = decide(definition, paid.state, Done("ship", "do", 1), _around()).state
    assert (ended.status, ended.reason) == ("stuck", "notify: beside the pivot: no address")
    assert ended.steps["reserve"].phase == "done"


def test_a_failure_beside_a_pivot_that_fails_too_undoes_everything() -> None:
    definition = _beside_the_pivot()
    state = initial(definition, {"n": 0})
    state = decide(definition, state, Done("reserve", "do", 1), _around()).state
    around = _around(START, ("pay", "do"))
    state = decide(definition, state, Refused("notify", "do", 1, "no address"), around).state

    decision = decide(definition, state, Refused("pay", "do", 1, "declined"), _around())

    assert decision.todo == (Run("reserve", "undo", 1),)


def test_an_answer_that_does_not_fit_after_the_pivot_is_stuck_and_undoes_nothing() -> None:
    definition = _beside_the_pivot()
    state = initial(definition, {"n": 0})
    state = decide(definition, state, Done("reserve", "do", 1), _around()).state
    state = decide(definition, state, Done("notify", "do", 1), _around(START, ("pay", "do"))).state

    decision = decide(definition, state, Unusable("pay", 1, "does not fit"), _around())

    assert (decision.state.status, decision.state.reason) == ("stuck", "pay: does not fit")
    assert decision.state.steps["reserve"].phase == "done"


def test_a_compensation_that_says_no_leaves_the_saga_stuck_with_the_reason() -> None:
    definition = _linear()
    state = initial(definition, {"n": 0})
    state = decide(definition, state, Done("reserve", "do", 1), _around()).state
    state = decide(definition, state, Refused("charge", "do", 1, "declined"), _around()).state

    decision = decide(definition, state, Refused("reserve", "undo", 1, "gone"), _around())

    assert decision.state.status == "stuck"
    assert decision.state.reason == "reserve: gone"
    assert [e.transition for e in decision.entries] == ["COMPENSATION_FAILED", "FAILED"]


def test_a_query_is_not_believed_before_the_call_can_no_longer_be_on_its_way() -> None:
    definition = (
        Saga("asking", data=Data)
        .step("charge", act, compensation=act, external=True, query=act, timeout=5)
        .check()
    )
    decision = decide(definition, initial(definition, {"n": 0}), Resumed(), _around())
    assert decision.todo == (Call("charge", "do", 1),)

    lost = decide(
        definition,
        decision.state,
        Errored("charge", "do", 1, "no answer", unknown=True),
        _around(START + dt.timedelta(seconds=5)),
    )

    assert lost.todo == ()
    assert lost.due == START + dt.timedelta(seconds=LEASE + 5)
    assert lost.due is not None
    asked = decide(definition, lost.state, Resumed(), _around(lost.due))
    assert asked.todo == (Query("charge", 1),)


# --- what is left out, how many at once, how long ------------------------------------------------


def test_a_step_whose_when_says_no_is_left_out_and_what_waits_for_it_goes_on() -> None:
    definition = (
        Saga("some", data=Data)
        .step("count", act, compensation=act)
        .step("gift", act, compensation=act, when=lambda data: data.n > 5)
        .step("wrap", act, compensation=act, when=lambda data: data.n < 5)
        .step("send", act, compensation=act)
        .check()
    )
    state = initial(definition, {"n": 0})

    decision = decide(definition, state, Done("count", "do", 1, {"n": 7}), _around())
    assert decision.todo == (Run("gift", "do", 1),)
    assert decision.state.steps["gift"].chosen

    decision = decide(definition, decision.state, Done("gift", "do", 1, {"n": 2}), _around())
    assert decision.todo == (Run("wrap", "do", 1),)

    decision = decide(definition, decision.state, Done("wrap", "do", 1, {"n": 9}), _around())
    decision = decide(definition, decision.state, Done("send", "do", 1), _around())
    assert decision.state.status == "completed"


def test_a_saga_of_which_every_last_step_is_left_out_is_completed() -> None:
    definition = (
        Saga("some", data=Data)
        .step("count", act, compensation=act)
        .step("gift", act, compensation=act, when=never)
        .check()
    )

    decision = decide(definition, initial(definition, {"n": 0}), Done("count", "do", 1), _around())

    assert decision.state.status == "completed"
    assert [e.transition for e in decision.entries] == [
        "STEP_COMPLETED",
        "STEP_SKIPPED",
        "COMPLETED",
    ]


def test_when_is_asked_once_and_its_yes_outlives_a_change_of_the_data() -> None:
    asked: list[int] = []

    def when(data: Data) -> bool:
        asked.append(data.n)
        return True

    definition = Saga("once", data=Data).step("a", act, compensation=act, when=when).check()
    state = decide(definition, initial(definition, {"n": 1}), Resumed(), _around()).state
    failed = Errored("a", "do", 1, "exception")
    state = decide(definition, state, failed, _around()).state
    decide(definition, state, Resumed(), _around(START + dt.timedelta(hours=1)))

    assert asked == [1]


def test_a_when_that_raises_undoes_the_saga_and_shows_no_data() -> None:
    definition = (
        Saga("odd", data=Data)
        .step("a", act, compensation=act)
        .step("b", act, compensation=act, when=fails)
        .check()
    )

    decision = decide(definition, initial(definition, {"n": 0}), Done("a", "do", 1), _around())

    assert decision.todo == (Run("a", "undo", 1),)
    assert decision.state.reason == "b: its when= raised LookupError"


def _wide(**options: Any) -> Saga[Data]:
    saga = Saga("wide", data=Data, **options)
    for name in "abcd":
        saga.step(name, act, compensation=act, after=())
    return saga.check()


def test_no_more_steps_are_carried_out_at_once_than_the_saga_allows() -> None:
    definition = _wide(max_parallel=2)
    decision = decide(definition, initial(definition, {"n": 0}), Resumed(), _around())
    assert decision.todo == (Run("a", "do", 1), Run("b", "do", 1))

    decision = decide(definition, decision.state, Done("b", "do", 1), _around(START, ("a", "do")))
    assert decision.todo == (Run("c", "do", 1),)


def test_two_parallel_steps_that_return_one_field_are_told_so() -> None:
    definition = _wide()
    state = decide(
        definition, initial(definition, {"n": 0}), Done("a", "do", 1, {"n": 1}), _around()
    ).state

    with pytest.raises(MessageRefused, match=r"\$\.n: steps a and b run in parallel"):
        decide(definition, state, Done("b", "do", 1, {"n": 2}), _around())


def _until(seconds: float, *flights: Flight) -> Surroundings:
    now = START + dt.timedelta(seconds=seconds)
    return Surroundings(now, frozenset(flights), LEASE, "seed", START)


def _hurried(pivot: bool = False) -> Saga[Data]:
    return (
        Saga("hurried", data=Data, deadline=60)
        .step("reserve", act, compensation=act)
        .step("pay", act, compensation=act, pivot=pivot)
        .step("send", act, compensation=act)
        .check()
    )


def test_a_saga_whose_deadline_passes_lets_what_runs_settle_and_is_undone() -> None:
    definition = _hurried()
    state = decide(
        definition, initial(definition, {"n": 0}), Done("reserve", "do", 1), _until(1)
    ).state
    over = decide(definition, state, Resumed(), _until(60, ("pay", "do")))
    assert (over.state.status, over.todo) == ("compensating", ())
    assert over.state.reason == "its deadline of 60 s has passed"

    settled = decide(definition, over.state, Done("pay", "do", 1), _until(61))

    assert settled.todo == (Run("pay", "undo", 1),)


def test_a_saga_that_waits_for_longer_than_its_deadline_is_looked_at_when_it_passes() -> None:
    definition = _hurried()
    state = initial(definition, {"n": 0}).with_step(
        "reserve", due=START + dt.timedelta(seconds=500)
    )

    decision = decide(definition, state, Resumed(), _until(10))

    assert decision.due == START + dt.timedelta(seconds=60)


def test_a_deadline_undoes_nothing_once_the_pivot_was_carried_out() -> None:
    definition = _hurried(pivot=True)
    state = decide(
        definition, initial(definition, {"n": 0}), Done("reserve", "do", 1), _until(1)
    ).state
    state = decide(definition, state, Done("pay", "do", 1), _until(2)).state

    late = decide(definition, state, Resumed(), _until(1000))

    assert (late.state.status, late.todo) == ("running", (Run("send", "do", 1),))


# --- steps that wait -----------------------------------------------------------------------------


def _patient(**options: Any) -> Saga[Data]:
    return (
        Saga("patient", data=Data, **options)
        .step("order", act, compensation=act)
        .wait_for("paid", Paid, timeout=100, take=lambda paid: {"n": paid.amount})
        .timer("cool", 30)
        .step("send", act, compensation=act)
        .check()
    )


def _ordered(definition: Saga[Data]) -> SagaState:
    state = initial(definition, {"n": 0})
    return decide(definition, state, Done("order", "do", 1), _until(1)).state


def test_a_saga_waits_for_its_event_and_then_for_its_time_and_goes_on() -> None:
    definition = _patient()
    state = initial(definition, {"n": 0})
    waits = decide(definition, state, Done("order", "do", 1), _until(1))
    assert (waits.todo, waits.busy) == ((), False)
    assert waits.due == START + dt.timedelta(seconds=101)

    state, entries = arrived(definition, waits.state, "paid", {"n": 5})
    assert [e.transition for e in entries] == ["STEP_COMPLETED"]
    assert state.data == {"n": 5}
    cools = decide(definition, state, Resumed(), _until(50))
    assert cools.due == START + dt.timedelta(seconds=80)

    early = decide(definition, cools.state, Resumed(), _until(79))
    assert (early.todo, early.due) == ((), START + dt.timedelta(seconds=80))

    assert decide(definition, early.state, Resumed(), _until(80)).todo == (Run("send", "do", 1),)


def test_an_event_that_comes_before_its_step_is_kept_for_it() -> None:
    definition = _patient()
    state, entries = arrived(definition, initial(definition, {"n": 0}), "paid", {"n": 5})
    assert [e.transition for e in entries] == ["EVENT_STORED"]
    assert load_progress(dump_progress(state)) == state.steps

    again, entries = arrived(definition, state, "paid", {"n": 6})
    assert (again, [e.transition for e in entries]) == (state, ["IGNORED"])

    decision = decide(definition, state, Done("order", "do", 1), _until(1))

    assert decision.state.steps["paid"].phase == "done"
    assert decision.state.data == {"n": 5}
    assert decision.state.steps["cool"].phase == "listening"


def test_an_event_that_does_not_come_in_time_undoes_the_saga_and_is_ignored_afterwards() -> None:
    definition = _patient()
    state = _ordered(definition)

    decision = decide(definition, state, Resumed(), _until(101))

    assert decision.todo == (Run("order", "undo", 1),)
    assert decision.state.reason == "paid: no Paid came within 100 s"
    late, entries = arrived(definition, decision.state, "paid", {"n": 5})
    assert (late, [e.transition for e in entries]) == (decision.state, ["IGNORED"])


def test_a_deadline_ends_the_waiting_for_an_event() -> None:
    definition = _patient(deadline=60)
    state = _ordered(definition)
    assert decide(definition, state, Resumed(), _until(2)).due == START + dt.timedelta(seconds=60)

    decision = decide(definition, state, Resumed(), _until(60))

    assert decision.todo == (Run("order", "undo", 1),)
    assert decision.state.reason == "its deadline of 60 s has passed"


def test_a_timer_whose_time_cannot_be_told_undoes_the_saga() -> None:
    definition = (
        Saga("odd", data=Data)
        .step("order", act, compensation=act)
        .timer("cool", lambda data: float("nan"))
        .check()
    )

    decision = decide(definition, initial(definition, {"n": 0}), Done("order", "do", 1), _until(1))

    assert decision.todo == (Run("order", "undo", 1),)
    assert "how long to wait could not be told" in (decision.state.reason or "")


def test_an_early_event_that_no_longer_fits_undoes_the_saga_instead_of_stopping_it() -> None:
    definition = (
        Saga("beside", data=Data)
        .step("count", act, compensation=act)
        .wait_for("paid", Paid, timeout=100, take=lambda paid: {"n": paid.amount})
        .step("other", act, compensation=act, after=())
        .check()
    )
    state, _ = arrived(definition, initial(definition, {"n": 0}), "paid", {"n": 5})
    state = decide(
        definition, state, Done("other", "do", 1, {"n": 1}), _until(1, ("count", "do"))
    ).state

    decision = decide(definition, state, Done("count", "do", 1), _until(2))

    assert decision.state.status == "compensating"
    assert "paid: what its event brought does not fit" in (decision.state.reason or "")


def test_the_lease_of_an_orchestrator_does_not_last_as_long_as_sagas_wait() -> None:
    definition = _patient()
    assert max(step.timeout for step in definition.steps.values()) == DEFAULT_TIMEOUT


def test_of_a_call_whose_process_died_each_time_nobody_knows_what_came_of_it() -> None:
    definition = _linear()
    state = initial(definition, {"n": 0})
    state = decide(definition, state, Done("reserve", "do", 1), _around()).state
    state = state.with_step("charge", attempts=definition.steps["charge"].retry.max_attempts + 23)

    stuck = decide(definition, state, Resumed(), _around()).state

    assert (stuck.status, stuck.steps["charge"].unknown) == ("stuck", True)


@pytest.mark.parametrize("unknown", [True, False])
def test_a_compensation_gets_a_new_key_only_where_it_was_certainly_not_carried_out(
    unknown: bool,
) -> None:
    definition = _linear()
    state = initial(definition, {"n": 0})
    state = decide(definition, state, Done("reserve", "do", 1), _around()).state
    state = decide(definition, state, Done("charge", "do", 1, {}), _around()).state
    state = decide(definition, state, Refused("book", "do", 1, "closed"), _around()).state
    last = definition.steps["charge"].compensation_retry.max_attempts
    lost = Errored("charge", "undo", last - 1, "no answer", unknown=True)
    state = decide(definition, state, lost, _around()).state
    ended = (
        Errored("charge", "undo", last, "connection refused")
        if unknown
        else Refused("charge", "undo", last, "there is no such charge")
    )
    stuck = decide(definition, state, ended, _around()).state
    assert stuck.steps["charge"].phase == "stuck"
    again = Intervention("retry", "charge", "ada", new_key=True)

    if unknown:
        with pytest.raises(ActionRefused, match="might be carried out twice"):
            intervene(definition, stuck, again)
    else:
        assert intervene(definition, stuck, again)[0].steps["charge"].generation == 1
