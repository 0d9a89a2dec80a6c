"""What a step publishes leaves if, and only if, it succeeds."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from outbox_saga import Failure
from tests.saga.shop import Reserved, Shop


@pytest.mark.parametrize("delay", [None, 3600])
async def test_what_an_external_step_published_before_it_said_no_never_leaves(
    carried: Shop, delay: float | None
) -> None:
    def decline(step: Any) -> Failure[str]:
        step.publish(Reserved(order_id=7), delay=delay)
        return Failure("the card was declined")

    before = await carried.published()
    carried.hooks["charge"] = decline
    id_ = await carried.start()
    await carried.to_the_end()

    assert (await carried.instance(id_)).state.status == "compensated"
    assert await carried.published() == before + 1  # of the step that succeeded
    tables = carried.service.database.tables
    delayed = await carried.service.database.look(
        lambda c: c.execute(sa.select(tables.delayed)).all()
    )
    assert delayed == []


async def test_what_a_compensation_published_before_it_said_no_never_leaves(carried: Shop) -> None:
    def closed(step: Any) -> Failure[str]:
        step.publish(Reserved(order_id=7))
        return Failure("closed on Sundays")

    before = await carried.published()
    carried.hooks["book"] = lambda _: Failure("no")
    carried.hooks["undo charge"] = closed
    id_ = await carried.start()
    await carried.to_the_end()

    assert (await carried.instance(id_)).state.status == "stuck"
    assert await carried.published() == before + 1
