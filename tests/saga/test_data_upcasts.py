"""Instances of an older version, of which only the data was another, go on as the newer one's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from outbox_saga import Decision, Event, Retry, Saga, Service
from outbox_saga.envelopes import seal
from outbox_saga.errors import ActionRefused, DefinitionError
from outbox_saga.ids import new_id
from outbox_saga.queries import leases
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.leases import Known
from outbox_saga.saga.happened import Done
from outbox_saga.saga.interventions import Intervention
from outbox_saga.saga.operating import SagaOperations
from outbox_saga.saga.parking import OVERDUE
from outbox_saga.saga.progress import came_late
from outbox_saga.saga.snapshot import compare, take_snapshot
from outbox_saga_migrations import upgrade

pytestmark = pytest.mark.databases("sqlite", "postgres18", "mariadb")

PATIENT = Retry(max_attempts=3, initial=5.0, max_delay=5.0)


class Priced(Event, topic="priced"):
    total: int


class Old(BaseModel):
    number: int
    total: int | None = None
    sent: bool = False


class New(BaseModel):
    number: str
    amount: int | None = None
    currency: str = "EUR"
    sent: bool = False


def to_new(data: dict[str, Any]) -> dict[str, Any]:
    return {"number": f"N{data['number']}", "amount": data["total"], "sent": data["sent"]}


class Saw:
    """What the outside was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.answers = True

    async def send(self, step: Any) -> dict[str, bool]:
        self.calls.append((str(step.key), step.data))
        if not self.answers:
            raise OSError("no answer")
        return {"sent": True}


async def undo(step: Any) -> None: ...


def old(saw: Saw, *, waits: bool = True) -> Saga[Old]:
    saga = Saga("parcels", data=Old)
    if waits:
        saga.wait_for("price", Priced, timeout=3600.0, take=lambda e: {"total": e.total})
    return saga.step(
        "send", saw.send, compensation=undo, external=True, idempotent=True, retry=PATIENT
    )


def new(
    saw: Saw, by: Any = to_new, *, waits: bool = True, data: type[BaseModel] = Old
) -> Saga[New]:
    saga = Saga("parcels", data=New, version=2)
    if waits:
        saga.wait_for("price", Priced, timeout=3600.0, take=lambda e: {"amount": e.total})
    saga.step("send", saw.send, compensation=undo, external=True, idempotent=True, retry=PATIENT)
    return saga.upcasts(1, data, by)


