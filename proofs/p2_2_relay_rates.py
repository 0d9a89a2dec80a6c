"""Proof 2.2: how fast the relay is, beside the driver alone and beside other relays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks import databases, machine, relay, report
from benchmarks.backlog import Backlog
from benchmarks.jetstream import Streams
from benchmarks.load import Watch
from benchmarks.measuring import THOROUGH, Group, Sample, Variant, compare
from benchmarks.peers.measure import drained
from benchmarks.peers.trials import Trial, try_all
from benchmarks.publishers import Counted, NoBroker, SleepingBroker
from outbox_saga.brokers import open_publisher
from outbox_saga.brokers.contract import Outcome, Settled
from outbox_saga.envelopes import Envelope
from outbox_saga.testing.servers import Nats, choose
from proofs.registry import Outcome as Shown
from proofs.registry import parts, proof, say

ROWS, KEYS = 200_000, 2_000
SLEEP = 0.005  # seconds a message
HOT_ROWS, HOT_ROWS_NATS = 2_000, 10_000
EFFORT = replace(THOROUGH, rounds=3, patience=5.0)
OF_FLOOR, OF_PEER, OF_SLEEPING_PEER, OF_LOOP = 0.5, 3.0, 2.0, 0.95
CHECKED = 20_000  # rows whose order is looked at

Broker = Callable[[int], NoBroker]
Part = Callable[[databases.Place], tuple[bool, dict[str, Any], Group]]


@proof("2.2")
def relay_rates() -> Shown:
    """Each part in interleaved rounds, on one server."""
    parts_of_it: dict[str, Part] = {"no-op": _no_op, "sleeping": _sleeping, "hot-key": _hot_key}
    wanted = parts(parts_of_it)
    good: list[bool] = []
    measured: dict[str, Any] = {"machine": machine.describe()}
    groups: list[Group] = []
    with databases.postgres() as place:
        for name in wanted:
            ok, measured[name], group = parts_of_it[name](place)
            say(f"{name}: {'met' if ok else 'MISSED'}")
            good.append(ok)
            groups.append(group)
    measured["notes"] = report.notes(groups, EFFORT)
    return Shown(ok=all(good) and len(wanted) == len(parts_of_it), measured=measured)


def _no_op(place: databases.Place) -> tuple[bool, dict[str, Any], Group]:
    backlog = Backlog(place, ROWS, KEYS)
    backlog.prepare()
    trials = try_all(backlog, 0.0)
    variants = [*relay.against_the_floor(backlog), _peer(trials.best, backlog, 0.0, relay.OURS)]
    group = compare("relay", f"{place.name}, no-op publisher", relay.UNIT, variants, EFFORT)
    floor, ours, peer = group.figures
    of_floor, of_peer = ours.ratio or 0.0, 1 / (peer.ratio or 1.0)
    measured = {
        "rows": ROWS,
        "keys": KEYS,
        "page_rows": relay.BATCH,
        "of_the_floor": {"bar": OF_FLOOR, "ratio": round(of_floor, 3)},
        "of_the_best_peer": {"bar": OF_PEER, "ratio": round(of_peer, 2)},
        "rates": report.rates([floor, ours, peer]),
        "peers": trials.told(),
    }
    return of_floor >= OF_FLOOR and of_peer >= OF_PEER, measured, group


def _sleeping(place: databases.Place) -> tuple[bool, dict[str, Any], Group]:
    backlog = Backlog(place, ROWS, KEYS)
    backlog.prepare()
    trials = try_all(backlog, SLEEP)
    sleeping = partial(relay.relayed, broker=lambda enough: SleepingBroker(enough, SLEEP))
    ours = f"Relay, {SLEEP * 1000:g} ms a message"
    variants = [
        Variant(ours, lambda: relay.drained(backlog, sleeping)),
        _peer(trials.best, backlog, SLEEP, ours),
    ]
    group = compare(
        "relay", f"{place.name}, {SLEEP * 1000:g} ms a message", relay.UNIT, variants, EFFORT
    )
    ratio = 1 / (group.figures[1].ratio or 1.0)
    disorder = _out_of_order(Backlog(place, CHECKED, KEYS))
    measured = {
        "rows": ROWS,
        "keys": KEYS,
        "page_rows": relay.BATCH,
        "seconds_a_message": SLEEP,
        "of_the_best_peer": {"bar": OF_SLEEPING_PEER, "ratio": round(ratio, 2)},
        "order_checked": {"rows": CHECKED, "out_of_order": disorder},
        "rates": report.rates(group.figures),
        "peers": trials.told(),
    }
    return ratio >= OF_SLEEPING_PEER and disorder == 0, measured, group


def _hot_key(place: databases.Place) -> tuple[bool, dict[str, Any], Group]:
    backlog = Backlog(place, HOT_ROWS, 1)
    backlog.prepare()
    group = _one_key(
        backlog, f"{SLEEP * 1000:g} ms a message", lambda enough: SleepingBroker(enough, SLEEP)
    )
    ratio = group.figures[1].ratio or 0.0
    real = Backlog(place, HOT_ROWS_NATS, 1)
    real.prepare()
    with choose(Nats) as server:
        streams = Streams(server.url)
        nats = _one_key(
            real,
            "NATS JetStream",
            lambda enough: Counted(enough, open_publisher(streams.current)),
            streams,
        )
    measured = {
        "seconds_a_message": SLEEP,
        "of_the_bare_loop": {"bar": OF_LOOP, "ratio": round(ratio, 3)},
        "rows": HOT_ROWS,
        "rates": report.rates(group.figures),
        # not the bar's publisher: what one round trip to a broker on this machine leaves of it
        "with_nats_on_this_machine": {
            "rows": HOT_ROWS_NATS,
            "of_the_bare_loop": round(nats.figures[1].ratio or 0.0, 3),
            "rates": report.rates(nats.figures),
        },
    }
    return ratio >= OF_LOOP, measured, group


def _one_key(backlog: Backlog, cost: str, broker: Broker, streams: Streams | None = None) -> Group:
    envelopes = backlog.envelopes()
    bare = "bare publisher loop"

    def loop() -> Sample:
        if streams:
            streams.fresh()
        return _loop(envelopes, broker)

    def relayed() -> Sample:
        if streams:
            streams.fresh()
        return relay.drained(backlog, partial(relay.relayed, broker=broker))

    variants = [Variant(bare, loop), Variant("Relay", relayed, bare)]
    return compare("relay", f"{backlog.place.name}, one key, {cost}", relay.UNIT, variants, EFFORT)


def _loop(envelopes: Sequence[Envelope], broker: Broker) -> Sample:
    """The same publisher, awaited one message after another, with nothing else."""

    async def loop() -> None:
        publisher = broker(len(envelopes))
        await publisher.open()
        for envelope in envelopes:
            await publisher.publish([envelope])
        assert publisher.done.is_set()
        await publisher.close()

    with Watch() as watch:
        cpu, began = time.process_time(), time.monotonic()
        asyncio.run(loop())
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    return Sample(len(envelopes), seconds, cpu, watch.ours, watch.foreign)


class _Watching(SleepingBroker):
    """Also sees whether a message came before the one of its key before it was accepted, or out of
    turn; its ids rise with the order in which the rows were committed.
    """

    def __init__(self, enough: int) -> None:
        super().__init__(enough, SLEEP)
        self.wrong = 0
        self._last: dict[str | None, int] = {}
        self._flying: set[str | None] = set()

    async def publish(
        self, envelopes: Sequence[Envelope], settled: Settled | None = None
    ) -> Sequence[Outcome]:
        keys = [envelope.key for envelope in envelopes]
        for envelope in envelopes:
            late = envelope.id.int <= self._last.get(envelope.key, 0)
            self.wrong += late or envelope.key in self._flying
            self._last[envelope.key] = envelope.id.int
            self._flying.add(envelope.key)
        outcomes = await super().publish(envelopes, settled)
        self._flying.difference_update(keys)
        return outcomes


def _out_of_order(backlog: Backlog) -> int:
    backlog.prepare()
    seen: list[_Watching] = []

    def watching(enough: int) -> _Watching:
        seen.append(_Watching(enough))
        return seen[-1]

    relay.drained(backlog, partial(relay.relayed, broker=watching))
    return seen[-1].wrong


def _peer(trial: Trial, backlog: Backlog, sleep: float, against: str) -> Variant:
    return Variant(
        trial.name,
        lambda: drained(trial.peer, trial.settings, backlog.dsn, backlog.rows, sleep),
        against,
    )
