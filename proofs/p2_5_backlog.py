"""Proof 2.5: long backlogs, transactions that stay open, what an event costs, and memory.

`OUTBOX_SAGA_PROOF_PART` names one of the parts. How rates are timed, and what is left out, the
same for every size, is told in `proofs/backlogs/draining.py`; what *flat* means, in `memory.py`.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from benchmarks import databases
from benchmarks.backlog import Backlog
from benchmarks.peers.measure import drained
from benchmarks.peers.trials import Trial, Trials, try_all
from proofs.backlogs import broker, costs, draining, filling, holding, memory, steady
from proofs.backlogs.filling import Place
from proofs.registry import Outcome, parts, proof, say

SMALL = 10_000
SHORT_RUNS = 5  # of the small one before the long one, and after it: a tenth of a second each
ROUNDS = 3
BACKLOG = 0.7  # of the rate at 10 k
SNAPSHOT = 0.7  # of the rate without
OF_PEER = 3.0
WRITER_ROWS = 200_000
FINALISTS = 2  # peers, the fastest with some of the rows, that are tried with all
HELD_SIZES = (200_000, 1_000_000)
STEADY = 20.0  # seconds
LARGE, LARGE_ROWS = 256 * 1024, 4_000

Found = tuple[bool, dict[str, Any]]
Hold = Callable[[Place], AbstractContextManager[None]]


def free(_place: Place) -> AbstractContextManager[None]:
    """Nobody holds anything."""
    return nullcontext()


@proof("2.5")
def backlog() -> Outcome:
    """All parts; the bar is met only by all of them."""
    measured: dict[str, Any] = {}
    good = True
    wanted = parts(PARTS)
    for name in wanted:
        say(name)
        ok, measured[name] = PARTS[name]()
        say(f"{name}: {'ok' if ok else 'MISSED'}")
        good &= ok
    return Outcome(good and len(wanted) == len(PARTS), measured)


# --- how long the backlog is ---------------------------------------------------------------------


def one_million() -> Found:
    """Against 10 k, interleaved."""
    return _long(1_000_000, ROUNDS)


def five_millions() -> Found:
    """Against 10 k, interleaved."""
    return _long(5_000_000, 1)


def _long(rows: int, rounds: int) -> Found:
    short: list[float] = []
    long: list[float] = []
    ratios: list[float] = []
    told: dict[str, Any] = {}
    with filling.place() as place:
        _drained(place, SMALL)  # the first one loads what everybody needs
        for _ in range(rounds):
            some = [_drained(place, SMALL).rate for _ in range(SHORT_RUNS)]
            place.fill(rows)
            with costs.counted(place) as cost:
                found = _emptied(place, rows)
            some += [_drained(place, SMALL).rate for _ in range(SHORT_RUNS)]
            short += some
            long.append(found.rate)
            ratios.append(found.rate / statistics.median(some))
            told = {"quarters": found.quarters, "of each event": cost.of_each(rows)}
            say(f"{rows:,}: {found.rate:,.0f} rows/s, {ratios[-1]:.2f} of {SMALL:,}; {told}")
        return statistics.median(ratios) >= BACKLOG, {
            "database": place.name,
            "rows": rows,
            "rows/s": _spread(long),
            f"rows/s at {SMALL}": _spread(short),
            "ratio": _spread(ratios),
            "bar": BACKLOG,
            "last run": told,
        }


def _drained(place: Place, rows: int) -> draining.Drained:
    place.fill(rows)
    return _emptied(place, rows)


def _emptied(place: Place, rows: int) -> draining.Drained:
    found = draining.drain(place, rows)
    if left := place.left():
        raise RuntimeError(f"{left} of {rows} rows were not published")
    return found


def cost_of_an_event() -> Found:
    """Right after a checkpoint, which makes the log longest, and in the same one as the insert."""
    rows, told = HELD_SIZES[0], {}
    with filling.place() as place:
        for name, checkpoint in (("after a checkpoint", True), ("without one", False)):
            place.fill(rows, checkpoint=checkpoint)
            with costs.counted(place) as cost:
                _emptied(place, rows)
            told[name] = cost.of_each(rows)
            say(f"{name}: {told[name]}")
    return True, {"rows": rows, "of each event": told}


# --- transactions that stay open -----------------------------------------------------------------


def read_snapshot() -> Found:
    """An old snapshot, and two lengths of the backlog."""
    good, told = True, {}
    with filling.place() as place:
        _drained(place, SMALL)
        for rows in HELD_SIZES:
            ok, told[f"{rows} rows"] = _held(place, rows, holding.reading)
            good &= ok
    return good, told


def _held(place: Place, rows: int, hold: Hold) -> Found:
    rates: dict[Hold, list[float]] = {free: [], hold: []}
    told: dict[str, Any] = {}
    for number in range(ROUNDS):
        for kind in (free, hold) if number % 2 == 0 else (hold, free):
            place.fill(rows)
            with kind(place), costs.counted(place) as cost:
                found = _emptied(place, rows)
            rates[kind].append(found.rate)
            told[kind.__name__] = {
                "rows/s by quarter": found.quarters,
                "of each event": cost.of_each(rows),
            }
            say(f"{rows:,} {kind.__name__}: {found.rate:,.0f} rows/s, {told[kind.__name__]}")
    ratios = [with_ / without for without, with_ in zip(rates[free], rates[hold], strict=True)]
    return statistics.median(ratios) >= SNAPSHOT, {
        "rows/s without": _spread(rates[free]),
        "rows/s with": _spread(rates[hold]),
        "ratio": _spread(ratios),
        "bar": SNAPSHOT,
        "last runs": told,
    }


def read_snapshot_steady() -> Found:
    """An old snapshot, and a writer that never pauses."""
    rates: dict[Hold, list[steady.Steady]] = {free: [], holding.reading: []}
    with filling.place() as place:
        for number in range(2):
            for kind in (free, holding.reading)[:: 1 if number % 2 == 0 else -1]:
                place.fill(0)
                with kind(place):
                    found = steady.keep_up(place, STEADY)
                rates[kind].append(found)
                say(f"{kind.__name__}, with a writer: {found}")
    without = [found.rate for found in rates[free]]
    with_ = [found.rate for found in rates[holding.reading]]
    ratios = [b / a for a, b in zip(without, with_, strict=True)]
    return statistics.median(ratios) >= SNAPSHOT, {
        "seconds of each run": STEADY,
        "rows/s without": _spread(without),
        "rows/s with": _spread(with_),
        "rows/s with, by quarter": rates[holding.reading][-1].quarters,
        "ratio": _spread(ratios),
        "bar": SNAPSHOT,
    }


def writer_elsewhere() -> Found:
    """An open transaction that has written into another table."""
    return _against_peers(holding.writing)


def writer_of_the_outbox() -> Found:
    """An open transaction that has written a message of its own key."""
    return _against_peers(holding.publishing)


def _against_peers(hold: Hold) -> Found:
    ours: list[float] = []
    theirs: list[float] = []
    found = draining.Drained(0, 1.0)
    cost, peers_cost = costs.Costs(), costs.Costs()
    ratios: list[float] = []
    with databases.postgres() as there:
        place = Place(there.name, there.url)
        rows = Backlog(there, WRITER_ROWS, filling.KEYS)
        rows.prepare()
        _drained(place, SMALL)
        place.fill(0)
        with hold(place):
            trials = try_all(rows, 0.0)
        finals: dict[str, float] = {}
        finalists = _finalists(trials)
        for trial in finalists:
            with hold(place):
                finals[trial.name] = _of_peer(trial, rows, costs.Costs())
            say(f"{trial.name}: {finals[trial.name]:,.0f} rows/s")
        best = max(finalists, key=lambda trial: finals[trial.name])
        for _ in range(ROUNDS):
            place.fill(WRITER_ROWS)
            with hold(place), costs.counted(place) as cost:
                found = draining.drain(place, WRITER_ROWS)
            _drain_the_late(place, hold)
            with hold(place):
                peers_cost = costs.Costs()
                theirs.append(_of_peer(best, rows, peers_cost))
            ours.append(found.rate)
            ratios.append(found.rate / theirs[-1])
            say(f"{hold.__name__}: {found.rate:,.0f} rows/s, {found.quarters}, {cost}")
            say(f"{best.name}: {theirs[-1]:,.0f} rows/s, {peers_cost}")
    return statistics.median(ratios) >= OF_PEER, {
        "rows": WRITER_ROWS,
        "rows/s": _spread(ours),
        "rows/s by quarter, last run": found.quarters,
        "of each event": cost.of_each(WRITER_ROWS),
        "best peer": best.name,
        "finalists, rows/s": {name: round(rate) for name, rate in finals.items()},
        "rows/s of the peer": _spread(theirs),
        # its rows are in a table that is gone when it ends, and their number with it
        "of each event of the peer": peers_cost.of_each(WRITER_ROWS, tuples=False),
        "times the peer": _spread(ratios),
        "bar": OF_PEER,
        "peers": trials.told(),
    }


def _finalists(trials: Trials) -> list[Trial]:
    """Each peer at its best settings, the fastest peers first."""
    best: dict[str, Trial] = {}
    for trial in trials.found:
        best.setdefault(trial.peer.name, trial)
    return list(best.values())[:FINALISTS]


def _of_peer(trial: Trial, rows: Backlog, cost: costs.Costs) -> float:
    """Rows a second, of the whole backlog."""
    around = costs.counted(Place(rows.place.name, rows.place.url), cost)
    return drained(trial.peer, trial.settings, rows.dsn, rows.rows, 0.0, around).rate


def _drain_the_late(place: Place, hold: Hold) -> None:
    """What a transaction wrote that was open all the time is published once it has committed."""
    late = 1 if hold is holding.publishing else 0
    if place.left() != late:
        raise RuntimeError(f"{place.left()} rows are left, not {late}")
    if late:
        draining.drain(place, late)


# --- memory --------------------------------------------------------------------------------------


def memory_of_five_millions() -> Found:
    """Five million rows, in a process of its own."""
    rows = 5_000_000
    with filling.place() as place:
        place.fill(rows)
        return _remembered(place, rows)


def memory_of_large_bodies() -> Found:
    """Bodies of 256 KiB, no broker."""
    with filling.place() as place:
        place.fill(LARGE_ROWS, LARGE)
        return _remembered(place, LARGE_ROWS)


def _remembered(place: Place, rows: int) -> Found:
    with (
        memory.program("proofs.backlogs.relay_program", place.url, str(rows)) as process,
        memory.watched(process) as found,
    ):
        code = process.wait()
    left = place.left()
    if code or left:
        raise RuntimeError(f"the relay ended with {code}, {left} rows are left")
    return found.meets_the_bar, {"rows": rows, **found.told()}


def memory_of_large_bodies_to_nats() -> Found:
    """Bodies of 256 KiB, to NATS, the relay as an operator starts it."""
    with filling.place() as place, broker.nats() as (server, url):
        place.fill(LARGE_ROWS, LARGE)
        with (
            memory.program(*broker.relay(place.url, url)) as process,
            memory.watched(process) as found,
        ):
            broker.until_empty(place, process)
        stored = asyncio.run(broker.stored(server))
        if stored != LARGE_ROWS:
            raise RuntimeError(f"{stored} of {LARGE_ROWS} messages are in the stream")
        return found.meets_the_bar, {"rows": LARGE_ROWS, "body": LARGE, **found.told()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    digits = 3 if max(values) < 100 else 0  # ratios and rates
    return {
        "median": round(statistics.median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
        "runs": len(values),
    }


PARTS: dict[str, Callable[[], Found]] = {
    "1 M": one_million,
    "5 M": five_millions,
    "cost of an event": cost_of_an_event,
    "read snapshot": read_snapshot,
    "read snapshot, with a writer": read_snapshot_steady,
    "writer elsewhere": writer_elsewhere,
    "writer of the outbox": writer_of_the_outbox,
    "memory at 5 M": memory_of_five_millions,
    "memory, 256 KiB": memory_of_large_bodies,
    "memory, 256 KiB to NATS": memory_of_large_bodies_to_nats,
}
