"""A fault is no answer, wherever it comes."""

from __future__ import annotations

from typing import Any

import pytest

from outbox_saga.commanding import Answer, answers_on, replies_topic
from outbox_saga.envelopes import seal
from tests.fixtures.databases import Database
from tests.saga.shipping import House, Shipping, ordering

pytestmark = pytest.mark.databases("sqlite")


async def test_a_fault_that_comes_to_a_saga_refuses_nothing(
    database: Database, fresh_database: Any
) -> None:
    house = House(database.url, Shipping(fresh_database(database.name).url), ordering())
    id_ = await house.start()
    await house.orchestrate()
    fault = answers_on(replies_topic("orders")).model_validate(
        Answer(
            saga=id_, step="ship", direction="do", generation=0, attempt=1,
            done=False, fault="handler_failed",
        ).model_dump()
    )  # fmt: skip
    await house.orders.deliver(seal(fault, key=str(id_), source="shipping"))

    await house.to_and_fro()

    assert (await house.state(id_)).status == "completed"
    await house.close()
