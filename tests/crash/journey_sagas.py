"""The agency's sagas: one for each kind of transition, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from outbox_saga import Breaker, Retry, Saga, external, local, nothing_to_undo
from tests.crash import agency as ours

if TYPE_CHECKING:
    from tests.crash.agency import Agency

Define = Callable[["Agency"], Saga[Any]]

AGES = 40 * 86_400.0  # seconds: longer than any recovery is later
ANSWER_IN = 100.0
DEADLINE = 900.0
TIMER = 60.0
SHORT = 300.0  # that an event is waited for which does not come
# longer than any run takes, so that what is due does not depend on how fast this machine is
LATER: dict[str, float] = {"initial": 50.0, "max_delay": 50.0}
ONCE = Retry(max_attempts=1)
TWICE = Retry(max_attempts=2, **LATER)
OFTEN = Retry(max_attempts=12, **LATER)
IDEMPOTENT: dict[str, Any] = {"external": True, "idempotent": True}
CAR: dict[str, Any] = {
    "compensation": ours.ReturnCar,
    "timeout": ANSWER_IN,
    "retry": Retry(max_attempts=5),  # one for each recovery, which comes later than any answer
}

FEW: dict[str, Any] = {**CAR, "retry": TWICE}


def _begun(agency: Agency, name: str, **options: Any) -> Saga[Any]:
    return Saga(name, data=ours.Trip, **options).step(
        "book", agency.book, compensation=agency.unbook
    )


def _refused(agency: Agency, saga: Saga[Any]) -> Saga[Any]:
    return saga.step("refuse", agency.refuse, compensation=nothing_to_undo)


def _take(paid: Any) -> dict[str, int]:
    return {"paid": paid.cents}


def _told(name: str) -> dict[str, Any]:
    return {"name": name, "events": ours.Travels, "step_events": True}


# --- commands ------------------------------------------------------------------------------------


def _command(name: str, **options: Any) -> Define:
    return lambda agency: _begun(agency, name, **options).step("car", ours.RentCar, **CAR)


def _unanswered(agency: Agency) -> Saga[Any]:
    return _begun(agency, "command-unanswered").step("car", ours.RentCar, **FEW)


def _commands_undone(agency: Agency) -> Saga[Any]:
    saga = Saga("commands-undone", data=ours.Trip, events=ours.Travels)
    saga.step("car", ours.RentCar, **CAR)
    saga.step("bike", ours.RentBike, compensation=ours.ReturnBike, timeout=ANSWER_IN)
    return _refused(agency, saga)


# --- waiting -------------------------------------------------------------------------------------


def _event(name: str, timeout: float, **options: Any) -> Define:
    def define(agency: Agency) -> Saga[Any]:
        return (
            _begun(agency, name, events=ours.Travels, step_events=name == "event-in-time")
            .wait_for("paid", ours.Paid, timeout=timeout, take=_take, **options)
            .step("settle", agency.settle, compensation=agency.settle)
        )

    return define


def _two_events(agency: Agency) -> Saga[Any]:
    saga = _begun(agency, "two-events")
    saga.wait_for("deposit", ours.Paid, timeout=AGES, take=lambda p: {"deposit": p.cents})
    return saga.wait_for("rest", ours.Paid, timeout=AGES, take=lambda p: {"paid": p.cents})


def _timer(agency: Agency) -> Saga[Any]:
    return (
        _begun(agency, "timer")
        .timer("cool", TIMER)
        .step("charge", agency.charge, compensation=agency.refund, **IDEMPOTENT)
    )


# --- order ---------------------------------------------------------------------------------------


def _parallel(name: str, *, undone: bool) -> Define:
    def define(agency: Agency) -> Saga[Any]:
        options: dict[str, Any] = {"after": "book"}
        saga = (
            _begun(agency, name)
            .step(
                "charge",
                agency.charge,
                compensation=agency.refund,
                writes="charged",
                **IDEMPOTENT,
                **options,
            )
            .step("settle", agency.settle, compensation=agency.settle, writes=(), **options)
            .step("wrap", agency.book, compensation=agency.unbook, writes="booked", **options)
        )
        if undone:
            saga.step("refuse", agency.refuse, compensation=nothing_to_undo, writes=(), **options)
        joined = [*("charge", "settle", "wrap"), *(["refuse"] if undone else [])]
        return saga.step("end", agency.settle, compensation=agency.settle, after=joined)

    return define


def _pivot(agency: Agency) -> Saga[Any]:
    return (
        _begun(agency, "pivot", events=ours.Travels)
        .step("charge", agency.charge, pivot=True, retry=OFTEN, **IDEMPOTENT)
        .step("wrap", agency.book_at_last, retry=OFTEN)
    )


def _when(agency: Agency) -> Saga[Any]:
    return (
        _begun(agency, "when", events=ours.Travels, step_events=True)
        .step("bike", agency.settle, compensation=agency.settle, when=lambda t: t.car == "none")
        .step("settle", agency.settle, compensation=agency.settle, when=lambda t: t.booked)
    )


def _breaker(agency: Agency) -> Saga[Any]:
    return _begun(agency, "breaker").step(
        "charge",
        agency.charge_unless_down,
        compensation=agency.refund,
        retry=OFTEN,
        breaker=Breaker("crash", failures=2, seconds=60.0),
        **IDEMPOTENT,
    )


def _deadline(agency: Agency) -> Saga[Any]:
    return (
        _begun(agency, "deadline", deadline=DEADLINE, events=ours.Travels)
        .step("charge", agency.charge, compensation=agency.refund, **IDEMPOTENT)
        .wait_for("paid", ours.Paid, timeout=AGES, take=_take)
    )


def _beyond(agency: Agency) -> Saga[Any]:
    return (
        _begun(agency, "deadline-beyond-pivot", deadline=DEADLINE)
        .step("charge", agency.charge, pivot=True, retry=OFTEN, **IDEMPOTENT)
        .wait_for("paid", ours.Paid, timeout=AGES, take=_take)
    )


# --- undoing by another kind ---------------------------------------------------------------------


def _kinds_undone(agency: Agency) -> Saga[Any]:
    saga = (
        Saga("kinds-undone", data=ours.Trip)
        .step("local", agency.book, compensation=external(agency.refund))
        .step("charge", agency.charge, compensation=local(agency.unbook), **IDEMPOTENT)
        .step("settle", agency.settle, compensation=agency.settle)
        .step("call", agency.charge_in_thread, compensation=agency.refund_in_thread, **IDEMPOTENT)
    )
    return _refused(agency, saga)


def _commands_and_functions(agency: Agency) -> Saga[Any]:
    saga = (
        Saga("commands-and-functions", data=ours.Trip)
        .step("local", agency.book, compensation=ours.PayBack, compensation_timeout=ANSWER_IN)
        .step("car", ours.RentCar, compensation=agency.unbook, timeout=ANSWER_IN)
        .step("bike", ours.RentBike, compensation=external(agency.refund), timeout=ANSWER_IN)
    )
    return _refused(agency, saga)


def _event_undone(agency: Agency) -> Saga[Any]:
    saga = _begun(agency, "event-undone").wait_for(
        "paid",
        ours.Paid,
        timeout=AGES,
        take=_take,
        compensation=ours.PayBack,
        compensation_timeout=ANSWER_IN,
    )
    return _refused(agency, saga)


# --- people, and other processes -----------------------------------------------------------------


def _stuck(name: str, **options: Any) -> Define:
    def define(agency: Agency) -> Saga[Any]:
        return (
            _begun(agency, name, **options)
            .step("charge", agency.charge, pivot=True, retry=OFTEN, **IDEMPOTENT)
            .step("wrap", agency.book_when_mended, retry=TWICE)
            .step("settle", agency.settle)
        )

    return define


def _stuck_undoing(name: str) -> Define:
    def define(agency: Agency) -> Saga[Any]:
        saga = (
            Saga(name, data=ours.Trip, events=ours.Travels)
            .step("settle", agency.settle, compensation=agency.settle)
            .step(
                "wrap",
                agency.book,
                compensation=agency.unbook_when_mended,
                compensation_retry=TWICE,
            )
        )
        return _refused(agency, saga)

    return define


def _cancelled(agency: Agency) -> Saga[Any]:
    return (
        _begun(agency, "cancelled", events=ours.Travels)
        .step("charge", agency.charge, compensation=agency.refund, **IDEMPOTENT)
        .wait_for("paid", ours.Paid, timeout=AGES, take=_take)
    )


def _parked(agency: Agency) -> Saga[Any]:
    return _begun(agency, "parked", events=ours.Travels).step(
        "settle", agency.settle, compensation=agency.settle
    )


def other_shape(agency: Agency) -> Saga[Any]:
    """Of the same name and version as `parked`, and not what its instances were started with."""
    return (
        Saga("parked", data=ours.Trip)
        .step("settle", agency.charge, compensation=agency.refund, **IDEMPOTENT)
        .step("book", agency.refuse, compensation=nothing_to_undo)
    )


def _overtaken(agency: Agency) -> Saga[Any]:
    return _begun(agency, "overtaken").step(
        "charge", agency.charge_slowly, compensation=agency.refund, **IDEMPOTENT
    )


def _late_success(agency: Agency) -> Saga[Any]:
    return _begun(agency, "late-success", events=ours.Travels).step(
        "charge",
        agency.charge_too_late,
        compensation=agency.refund,
        external=True,
        query=agency.was_charged,
        retry=ONCE,
    )


DEFINED: dict[str, Define] = {
    "command": _command("command", events=ours.Travels, step_events=True),
    "command-refused": _command("command-refused"),
    "command-lost": _command("command-lost"),
    "command-unanswered": _unanswered,
    "answer-lost": _command("answer-lost"),
    "commands-undone": _commands_undone,
    "event-in-time": _event("event-in-time", AGES),
    "event-early": _event("event-early", AGES, business_key=lambda paid: f"trip:{paid.trip}"),
    "event-missing": _event("event-missing", SHORT),
    "event-no": _event("event-no", AGES, fails_on=ours.Declined),
    "event-no-early": _event("event-no-early", AGES, fails_on=ours.Declined),
    "two-events": _two_events,
    "timer": _timer,
    "parallel": _parallel("parallel", undone=False),
    "branch-fails": _parallel("branch-fails", undone=True),
    "pivot": _pivot,
    "when": _when,
    "breaker": _breaker,
    "deadline": _deadline,
    "deadline-beyond-pivot": _beyond,
    "kinds-undone": _kinds_undone,
    "commands-and-functions": _commands_and_functions,
    "event-undone": _event_undone,
    "retried": _stuck("retried", events=ours.Travels),
    "skipped": _stuck("skipped"),
    "marked-done": _stuck("marked-done"),
    "undoing-resumed": _stuck_undoing("undoing-resumed"),
    "undoing-skipped": _stuck_undoing("undoing-skipped"),
    "cancelled": _cancelled,
    "parked": _parked,
    "overtaken": _overtaken,
    "late-success": _late_success,
    "started": _command("started", events=ours.Travels),
    "started-async": _command("started-async", events=ours.Travels),
}
