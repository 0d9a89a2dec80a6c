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
POISON = ("poison, throughput", "poison, p99")


@proof("2.9")
def outages() -> Outcome:
    """Each by itself: another database, another server."""
    every = [*AWAY, *POISON]
    wanted = parts(every)
    measured: dict[str, Any] = {}
    good = len(wanted) == len(every)
    for name in wanted:
        found = _away(AWAY[name]) if name in AWAY else _poison(name)
        say(f"{name}: {found}")
        measured[name] = found
        good = good and not found["violations"]
    return Outcome(good, measured)


def _away(plan: away.Plan) -> dict[str, Any]:
    with choose(Postgres18) as server, choose(Nats) as broker:
        return away.run(server.create_database(), broker, plan)


def _poison(name: str) -> dict[str, Any]:
    """Pairs of runs, one after the other, so that both see the same machine."""
    measure = poison.throughput if name == POISON[0] else poison.p99
    pairs, wrong = [], []
    with choose(Postgres18) as server, choose(Nats) as broker:
        database = prepare(server.create_database())
        if measure is poison.throughput:
            poison.make_backlog(database)
        for number in range(PAIRS):
            plain, poisoned = (
                asyncio.run(measure(database, broker.url, poison=there)) for there in (False, True)
            )
            pairs.append((plain, poisoned))
            say(f"{name}, pair {number + 1}: {plain}, with poison in front {poisoned}")
        asyncio.run(database.close())
    ratio = statistics.median(poisoned.figure / plain.figure for plain, poisoned in pairs)
    if measure is poison.throughput and ratio < THROUGHPUT:
        wrong.append(f"other keys had {ratio:.3f} of their throughput")
    if measure is poison.p99 and ratio > P99:
        wrong.append(f"other keys had {ratio:.2f} times their p99")
    return {
        "workload": poison.WORKLOAD,
        "of_the_undisturbed_run": round(ratio, 3),
        "pairs": [
            {"undisturbed": plain.figure, "poison in front": poisoned.figure}
            | {"attempts of the poison": poisoned.attempts}
            for plain, poisoned in pairs
        ],
        "violations": wrong,
    }
