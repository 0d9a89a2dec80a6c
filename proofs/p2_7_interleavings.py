"""Proof 2.7: every order of steps of writers, relays, operators and time, on a real PostgreSQL.

The relays are the product's own store, mark and lanes, driven pass by pass. Each play is tried
again with the rule taken out that it is about, and must then find its bug.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from outbox_saga.queries import exchange
from outbox_saga.queries import outbox as writing
from outbox_saga.queries import relay as verbs
from outbox_saga.queries.relay import Wanted
from outbox_saga.testing.interleaving import Exploration, Play, explore
from outbox_saga_relay import store as stores
from outbox_saga_relay.mark import Mark
from proofs.interleaved.stage import WAIT, Broker, Stage, stage
from proofs.registry import Outcome, proof, say

Start = Callable[[Stage], Play]
Plant = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class Case:
    """A play, and the rules it is about: each name with what takes it out."""

    play: Start
    without: dict[str, Plant]


# --- the plays -----------------------------------------------------------------------------------


def writers_and_a_relay(on: Stage) -> Play:
    """Two writers of one key, one of another, a relay that makes two passes with the mark."""
    on.fresh()
    relay = on.relay()
    relay.begins()
    writers = {
        "writer1": on.writer(("k", "one")),
        "writer2": on.writer(("k", "two")),
        "writer3": on.writer(("j", "three")),
    }
    return on.play({**writers, "relay": relay.passes(2)}, relay)


def late_commit_and_sweep(on: Stage) -> Play:
    """A writer that commits late, others whose messages the mark passes, a relay that sweeps."""
    on.fresh()
    relay = on.relay()
    relay.begins()
    actors = {
        "late": on.writer(("k", "late")),
        "writer1": on.writer(("j", "one")),
        "relay": relay.passes(4),
    }
    return on.play(actors, relay)


def handing_over(on: Stage) -> Play:
    """One relay's lease runs out, another takes over and parks a key; the first one goes on."""
    on.fresh(Broker(never=frozenset({"one"})))
    first, second = on.relay(), on.relay()
    first.begins()
    actors = {
        "writer": on.writer(("k", "one"), ("k", "two")),
        "relay1": first.passes(2),
        "relay2": second.takes_over_and_passes(1),
    }
    return on.play(actors, _whoever_holds(on, first, second))


def refused_and_would_take_the_next(on: Stage) -> Play:
    """The broker refuses n for now, m for ever, and would take what comes behind them."""
    on.fresh(Broker(never=frozenset({"m1"}), not_now=frozenset({"n1"})))
    relay = on.relay(heeds_lanes=_HEEDS_LANES[-1])
    relay.begins()
    actors = {
        "writer1": on.writer(("n", "n1"), ("m", "m1"), ("n", "n2"), ("m", "m2")),
        "writer2": on.writer(("n", "n3"), ("m", "m3")),
        "relay": relay.passes(3),
        "time": on.time(2 * WAIT),
    }
    return on.play(actors, relay)


def replay_and_relay(on: Stage) -> Play:
    """An operator replays a dead letter of a parked key while the relay reads above its mark."""
    on.fresh(Broker(never=frozenset({"one"})))
    relay = on.relay()
    relay.begins()
    on.writer(("k", "one"))()
    relay.one_pass()
    for word in ("x1", "x2", "x3"):  # the mark passes k's place
        on.writer(("x", word))()
        relay.one_pass()
    actors = {
        "operator": on.operator(),
        "writer": on.writer(("k", "two")),
        "relay": relay.passes(2),
    }
    return on.play(actors, relay)


def time_and_relay(on: Stage) -> Play:
    """The time of a refused message comes while the relay reads above its mark."""
    on.fresh(Broker(not_now=frozenset({"one"})))
    relay = on.relay()
    relay.begins()
    on.writer(("k", "one"))()
    relay.one_pass()
    for word in ("x1", "x2", "x3"):
        on.writer(("x", word))()
        relay.one_pass()
    actors = {
        "time": on.time(2 * WAIT),
        "writer": on.writer(("k", "two")),
        "relay": relay.passes(2),
    }
    return on.play(actors, relay)


def _whoever_holds(on: Stage, first: Any, second: Any) -> Any:
    class Last:
        def drains(self) -> None:
            if not second.store.epochs:
                on.advance(3e6)  # the first one's lease is over for good
                first.store.epochs = {}
                second.begins()
            second.drains()

    return Last()


# --- the rules, taken out ------------------------------------------------------------------------

_HEEDS_LANES = [True]


class PassesAtOnce(Mark):
    """The mark passes what was read, whoever may still show a row below it."""

    def read(
        self,
        oldest: int | None,
        highest: int | None,
        *,
        full: bool,
        in_progress: Collection[int] = (),
    ) -> None:
        """As `Mark.read`, and then to the end of what was read."""
        super().read(oldest, highest, full=full, in_progress=in_progress)
        if highest is not None:
            self.position = max(self.position, highest)


