"""Messages of others that look like the server's own."""

from __future__ import annotations

import asyncio

import pytest

from outbox_saga import HandlerContext, Service
from tests.inbox.processes import said
from tests.relay.house import House, Said
from tests.service.test_nats_handling import Stream, stream

__all__ = ["stream"]


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("status", ["shipped", "404", "100"])
async def test_a_header_of_others_is_not_taken_for_the_servers(
    house: House,
    stream: Stream,
    status: str,
) -> None:
    """It would come again and again, and end the pull request of all others each time."""
    service = Service("shop", database=house.another_database(), broker=stream.url, poll=0.01)

    @service.on(Said)
    async def take(handle: HandlerContext[Said]) -> None:
        """Whatever it is."""

    odd = said("one")
    headers = {**odd.to_headers(), "Status": status}
    house.say("x")
    async with service.running():
        await asyncio.to_thread(house.until, house.inbox, "the stream is there")
        await stream.js.publish(f"{stream.name}.talk", b"", headers=headers)
        await asyncio.to_thread(house.until, house.set_aside, "the message is kept")
    (row,) = house.set_aside()
    assert (row.message_id, row.error_code) == (odd.id, "unreadable")