class Post:
    """One database, and the releases that use it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._open: list[Service] = []
        self.saw = Saw()

    def release(self, *sagas: Saga[Any], later: float = 0.0) -> Service:
        made = Service("post", database=self._url, sagas=sagas, clock=Clock(later), poll=0.02)
        self._open.append(made)
        return made

    async def start(self, saga: Saga[Any]) -> UUID:
        async with self.release(saga).unit_of_work() as uow:
            return saga.start(uow, {"number": 7}, business_key="7")

    async def carry_on(self, *sagas: Saga[Any], later: float = 0.0) -> None:
        orchestrator = self.release(*sagas, later=later).orchestrator()
        try:
            while await orchestrator.run_once():
                pass
        finally:
            orchestrator.close()

    async def price(self, *sagas: Saga[Any], of: UUID, total: int = 42) -> None:
        correlation = (await self.seen(of))[0].correlation_id
        envelope = seal(Priced(total=total), correlation_id=correlation, source="shop")
        await self.release(*sagas).deliver(envelope)

    async def seen(self, id_: UUID) -> tuple[Any, list[str]]:
        instance, history = await SagaOperations(self._open[0].database).show(id_)
        return instance, [h.entry.transition for h in history]

    async def close(self) -> None:
        for service in self._open:
            await service.close()


@pytest.fixture
async def post(database_url: str) -> Any:
    post = Post(database_url)
    with post.release().database.begin() as connection:
        upgrade(connection)
    yield post
    await post.close()


async def test_an_instance_that_waits_goes_on_with_its_data_as_the_new_version_has_it(
    post: Post,
) -> None:
    id_ = await post.start(old(post.saw))
    await post.carry_on(old(post.saw))
    await post.price(new(post.saw), of=id_)

    await post.carry_on(new(post.saw))

    instance, history = await post.seen(id_)
    assert (instance.version, instance.shape) == (2, new(post.saw).shape)
    assert dict(instance.state.data) == {
        "number": "N7", "amount": 42, "currency": "EUR", "sent": True,
    }  # fmt: skip
    assert history == [
        "STARTED", "RUNNING", "UPCAST", "STEP_COMPLETED", "RUNNING", "STEP_COMPLETED", "COMPLETED",
    ]  # fmt: skip
    assert [data for _, data in post.saw.calls] == [New(number="N7", amount=42)]


async def test_an_open_call_keeps_its_key_and_gets_what_it_was_called_with_upcast(
    post: Post,
) -> None:
    id_ = await post.start(old(post.saw, waits=False))
    post.saw.answers = False
    await post.carry_on(old(post.saw, waits=False))
    post.saw.answers = True

    await post.carry_on(new(post.saw, waits=False), later=60.0)

    (key, first), (again, second) = post.saw.calls
    assert (key, first, second) == (again, Old(number=7), New(number="N7"))
    assert (await post.seen(id_))[0].state.status == "completed"


async def test_an_event_that_came_early_is_not_lost(post: Post) -> None:
    first = old(post.saw)
    id_ = await post.start(first)
    await post.price(first, of=id_)

    await post.carry_on(new(post.saw))

    instance, _ = await post.seen(id_)
    assert (instance.state.status, instance.state.data["amount"]) == ("completed", 42)


async def test_where_more_than_the_data_differs_nothing_is_taken_over(post: Post) -> None:
    id_ = await post.start(old(post.saw))

    await post.carry_on(new(post.saw, waits=False), later=OVERDUE + 1)

    instance, history = await post.seen(id_)
    assert (instance.version, history) == (1, ["STARTED", "PARKED"])


async def test_the_old_definition_keeps_its_instances_as_long_as_it_is_here(post: Post) -> None:
    id_ = await post.start(old(post.saw, waits=False))

    await post.carry_on(old(post.saw, waits=False), new(post.saw, waits=False))

    instance, history = await post.seen(id_)
    assert (instance.version, "UPCAST" in history) == (1, False)


@pytest.mark.parametrize("bad", ["raises", "does not fit"])
async def test_what_cannot_be_upcast_is_parked_and_goes_on_when_the_upcaster_is_mended(
    post: Post, bad: str
) -> None:
    def broken(data: dict[str, Any]) -> Mapping[str, Any]:
        return {"number": data["secret"]} if bad == "raises" else {"number": ["secret"]}

    id_ = await post.start(old(post.saw, waits=False))
    await post.carry_on(new(post.saw, broken, waits=False))
    parked, history = await post.seen(id_)
    assert history == ["STARTED", "PARKED"]
    assert "mend the upcaster" in parked.state.parked
    assert "secret" not in parked.state.parked
    assert (parked.version, dict(parked.state.data)["number"]) == (1, 7)

    await post.carry_on(new(post.saw, waits=False), later=OVERDUE + 1)

    instance, history = await post.seen(id_)
    assert (instance.state.status, instance.state.parked) == ("completed", None)
    assert history[2:4] == ["UPCAST", "UNPARKED"]


async def test_while_an_older_process_has_it_an_event_waits_and_changes_nothing(
    post: Post,
) -> None:
    first = old(post.saw)
    id_ = await post.start(first)
    service = post.release(first)
    tables, clock, owner = service.database.tables, service.database.clock, new_id()
    known = Known(["parcels"], [first.shape], "post")
    _, (taken,) = await service.database.run(leases.claim, tables, clock, owner, 600.0, known, 10)

    await post.price(new(post.saw), of=id_)

    instance, history = await post.seen(id_)
    assert (instance.epoch, history) == (taken.epoch, ["STARTED"])
    with service.database.begin() as connection:
        waiting = connection.execute(sa.select(tables.inbox_waiting)).one()
    assert "older release" in waiting.error

    later = post.release(new(post.saw), later=900.0)
    await later.waiting_room().run_once()
    instance, history = await post.seen(id_)
    assert (instance.version, instance.epoch) == (2, taken.epoch + 1), "who had it is passed"
    assert history == ["STARTED", "UPCAST", "EVENT_STORED"]


async def test_an_operator_decides_about_it_as_the_new_version(post: Post) -> None:
    first = old(post.saw, waits=False)
    id_ = await post.start(first)
    post.saw.answers = False
    await post.carry_on(first)
    service = post.release(new(post.saw, waits=False))
    operations = SagaOperations(service.database, service.sagas)
    seen, _ = await operations.show(id_)
    plan = await operations.plan(seen, Intervention("cancel", None, "ada"))
    assert plan.entries[0].transition == "COMPENSATION_STARTED"
    assert (await post.seen(id_))[0].version == 1, "a plan changes nothing"

    await operations.cancel(seen, Decision("ada", "not wanted"))

    instance, history = await post.seen(id_)
    assert (instance.version, history[-2:]) == (2, ["UPCAST", "COMPENSATION_STARTED"])


async def test_a_late_success_from_the_older_version_is_undone_and_never_lost(post: Post) -> None:
    saga = new(post.saw, waits=False)
    state = (await _running(post, saga)).state
    late = Done("send", "do", 1, {"sent": True})

    undone, entries = came_late(saga, state, late, 0, usable=False)

    assert (undone.status, undone.steps["send"].phase) == ("compensating", "done")
    assert [e.transition for e in entries] == ["STEP_COMPLETED", "COMPENSATION_STARTED"]
    over = undone.with_step("send", phase="undone", attempts=1)
    same, entries = came_late(saga, over, late, 0, usable=False)
    assert (same, [e.transition for e in entries]) == (over, ["IGNORED"])


async def _running(post: Post, saga: Saga[Any]) -> Any:
    post.saw.answers = False
    async with post.release(saga).unit_of_work() as uow:
        id_ = saga.start(uow, {"number": "N7"})
    await post.carry_on(saga)
    return (await post.seen(id_))[0]


@pytest.mark.databases("sqlite")
async def test_an_operator_s_action_on_what_cannot_be_upcast_is_refused(post: Post) -> None:
    first = old(post.saw, waits=False)
    id_ = await post.start(first)
    database = post.release().database
    operations = SagaOperations(database, [new(post.saw, lambda _: {}, waits=False)])
    seen, _ = await operations.show(id_)

    with pytest.raises(ActionRefused, match="mend the upcaster"):
        await operations.cancel(seen, Decision("ada", "not wanted"))

    assert (await post.seen(id_))[1] == ["STARTED"]


# --- definitions and snapshots -------------------------------------------------------------------


def test_a_snapshot_lets_a_version_go_that_is_taken_over_and_only_then() -> None:
    saw = Saw()
    kept, alive = take_snapshot([old(saw)]), {("parcels", 1, old(saw).shape): 5}

    fine = compare(kept, take_snapshot([new(saw)]), alive)
    other = compare(kept, take_snapshot([new(saw, data=New)]), alive)

    assert [(f.version, f.kind, f.refuses) for f in fine] == [
        (1, "taken over", False), (2, "new", False),
    ]  # fmt: skip
    assert [f.kind for f in other if f.refuses] == ["missing"]


def test_upcasts_lead_from_older_versions_once_each_and_before_the_saga_is_in_use() -> None:
    saw = Saw()
    with pytest.raises(DefinitionError, match="not older than version 2"):
        Saga("parcels", data=New, version=2).upcasts(2, Old, to_new)
    with pytest.raises(DefinitionError, match="there are two"):
        new(saw).upcasts(1, Old, to_new)
    with pytest.raises(DefinitionError, match="in use already"):
        new(saw).check().upcasts(1, Old, to_new)
    assert (
        new(saw).shape
        == Saga("parcels", data=New, version=2)
        .wait_for("price", Priced, timeout=1.0)
        .step("send", saw.send, compensation=undo, external=True, idempotent=True)
        .shape
    ), "upcasts are no part of the shape"
