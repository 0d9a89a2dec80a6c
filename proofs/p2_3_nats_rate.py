"""Proof 2.3: how fast the relay is to NATS JetStream, beside what it cannot be faster than."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

from benchmarks import databases, machine, relay, report
from benchmarks.backlog import Backlog
from benchmarks.jetstream import Client, Streams, clients
from benchmarks.load import wait_for_quiet
from benchmarks.measuring import QUIET, THOROUGH, Sample, Variant, compare
from benchmarks.publishers import Counted
from outbox_saga.brokers import open_publisher
from outbox_saga.testing.servers import Nats, choose
from proofs.registry import Outcome, proof, say

ROWS, KEYS = 100_000, 2_000
TRIED = 20_000  # messages of a trial
EFFORT = replace(THOROUGH, rounds=3, patience=5.0)
BAR = 0.7


@proof("2.3")
def nats_rate() -> Outcome:
    """No-op relay, nats-py alone and the relay to NATS, interleaved."""
    with databases.postgres() as place, choose(Nats) as server:
        backlog, streams = Backlog(place, ROWS, KEYS), Streams(server.url)
        backlog.prepare()
        envelopes = backlog.envelopes()

        def alone(client: Client, messages: int) -> Sample:
            sample = client.measured(streams.fresh(), envelopes[:messages])
            assert streams.stored() == messages
            return sample

        def relayed() -> Sample:
            url = streams.fresh()
            broker = partial(_counted, url)
            sample = relay.drained(backlog, partial(relay.relayed, broker=broker))
            assert streams.stored() == ROWS
            return sample

        tried = {}
        for client in clients():
            wait_for_quiet(QUIET, 1.0)
            tried[client.name] = round(alone(client, TRIED).rate)
            say(f"  tried {client.name:<34}{tried[client.name]:>10,} messages/s")
        best = max(clients(), key=lambda client: tried[client.name])
        variants = [
            Variant("Relay, no-op publisher", lambda: relay.drained(backlog, relay.no_op)),
            Variant(f"nats-py, {best.name}", lambda: alone(best, ROWS)),
            Variant("Relay to NATS JetStream", relayed),
        ]
        group = compare("relay", f"{place.name}, NATS JetStream", relay.UNIT, variants, EFFORT)
    no_op, client_rate, ours = (figure.rate for figure in group.figures)
    limit = 1 / (1 / no_op + 1 / client_rate)
    ratio = ours / limit
    return Outcome(
        ok=ratio >= BAR,
        measured={
            "machine": machine.describe() | {"nats-py": version("nats-py")},
            "notes": report.notes([group], EFFORT),
            "rows": ROWS,
            "keys": KEYS,
            "page_rows": relay.BATCH,
            "of_the_limit": {"bar": BAR, "ratio": round(ratio, 3), "limit": round(limit)},
            "rates": report.rates(group.figures),
            "nats_py_tried": _told(tried),
        },
    )


def _counted(url: str, enough: int) -> Counted:
    return Counted(enough, open_publisher(url))


def _told(tried: dict[str, int]) -> dict[str, Any]:
    return {"messages": TRIED, "messages_per_second": tried}
