"""16: the relay's LISTEN connection is blackholed: nothing comes through, and it stays open."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import sqlalchemy as sa

from proofs.peril.brood import until
from proofs.peril.ear import Ear, ear
from proofs.peril.proxy import Proxy, proxy
from proofs.registry import Outcome, say
from proofs.scenes.world import World, told, world

POLL = 0.25  # seconds: the relay's own default
AGAIN = 30.0  # seconds within which it must listen again
CLOSED = 20.0  # seconds for which new connections are swallowed, too
PAUSE = (0.3, 0.7)  # seconds between two commits: the relay's pauses grow to `POLL` in between
SAMPLES = 20
NAME = "listener"
QUICK = POLL / 4  # seconds: with the hint it does not take a poll


def show() -> Outcome:
    """First the connection alone; then new ones, too, for a while."""
    with world() as on, ear(on.nats.url) as heard:
        url = on.database.url
        with proxy(url.host or "127.0.0.1", url.port or 5432) as between:
            through = url.set(host="127.0.0.1", port=between.port)
            through = through.update_query_dict({"application_name": NAME})
            listen = through.render_as_string(hide_password=False)
            with on.relay("--poll", str(POLL), "--listen-url", listen):
                until(lambda: _listeners(on), "it listens")
                before = [_one(on, heard, n) for n in range(SAMPLES)]
                one = _lost(on, heard, between, new=False)
                between_them = [_one(on, heard, n) for n in range(SAMPLES)]
                both = _lost(on, heard, between, new=True)
                after = [_one(on, heard, n) for n in range(SAMPLES)]
                on.quiesce()
        violations, counts = on.check()
    hinted = [statistics.median(found) for found in (before, between_them, after)]
    good = (
        not violations
        and max(hinted) <= QUICK
        and all(max(found["latencies"]) <= POLL for found in (one, both))
        and all(found["listens again after"] <= AGAIN for found in (one, both))
        and min(len(one["latencies"]), len(both["latencies"])) >= SAMPLES / 2
    )
    return Outcome(
        good,
        {
            "poll": POLL,
            "with the hint, median ms": [round(seconds * 1000, 1) for seconds in hinted],
            "the connection alone": _shown(one),
            f"new ones too, for {CLOSED:.0f} s": _shown(both),
            "connections made": between.made,
            **counts,
            "first violations": told(violations),
        },
    )


def _lost(on: World, heard: Ear, between: Proxy, *, new: bool) -> dict[str, Any]:
    """What is committed while nobody tells the relay; until it listens again."""
    known = _listeners(on)
    between.swallow(new=new)
    began = time.monotonic()
    latencies: list[float] = []
    while True:
        if time.monotonic() - began >= CLOSED:
            between.swallows_new = False
        latencies.append(_one(on, heard, len(latencies)))
        # those that were swallowed on their way never came to say that they listen
        if _listeners(on) - known:
            break
        if time.monotonic() - began > CLOSED + AGAIN + 5:
            break
    took = time.monotonic() - began - (CLOSED if new else 0.0)
    say(
        f"  listens again after {took:.1f} s; {len(latencies)} events, most {max(latencies):.3f} s"
    )
    # the last one may have been told of by the new listener: it counts all the same
    return {"listens again after": took, "latencies": latencies}


def _one(on: World, heard: Ear, number: int) -> float:
    """Seconds from the return of a commit until the event was at the broker."""
    time.sleep(random.uniform(*PAUSE))
    with on.database.begin() as connection:
        id_ = on.publish(connection, b'{"n":%d}' % number, key="tick")
    committed = time.monotonic()
    until(lambda: id_ in heard.first, "the event")
    return max(0.0, heard.first[id_] - committed)


def _listeners(on: World) -> set[int]:
    """The server's processes for listening connections."""
    asked = sa.text(
        "SELECT pid FROM pg_stat_activity WHERE application_name = :name AND query LIKE 'LISTEN%'"
    )
    with on.database.engine.connect() as connection:
        return set(connection.scalars(asked, {"name": NAME}))


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    latencies = found["latencies"]
    return {
        "events meanwhile": len(latencies),
        "latency ms": {
            "median": round(statistics.median(latencies) * 1000, 1),
            "most": round(max(latencies) * 1000, 1),
        },
        "listens again after, s": round(found["listens again after"], 1),
    }