def mark_passes_at_once() -> Any:
    """A mark that waits for nobody."""
    return patch.object(stores, "Mark", PassesAtOnce)


def mark_goes_by_xmax() -> Any:
    """A mark that goes by the latest transaction that has ended."""
    latest = (
        "SELECT x || ':' || x || ':' "
        "FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text AS x) AS latest"
    )
    return patch.object(exchange, "_SNAPSHOT", latest)


def no_key_lock() -> Any:
    """Writers of one key do not wait for each other."""
    return patch.object(writing, "lock_numbers", lambda _: [])


def _wanted_without(**changed: Any) -> Any:
    def make(*args: Any, **options: Any) -> Wanted:
        partitions, limit, *_ = args
        given = {k: v for k, v in options.items() if k not in changed}
        owner = changed.get("owner", args[2] if len(args) > 2 else None)
        more = {k: v for k, v in changed.items() if k != "owner"}
        return Wanted(partitions, limit, owner, **given, **more)

    return patch.object(stores, "Wanted", make)


def page_without_lease() -> Any:
    """A page is read whoever owns the partitions by now."""
    return _wanted_without(owner=None, none_if_put_back=False)


def page_despite_what_is_back() -> Any:
    """A page does not ask whether somebody has put a row back."""
    return _wanted_without(none_if_put_back=False)


def due_by_the_clock() -> Any:
    """A key's time comes by the clock of the page's own statement."""
    return _wanted_without(due=None)


def nothing_is_blocked() -> Any:
    """A refused key does not wait."""
    return patch.object(verbs, "block", lambda *_, **__: None)


@contextlib.contextmanager
def all_of_a_page_at_once() -> Iterator[None]:
    """All rows of a page are sent, whatever becomes of those before."""
    _HEEDS_LANES.append(False)
    try:
        yield
    finally:
        _HEEDS_LANES.pop()


CASES = {
    "two writers of one key, one of another, a relay making two passes with the mark": Case(
        writers_and_a_relay,
        {"the key lock": no_key_lock},
    ),
    "late commit and sweep": Case(
        late_commit_and_sweep,
        {"the mark waits": mark_passes_at_once, "it goes by xmin": mark_goes_by_xmax},
    ),
    "two relays handing over a partition": Case(
        handing_over, {"a page asks for the lease": page_without_lease}
    ),
    "broker refuses n and would take n+1": Case(
        refused_and_would_take_the_next,
        {"a refused key waits": nothing_is_blocked, "lanes": all_of_a_page_at_once},
    ),
    "replay and relay": Case(
        replay_and_relay, {"a page asks for what is back": page_despite_what_is_back}
    ),
    "time and relay": Case(time_and_relay, {"a page says what is due": due_by_the_clock}),
}


@proof("2.7")
def interleavings() -> Outcome:
    """All of them with the rules, and until a problem is found without each."""
    measured: dict[str, Any] = {}
    good = True
    with stage() as on:
        for name, case in CASES.items():
            found = tried(on, name, case)
            right = found.exhausted and not found.problems and not found.deadlocks
            measured[name] = figures(found) | {"without": {}}
            for rule, plant in case.without.items():
                with plant():
                    bad = tried(on, f"{name}, without: {rule}", case, until_one_is_bad=True)
                measured[name]["without"][rule] = figures(bad)
                right = right and bool(bad.problems)
            good = good and right
    return Outcome(ok=good, measured=measured)


class _Enough(Exception):
    """A problem was found: no need to try the other orders."""


def tried(on: Stage, name: str, case: Case, *, until_one_is_bad: bool = False) -> Exploration:
    """Every order of the play's steps, or those until a problem was found."""
    latest: list[Exploration] = []

    def progress(found: Exploration) -> None:
        latest[:] = [found]
        if found.schedules % 500 == 0:
            say(f"{name}: {found.report().splitlines()[0]}")
        if until_one_is_bad and found.problems:
            raise _Enough

    with contextlib.suppress(_Enough):
        explore(
            lambda: case.play(on),
            on.engines,
            reach=on.reaches,
            progress=progress,
        )
    say(f"{name}: {latest[0].report()}")
    return latest[0]


def figures(found: Exploration) -> dict[str, Any]:
    """Counts, and the first schedule that went wrong."""
    told: dict[str, Any] = {
        "schedules": found.schedules,
        "exhausted": found.exhausted,
        "with_lock_waits": found.with_waits,
        "bad": len(found.problems),
        "seconds": round(found.seconds, 1),
    }
    if found.problems:
        told["first"] = found.problems[0].report().splitlines()
    return told
