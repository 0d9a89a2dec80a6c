"""11: the broker is down for ten minutes, and 100,000 events are added meanwhile."""

from __future__ import annotations

import os

from outbox_saga.testing.servers import Nats, Postgres18, choose
from proofs.outages import away
from proofs.registry import Outcome

SECONDS = float(os.environ.get("OUTBOX_SAGA_PROOF_SECONDS", "600"))
EVENTS = 100_000
CAP = 2000.0  # messages a second: configured
MEGABYTES = 150.0  # of the relay


def show() -> Outcome:
    """As proof 2.9's outage, longer, with a bound on the rate and on memory."""
    plan = away.Plan(seconds=SECONDS, events=EVENTS, max_rate=CAP, megabytes=MEGABYTES)
    with choose(Postgres18) as server, choose(Nats) as broker:
        found = away.run(server.create_database(), broker, plan)
    full = found["away_seconds"] >= 600 and found["committed"] >= EVENTS
    return Outcome(full and not found["violations"], found)
