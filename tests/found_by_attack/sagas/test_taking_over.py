"""A newer version takes instances over while others move them, die with them, or decide."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga import Command, Saga, nothing_to_undo
from outbox_saga.envelopes import seal
from outbox_saga.ids import new_id
from outbox_saga.instances import Instance, StepState
from outbox_saga.queries import leases
from outbox_saga.queries.leases import Known
from outbox_saga.saga import parking
from outbox_saga.saga.progress import initial
from outbox_saga.saga.snapshot import compare, take_snapshot
from outbox_saga.saga.taking_over import take_over, taken_over
from tests.saga.test_data_upcasts import New, Old, Post, Priced, Saw, new, old, post, to_new, undo

__all__ = ["post"]

pytestmark = pytest.mark.databases("sqlite", "postgres18", "mariadb")


async def test_what_an_event_moves_between_claim_and_takeover_is_taken_up_again_at_once(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = old(post.saw)
    id_ = await post.start(first)
    moved: list[bool] = []
    as_it_is = parking.Parking.taken_over

    async def after_an_event(self: Any, hand: Any) -> bool:
        if not moved:
            moved.append(True)
            # a consumer of the older release, which may take events in all the time
            await post.price(first, of=id_)
        return await as_it_is(self, hand)

    monkeypatch.setattr(parking.Parking, "taken_over", after_an_event)
    await post.carry_on(new(post.saw))

    instance, _ = await post.seen(id_)
    assert moved
    assert (instance.state.status, instance.deaths) == ("completed", 0)


async def test_that_its_owner_died_counts_although_an_event_takes_it_over_first(
    post: Post,
) -> None:
    first = old(post.saw)
    id_ = await post.start(first)
    service = post.release(first)
    known = Known(["parcels"], [first.shape], "post")
    await service.database.run(
        leases.claim, service.database.tables, service.database.clock, new_id(), 30.0, known, 10
    )

    later = post.release(new(post.saw), later=60.0)
    correlation = (await post.seen(id_))[0].correlation_id
    priced = seal(Priced(total=42), correlation_id=correlation, source="shop")
    await later.deliver(priced)

    instance, _ = await post.seen(id_)
    assert (instance.version, instance.deaths) == (2, 1)


@pytest.mark.databases("postgres18")
async def test_who_stands_still_while_taking_over_does_not_keep_the_instance(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[str] = []
    as_it_is = take_over

    def seen(connection: sa.Connection, *args: Any, **kwargs: Any) -> Any:
        limits.append(connection.scalar(sa.text("SHOW idle_in_transaction_session_timeout")) or "")
        return as_it_is(connection, *args, **kwargs)

    monkeypatch.setattr(parking, "take_over", seen)
    await post.start(old(post.saw, waits=False))
    await post.carry_on(new(post.saw, waits=False))

    assert limits
    assert "0" not in limits


@pytest.mark.parametrize("key", ["\x00", "\ud800"])
async def test_what_no_table_takes_and_an_upcaster_makes_is_parked_all_the_same(
    post: Post, key: str
) -> None:
    class Tagged(New):
        tags: dict[str, int]

    saga = Saga("parcels", data=Tagged, version=2)
    saga.step("send", post.saw.send, compensation=undo, external=True, idempotent=True)
    saga.upcasts(1, Old, lambda data: {**to_new(data), "tags": {key: "secret"}})
    id_ = await post.start(old(post.saw, waits=False))

    await post.carry_on(saga)

    parked, history = await post.seen(id_)
    assert history == ["STARTED", "PARKED"]
    assert "mend the upcaster" in parked.state.parked


# --- inputs --------------------------------------------------------------------------------------


class TakeBack(Command, topic="parcels"):
    number: str


@pytest.mark.parametrize("phase", ["done", "undone"])
@pytest.mark.databases("sqlite")
def test_a_command_whose_undoing_a_person_has_decided_about_is_no_data(phase: Any) -> None:
    # retried: `done` until it is sent anew; skipped or done by other means: `undone`
    saw = Saw()

    def saga(model: Any, version: int) -> Saga[Any]:
        return (
            Saga("parcels", data=model, version=version)
            .step("pay", saw.send, external=True, idempotent=True, compensation=TakeBack)
            .step("last", saw.send, external=True, idempotent=True, compensation=nothing_to_undo)
        )

    first, second = saga(Old, 1), saga(New, 2).upcasts(1, Old, to_new)
    seen = _instance(first, {"number": 7})
    stale = StepState(phase=phase, attempts=1, undo_attempts=3, input={"number": "7"})
    state = dataclasses.replace(
        seen.state, status="compensating", steps={**seen.state.steps, "pay": stale}
    )

    ours = taken_over(second, dataclasses.replace(seen, state=state))

    assert ours.version == 2
    assert ours.state.steps["pay"].input is None, "nobody would send it any more"


@pytest.mark.databases("sqlite")
def test_what_an_early_event_brings_is_kept_although_the_data_says_the_same_now() -> None:
    saw = Saw()
    seen = _instance(old(saw), {"number": 7, "total": 42})
    early = StepState(early={"total": 42})
    state = dataclasses.replace(seen.state, steps={**seen.state.steps, "price": early})

    class Dated(Old):
        day: str = "today"

    saga = Saga("parcels", data=Dated, version=2)
    saga.wait_for("price", Priced, timeout=3600.0, take=lambda e: {"total": e.total})
    saga.step("send", saw.send, compensation=undo, external=True, idempotent=True)
    saga.upcasts(1, Old, lambda data: {**data, "day": "yesterday"})

    ours = taken_over(saga, dataclasses.replace(seen, state=state))

    # a step before it may write the field, too, and what the event brings comes after that
    assert ours.state.steps["price"].early == {"total": 42}


def _instance(saga: Saga[Any], data: dict[str, Any]) -> Instance:
    dumped = saga.dump(data)
    return Instance(
        id=new_id(),
        name=saga.name,
        version=saga.version,
        shape=saga.shape,
        source="post",
        business_key=None,
        correlation_id="c",
        revision=3,
        epoch=1,
        state=initial(saga, dumped),
    )


# --- snapshots and definitions -------------------------------------------------------------------


@pytest.mark.databases("sqlite")
def test_a_snapshot_lets_no_upcast_go_that_instances_may_still_need() -> None:
    saw = Saw()
    kept = take_snapshot([new(saw)])
    without = Saga("parcels", data=New, version=2)
    without.wait_for("price", Priced, timeout=1.0)
    without.step("send", saw.send, compensation=undo, external=True, idempotent=True)
    here = take_snapshot([without])
    stuck = {("parcels", 1, old(saw).shape): 1}

    assert [(f.version, f.kind) for f in compare(kept, here)] == [(1, "missing")]
    assert [(f.version, f.kind) for f in compare(kept, here, stuck)] == [(1, "missing")]
    assert [(f.version, f.kind) for f in compare(kept, here, {})] == [(1, "gone")]
    assert compare(kept, kept) == []
    beside = compare(kept, take_snapshot([old(saw), without]))
    assert [(f.version, f.kind) for f in beside] == [(1, "new")]
