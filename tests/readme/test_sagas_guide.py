"""What docs/guides/sagas.md shows runs as it stands there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from outbox_saga import Service
from outbox_saga.brokers.local import LocalPublisher
from outbox_saga.envelopes import Envelope, seal
from outbox_saga.saga.operating import SagaOperations
from outbox_saga.saga.snapshot import compare, take_snapshot
from outbox_saga_migrations import upgrade
from outbox_saga_relay.relay import Relay

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "sagas.md"


@pytest.mark.databases("sqlite")
async def test_the_guide_s_saga_is_fulfilled_by_its_own_participant(database_url: str) -> None:
    shown: dict[str, Any] = {"URL": database_url}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, shown)
    shop = shown["shop"]
    with shop.database.begin() as connection:
        upgrade(connection)

    await shown["place"](7)
    operations = SagaOperations(shop.database)
    orchestrator = shop.orchestrator()
    while await orchestrator.run_once():
        await shop.relay_program().run_until_empty()  # the command; its answer
        await shop.relay_program().run_until_empty()
    orchestrator.close()
    ended = await operations.list(state="completed")

    assert ended[0].state.data["parcel"] == "P7"
    assert ended[0].state.data["charge"].startswith("ch_")
    event = shown["OrderPlaced"](order_id=9, address="x", cents=1)
    await shop.deliver(seal(event, source="web", correlation_id="talk-9"))
    (begun,) = await operations.list(business_key="order:9")
    assert (begun.correlation_id, begun.state.status) == ("talk-9", "running")
    assert await _told_by_both(shop, shown["asking"], shown["ship_now"](8)) == "P8"
    await shown["asking"].close()
    taken_over = [
        f.kind for f in compare(take_snapshot([shown["first"]]), take_snapshot([shown["second"]]))
    ]
    assert taken_over == ["taken over", "new"]
    new = take_snapshot(shown["shop_2"].sagas)
    assert [f.kind for f in compare(take_snapshot(shop.sagas), new)] == ["new"]
    await shown["shop_2"].close()
    await shop.close()


async def _told_by_both(shop: Service, asking: Service, question: Coroutine[Any, Any, str]) -> str:
    """The answer, while what either commits is delivered to both."""

    async def deliver(envelope: Envelope) -> int:
        return sum([await service.deliver(envelope) for service in (shop, asking)])

    stop = asyncio.Event()
    publisher = LocalPublisher(deliver, concurrency=1, timeout=30.0)
    relaying = asyncio.create_task(Relay(shop.database, publisher, listen=False).run(stop))
    try:
        return await question
    finally:
        stop.set()
        await relaying
