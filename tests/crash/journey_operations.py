"""Sagas of every kind of transition, from their start to their end, as operations to disturb."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from outbox_saga.instances import Instance
from outbox_saga.saga.operating import SagaOperations
from tests.crash import journeys
from tests.crash.agency import Agency
from tests.crash.journey_oracle import Expected
from tests.crash.journeys import ADA, Journey, brings, decides, everything_comes_again
from tests.crash.operation import Operation, nothing


def _journey(
    saga: str,
    keeps: Collection[str],
    *moves: journeys.Move,
    ends: str = "completed",
    car: str = "red",
    starts: Any = journeys.start,
    **expected: Any,
) -> Operation:
    journey = Journey(moves, car, starts)
    wanted = Expected(saga, tuple(ends.split(" ")), keeps, **expected)
    return Operation(
        f"journey {saga}",
        nothing,
        journey.go,
        broker="local",
        sagas=(saga,),
        again=journey.go,
        rest=nothing,
        repeat=everything_comes_again,
        judge=wanted.judge,
        shop=Agency,
        # whoever is cancelled there knows nothing of what the other side does afterwards
        cancels=not wanted.unknowable,
    )


def _retry(sagas: SagaOperations, seen: Instance) -> Any:
    return sagas.retry(seen, "wrap", ADA)


def _skip(sagas: SagaOperations, seen: Instance) -> Any:
    return sagas.skip(seen, "wrap", ADA)


def _mark(sagas: SagaOperations, seen: Instance) -> Any:
    return sagas.mark_done(seen, "wrap", ADA, {"booked": True})


def _resume(sagas: SagaOperations, seen: Instance) -> Any:
    return sagas.resume(seen, ADA)


def _cancel(sagas: SagaOperations, seen: Instance) -> Any:
    return sagas.cancel(seen, ADA)


BOTH = ("book", "charge")
THREE = (*BOTH, "settle")
PAID, DECLINED = journeys.paid(), journeys.declined()

SAGA_GROUPS: dict[str, tuple[Operation, ...]] = {
    "commanding": (
        _journey("command", ("book", "car")),
        _journey("command-refused", (), car="none", ends="compensated"),
        _journey("command-lost", ("book", "car")),
        _journey("command-unanswered", (), ends="compensated"),
        _journey("answer-lost", ("book", "car")),
        _journey("commands-undone", (), ends="compensated"),
    ),
    "waiting": (
        _journey("event-in-time", ("book", "settle"), brings(PAID, when=journeys.listening)),
        _journey(
            "event-early",
            ("book", "settle"),
            brings(PAID, when=journeys.at_once),
            tells={"completed": ["EVENT_STORED paid", "STEP_COMPLETED paid"]},
        ),
        _journey("event-missing", (), ends="compensated"),
        _journey("event-no", (), brings(DECLINED, when=journeys.listening), ends="compensated"),
        _journey(
            "event-no-early", (), brings(DECLINED, when=journeys.at_once), ends="compensated"
        ),
        _journey(
            "two-events",
            ("book",),
            brings(PAID, when=journeys.for_the("deposit")),
            brings(journeys.paid(2), when=journeys.for_the("rest")),
            data={"deposit": 1, "paid": 2},
        ),
        _journey("timer", BOTH, tells={"completed": ["STEP_COMPLETED cool"]}),
        _journey("deadline", (), ends="compensated"),
        _journey(
            "deadline-beyond-pivot",
            BOTH,
            brings(PAID, when=journeys.late),
            ends="completed compensated",
            tells={"completed": ["STEP_COMPLETED paid"]},
        ),
    ),
    "ordering": (
        _journey("parallel", ("book", "charge", "settle", "wrap", "end")),
        _journey("branch-fails", (), ends="compensated"),
        _journey("pivot", ("book", "charge", "wrap")),
        _journey("when", ("book", "settle"), tells={"completed": ["STEP_SKIPPED bike"]}),
        _journey("breaker", BOTH, tells={"completed": ["BREAKER_OPENED charge"]}),
    ),
    "undoing": (
        _journey("kinds-undone", (), ends="compensated"),
        _journey("commands-and-functions", (), ends="compensated"),
        _journey(
            "event-undone",
            (),
            brings(PAID, when=journeys.listening),
            ends="compensated",
            undoes_alone=("paid",),
        ),
    ),
    "intervening": (
        _journey("retried", (*THREE, "wrap"), decides(_retry), acts=("saga.retry",)),
        _journey("skipped", THREE, decides(_skip), acts=("saga.skip",)),
        _journey("marked-done", THREE, decides(_mark), acts=("saga.mark_done",)),
        _journey(
            "undoing-resumed", (), decides(_resume), ends="compensated", acts=("saga.resume",)
        ),
        _journey(
            "undoing-skipped",
            (),
            decides(_skip),
            ends="compensated",
            stays=("wrap",),
            acts=("saga.skip",),
        ),
        _journey(
            "cancelled",
            (),
            decides(_cancel, when="running", mends=False),
            ends="compensated",
            acts=("saga.cancel",),
        ),
    ),
    "changing-hands": (
        _journey(
            "parked",
            ("book", "settle"),
            journeys.parks,
            tells={"completed": ["PARKED", "UNPARKED"]},
        ),
        _journey("overtaken", BOTH, journeys.is_overtaken),
        _journey(
            "late-success",
            BOTH,
            journeys.is_overtaken,
            ends="completed compensated",
            unknowable=("charge",),
        ),
        _journey("started", ("book", "car")),
        _journey("started-async", ("book", "car"), starts=journeys.start_async),
    ),
}
