"""7: the order of keys, several relays of which some are killed: as proof 2.6, on PostgreSQL."""

from __future__ import annotations

import asyncio

from outbox_saga.testing.servers import Postgres18, choose
from proofs import p2_6_order_under_kills as order
from proofs.chaos import stream
from proofs.registry import Outcome


def show() -> Outcome:
    """50 keys of 200 events each, by eight writers."""
    with choose(Postgres18) as server, stream.broker() as (nats, broker_url):
        asyncio.run(stream.create(nats))
        seed = f"{order.SEED} postgres18"
        found = order.run(server.create_database(), nats, broker_url, seed, snapshot=False)
    return Outcome(not found["violations"], found)
