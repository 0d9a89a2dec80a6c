"""The plays of proof 2.7: who works with whom."""

from __future__ import annotations

from outbox_saga.testing.interleaving import Play
from proofs.interleaved.stage import WAIT, Broker, Drains, RelayActor, Stage


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


def overtaken_before_its_commit(on: Stage) -> Play:
    """A relay has removed a message and not yet committed; its lease runs out, another takes over,
    sends it again and gets a no.
    """
    on.fresh(Broker(once=frozenset({"one"})))
    first, second = on.relay(), on.relay()
    first.begins()
    on.writer(("k", "one"), ("k", "two"))()
    first.one_pass()
    actors = {"relay1": first.passes(1), "relay2": second.takes_over_and_passes(1)}
    return on.play(actors, _whoever_holds(on, first, second))


def refused_and_would_take_the_next(on: Stage) -> Play:
    """The broker refuses n for now, m for ever, and would take what comes behind them."""
    on.fresh(Broker(never=frozenset({"m1"}), not_now=frozenset({"n1"})))
    relay = on.relay()
    relay.begins()
    actors = {
        "writer1": on.writer(("n", "n1"), ("m", "m1"), ("n", "n2"), ("m", "m2")),
        "writer2": on.writer(("n", "n3"), ("m", "m3")),
        "relay": relay.passes(3),
        "time": on.time(2 * WAIT),
    }
    return on.play(actors, relay)


def replay_and_relay(on: Stage) -> Play:
    """An operator replays a dead letter of a parked key while the relay reads above its mark, and
    renews its lease.
    """
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
        "relay": relay.passes(2, renewing=True),
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


def _whoever_holds(on: Stage, first: RelayActor, second: RelayActor) -> Drains:
    class Last:
        def drains(self) -> None:
            if not second.store.lease.epochs:
                on.advance(3e6)  # the first one's lease is over for good
                first.store.lease.epochs = {}
                second.begins()
            second.drains()

    return Last()
