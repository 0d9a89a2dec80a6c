"""Proof 2.9: a broker that is away for five minutes, and a thousand messages it never takes."""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

from outbox_saga.testing.servers import Nats, Postgres18, choose
from proofs.outages import away, poison
from proofs.outages.relaying import prepare
from proofs.registry import Outcome, parts, proof, say

PAIRS = 5
THROUGHPUT, P99 = 0.9, 1.5  # of the undisturbed run: at least, and at most
AWAY = {
    "outage": away.Plan(),
    # the same with a bound that was asked for; what is long about the other is the waiting
    "outage, with a bound": away.Plan(seconds=30.0, events=20_000, max_rate=2000.0),
}
POISON = "poison"


@proof("2.9")
def outages() -> Outcome:
    """Each by itself: another database, another server."""
    every = [*AWAY, POISON]
    wanted = parts(every)
    measured: dict[str, Any] = {}
    good = len(wanted) == len(every)
    for name in wanted:
        found = _poison() if name == POISON else _away(AWAY[name])
        say(f"{name}: {found}")
        measured[name] = found
        good = good and not found["violations"]
    return Outcome(good, measured)


def _away(plan: away.Plan) -> dict[str, Any]:
    with choose(Postgres18) as server, choose(Nats) as broker:
        return away.run(server.create_database(), broker, plan)


def _poison() -> dict[str, Any]:
    """Pairs of runs, one after the other, so that both see the same machine."""
    pairs = []
    with choose(Postgres18) as server, choose(Nats) as broker:
        database = prepare(server.create_database())
        for number in range(PAIRS):
            plain, poisoned = (
                asyncio.run(poison.sample(database, broker.url, poison=there))
                for there in (False, True)
            )
            pairs.append((plain, poisoned))
            say(f"pair {number + 1}: {plain.shown()}, with poison in front {poisoned.shown()}")
        asyncio.run(database.close())
    throughput = statistics.median(
        with_.throughput / without.throughput for without, with_ in pairs
    )
    p99 = statistics.median(with_.p99 / without.p99 for without, with_ in pairs)
    wrong = []
    if throughput < THROUGHPUT:
        wrong.append(f"other keys had {throughput:.3f} of their throughput")
    if p99 > P99:
        wrong.append(f"other keys had {p99:.2f} times their p99")
    return {
        "workload": poison.WORKLOAD,
        "throughput_of_undisturbed": round(throughput, 3),
        "p99_of_undisturbed": round(p99, 2),
        "pairs": [{"plain": a.shown(), "poison in front": b.shown()} for a, b in pairs],
        "violations": wrong,
    }
