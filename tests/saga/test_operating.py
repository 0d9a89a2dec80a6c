"""What people do with sagas: only if it is as they saw it, on record, and the saga then ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from unittest.mock import patch
from uuid import UUID

import pytest
import sqlalchemy as sa

from outbox_saga import Retry
from outbox_saga.decisions import Decision
from outbox_saga.errors import ActionRefused, MessageRefused, SagaUnknown, SeenChanged
from outbox_saga.instances import Instance
from outbox_saga.queries.clock import Clock
from outbox_saga.queries.operators import Noted, noted_actions
from outbox_saga.saga import calls, outcomes
from outbox_saga.saga.happened import Run
from outbox_saga.saga.interventions import Intervention
from outbox_saga.saga.operating import SagaOperations
from tests.fixtures.databases import Database
from tests.saga.shop import Shop, refuse

ADA = Decision("ada", "the provider is back")
LONG = 100_000.0  # seconds, after which no attempt is left

Act = Callable[[SagaOperations, Instance], Awaitable[None]]


def broken(step: Any) -> None:
    raise ConnectionError("down")


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[Shop]:
    made = Shop(database.url, threads=False)
    yield made
    await made.service.close()


def operations(shop: Shop) -> SagaOperations:
    return SagaOperations(shop.service.database, [shop.saga])


async def stuck(shop: Shop, *, undo: bool) -> Instance:
    """A saga whose compensation said no; or whose charge nobody knows the outcome of."""
    if undo:
        shop.hooks["book"] = refuse("closed")
        shop.hooks["undo reserve"] = refuse("the shelf is gone")
    else:
        shop.hooks["charge"] = broken
    id_ = await shop.start()
    few = Retry(max_attempts=1)  # as if it had been tried for half an hour
    with patch.object(calls, "SETTLING", few), patch.object(outcomes, "SETTLING", few):
        for hour in range(10):
            service = shop.restarted(Clock(hour * 3600.0))
            orchestrator = service.orchestrator()
            await orchestrator.run_once()
            orchestrator.close()
            await service.close()
            if (await shop.instance(id_)).state.status == "stuck":
                break
    seen = await shop.instance(id_)
    assert seen.state.status == "stuck"
    shop.hooks.clear()
    return seen


async def audit(shop: Shop) -> list[Noted]:
    database = shop.service.database
    return await database.look(noted_actions, database.tables)


async def to_the_end(shop: Shop, id_: UUID) -> str:
    service = shop.restarted(Clock(LONG))
    await shop.to_the_end(service)
    await service.close()
    return (await shop.instance(id_)).state.status


async def test_a_stuck_step_that_is_tried_again_ends_its_saga_under_the_same_key(
    shop: Shop,
) -> None:
    seen = await stuck(shop, undo=False)

    await operations(shop).retry(seen, "charge", ADA)

    assert await to_the_end(shop, seen.id) == "completed"
    keys = {key for kind, key, _ in shop.provider.requests if kind == "charge"}
    assert len(keys) == 1
    (noted,) = await audit(shop)
    assert (noted.operator, noted.action, noted.subject) == (
        "ada",
        "saga.retry",
        f"saga {seen.id}",
    )
    assert noted.detail["step"] == "charge"
    assert noted.detail["revision"] == seen.revision
    assert "again, by ada" in str(await _details(shop, seen.id))


async def test_a_compensation_that_is_tried_again_undoes_its_saga(shop: Shop) -> None:
    seen = await stuck(shop, undo=True)
    assert await shop.shelf() == (99, 1)

    await operations(shop).resume(seen, ADA)

    assert await to_the_end(shop, seen.id) == "compensated"
    assert await shop.shelf() == (100, 0)
    ended = await shop.instance(seen.id)
    assert ended.state.reason == "book: closed"


async def test_a_step_that_was_done_by_other_means_brings_what_it_would_have_returned(
    shop: Shop,
) -> None:
    seen = await stuck(shop, undo=False)
    sagas = operations(shop)
    with pytest.raises(MessageRefused, match=r"\$\.charge"):
        await sagas.mark_done(seen, "charge", ADA, {"charge": 3})
    assert await audit(shop) == []

    await sagas.mark_done(seen, "charge", ADA, {"charge": "by telephone"})

    assert await to_the_end(shop, seen.id) == "completed"
    assert (await shop.instance(seen.id)).state.data["charge"] == "by telephone"


@pytest.mark.parametrize("how", ["skip", "mark_done"])
async def test_a_compensation_may_be_left_to_people(shop: Shop, how: str) -> None:
    seen = await stuck(shop, undo=True)
    sagas = operations(shop)

    await getattr(sagas, how)(seen, "reserve", ADA)

    assert await to_the_end(shop, seen.id) == "compensated"
    assert await shop.shelf() == (99, 1)
    history = await shop.history(seen.id)
    assert ("COMPENSATION_SKIPPED reserve" in history) == (how == "skip")


async def test_a_step_that_is_skipped_is_left_out(shop: Shop) -> None:
    seen = await stuck(shop, undo=False)
    await operations(shop).skip(seen, "charge", ADA)
    assert await to_the_end(shop, seen.id) == "completed"
    ended = await shop.instance(seen.id)
    assert (ended.state.steps["charge"].phase, ended.state.data["booked"]) == ("skipped", True)


async def test_a_running_saga_that_is_cancelled_is_undone(shop: Shop) -> None:
    shop.hooks["charge"] = broken
    id_ = await shop.start()
    orchestrator = shop.service.orchestrator()
    await orchestrator.run_once()
    orchestrator.close()
    shop.hooks.clear()

    await operations(shop).cancel(await shop.instance(id_), ADA)

    assert await to_the_end(shop, id_) == "compensated"
    assert await shop.shelf() == (100, 0)
    # nobody knew whether it was charged, so that was settled first
    assert shop.provider.count("charge") == shop.provider.count("refund")
    assert (await shop.instance(id_)).state.reason == "cancelled by ada"


REFUSED: dict[str, tuple[Act, bool, type[Exception], str]] = {
    "another step": (
        lambda sagas, seen: sagas.retry(seen, "book", ADA),
        False,
        ActionRefused,
        "step book is waiting, not stuck",
    ),
    "no such step": (
        lambda sagas, seen: sagas.retry(seen, "pack", ADA),
        False,
        ActionRefused,
        "there are reserve, charge, book",
    ),
    "a new key though nobody knows": (
        lambda sagas, seen: sagas.retry(seen, "charge", ADA, new_key=True),
        False,
        ActionRefused,
        "might be carried out twice",
    ),
    "cancelling what is undone already": (
        lambda sagas, seen: sagas.cancel(seen, ADA),
        True,
        ActionRefused,
        "only a running saga can be cancelled",
    ),
    "data for a compensation": (
        lambda sagas, seen: sagas.mark_done(seen, "reserve", ADA, {"booked": True}),
        True,
        ActionRefused,
        "no data to keep",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_cannot_be_done_is_refused_and_nothing_has_changed(
    shop: Shop, what: str
) -> None:
    act, undo, error, told = REFUSED[what]
    seen = await stuck(shop, undo=undo)

    with pytest.raises(error, match=told):
        await act(operations(shop), seen)

    assert await shop.instance(seen.id) == seen
    assert await audit(shop) == []


async def test_an_action_on_what_has_moved_since_it_was_seen_is_refused(shop: Shop) -> None:
    seen = await stuck(shop, undo=True)
    sagas = operations(shop)
    await sagas.retry(seen, "reserve", ADA)
    with pytest.raises(SeenChanged, match="look again"):
        await sagas.skip(seen, "reserve", ADA)
    assert len(await audit(shop)) == 1


async def test_without_the_definition_of_its_version_nothing_is_done(shop: Shop) -> None:
    seen = await stuck(shop, undo=True)
    with pytest.raises(SagaUnknown, match="use the release it was started with"):
        await SagaOperations(shop.service.database).resume(seen, ADA)


async def test_a_plan_tells_what_would_happen_and_changes_nothing(shop: Shop) -> None:
    seen = await stuck(shop, undo=True)
    sagas = operations(shop)
    plan = await sagas.plan(seen, Intervention("retry", "reserve", "ada"))
    assert [(e.transition, e.step) for e in plan.entries] == [("COMPENSATING_STEP", "reserve")]
    assert (plan.todo, plan.leased) == ((Run("reserve", "undo", 1),), False)
    assert await shop.instance(seen.id) == seen


async def test_sagas_are_found_by_state_key_and_conversation_and_shown_with_their_history(
    shop: Shop,
) -> None:
    seen = await stuck(shop, undo=True)
    other = await shop.start(order_id=2)
    sagas = operations(shop)
    assert [i.id for i in await sagas.list(state="stuck")] == [seen.id]
    assert [i.id for i in await sagas.list(business_key="order:2")] == [other]
    assert [i.id for i in await sagas.list(correlation_id=str(other))] == [other]
    assert [i.id for i in await sagas.list(name="fulfil", limit=1)] == sorted([seen.id, other])[:1]
    found, history = await sagas.show(seen.id)
    assert found == seen
    assert [h.entry.transition for h in history][-1] == "FAILED"
    with pytest.raises(SeenChanged, match="there is no saga"):
        await sagas.show(UUID(int=0))


async def _details(shop: Shop, id_: UUID) -> list[str | None]:
    table = shop.service.database.tables.saga_history

    def read(connection: sa.Connection) -> list[str | None]:
        return list(connection.scalars(sa.select(table.c.detail).where(table.c.saga_id == id_)))

    return await shop.service.database.look(read)
