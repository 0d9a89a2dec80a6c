"""A database without our tables is told what to do, by every program."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from outbox_saga import Event, Saga, Service, nothing_to_undo
from outbox_saga.errors import SchemaMissing

pytestmark = pytest.mark.anyio


class Placed(Event, topic="orders"):
    order_id: int


class Data(BaseModel):
    order_id: int


@pytest.mark.parametrize("program", ["relay", "orchestrate", "consume"])
async def test_a_program_on_a_database_without_our_tables_says_what_to_run(
    database_url: str, program: str, request: pytest.FixtureRequest
) -> None:
    async def act(step: Any) -> None: ...

    saga = Saga("one", data=Data).step("a", act, compensation=nothing_to_undo)
    broker = "local" if program != "consume" else "nats://127.0.0.1:1"
    service = Service("shop", database=database_url, broker=broker, sagas=[saga])

    @service.on(Placed)
    async def placed(handle: Any) -> None: ...

    with pytest.raises(SchemaMissing, match="outbox-saga db upgrade"):
        await asyncio.wait_for(getattr(service, program)(asyncio.Event()), 30)
    await service.close()
