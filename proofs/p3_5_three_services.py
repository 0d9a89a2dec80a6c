"""Proof 3.5: three services with a database each, while all that they run in is killed.

Real programs (`outbox-saga relay`, `consume`, `orchestrate`, and one that places orders), one
PostgreSQL with durable settings, one NATS. 2,000 orders, eight on their way at a time: by
commands, by commands whose time is up too soon, and by events; a part of them is refused by
inventory, by payments, or given up when all is done. Whom to kill, restart or leave alone comes
from `OUTBOX_SAGA_PROOF_SEED`; how fast the machine is in between is its own. "In flight" is what
`proofs/three/fleet.py` says. When all is at rest, the tables are judged (`proofs/three/books.py`).

`OUTBOX_SAGA_PROOF_ORDERS` (as 100) makes it smaller, its kills and restarts, too, unless
`OUTBOX_SAGA_PROOF_KILLS` says how many; with fewer of anything it is never met.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import nats
import sqlalchemy as sa

from outbox_saga.tables import tables_in
from outbox_saga.testing.invariants import GOOD_ENDS
from outbox_saga.testing.servers import Nats, Postgres18, choose
from outbox_saga_migrations import upgrade
from proofs.registry import Outcome, proof, say
from proofs.three import amounts
from proofs.three.fleet import KINDS, Fleet
from tests.crash import tables as crash

FULL, FEWEST_KILLS = 2_000, 100
ORDERS = int(os.environ.get("OUTBOX_SAGA_PROOF_ORDERS", FULL))
PART = min(1.0, ORDERS / FULL)
KILLS = int(os.environ.get("OUTBOX_SAGA_PROOF_KILLS", max(10, round(120 * PART))))
RESTARTS = max(1, round(5 * PART))  # of each server
SEED = os.environ.get("OUTBOX_SAGA_PROOF_SEED", "35")
AIMED = 0.75  # of all kills, to be in flight
AWAY = 2.0  # seconds at most that a server is not there
STANDSTILL = 240.0  # seconds without any progress
REST = 240.0  # seconds within which all has to be at rest, undisturbed
EMPTY = ("charles", "sugar")  # who and what there is nothing of
FILLED = {
    "payments": dict.fromkeys(("ada", "grace", "mary"), 100_000_000),
    "inventory": dict.fromkeys(("tea", "coffee", "salt"), 1_000_000),
}
OURS = tables_in(None)
OVER = (*GOOD_ENDS, "stuck")
STREAM = "three"


@proof("3.5")
def three_services() -> Outcome:
    """All orders, and all that is done meanwhile."""
    with ExitStack() as stack:
        postgres = stack.enter_context(choose(Postgres18, durable=True))
        broker = stack.enter_context(choose(Nats, durable=True))
        run = Run(postgres, broker)
        stack.callback(run.close)
        found = run.whole()
    killed, flying = (sum(found[name].values()) for name in ("killed", "in flight"))
    full = found["orders"] >= FULL and killed >= FEWEST_KILLS and 2 * flying >= killed
    full &= all(times >= 5 for times in found["restarted"].values())
    return Outcome(full and not found["violations"], found)


class Run:
    """One run: three databases, the processes, and what is done to them."""

    def __init__(self, postgres: Postgres18, broker: Nats) -> None:
        self._postgres, self._broker = postgres, broker
        self._chance = random.Random(SEED)
        urls = {name: postgres.create_database() for name in ("orders", *FILLED)}
        self._engines = {name: _engine(url) for name, url in urls.items()}
        # a broker that notices no repeat: they are the inbox's affair
        told = f"stream={STREAM}&prefix={STREAM}&create=1&ack_wait=3&dedup_window=0.1"
        self._env = {f"{name.upper()}_DATABASE": url for name, url in urls.items()}
        self._env["BROKER"] = f"{broker.url}?{told}"
        os.environ.update(self._env)  # the services' modules read it here, too
        self._server = _engine(postgres.url).execution_options(isolation_level="AUTOCOMMIT")
        self._fleet: Fleet | None = None
        self._restarted = {"postgresql": 0, "nats": 0}
        self._on_their_way: list[int] = []  # sagas, at each restart
        self._violations: list[str] = []

    def whole(self) -> dict[str, Any]:
        """What it came to."""
        self._prepare()
        began = time.monotonic()
        fleet = self._fleet = Fleet(self._server, self._env, (str(ORDERS), SEED))
        for at, what in self._plan():
            if not self._progress(at):
                break
            self._do(what)
            if fleet.wrong:
                say(f"{fleet.wrong}")
        self._progress(ORDERS)
        disturbed = time.monotonic() - began
        self._come_to_rest()
        seconds = time.monotonic() - began
        fleet.end()
        return self._judged(fleet) | {
            "seconds": {"disturbed": round(disturbed, 1), "all": round(seconds, 1)}
        }

    def _prepare(self) -> None:
        from proofs.three import orders

        for name, engine in self._engines.items():
            with engine.begin() as connection:
                upgrade(connection)
            with engine.begin() as connection:
                if name == "orders":
                    orders.metadata.create_all(connection)
                    crash.create(connection)
                    continue
                amounts.metadata.create_all(connection)
                there = [{"name": n, "left": much} for n, much in FILLED[name].items()]
                there += [{"name": EMPTY[name == "inventory"], "left": 0}]
                connection.execute(sa.insert(amounts.amount), there)

    def _plan(self) -> Iterator[tuple[int, str]]:
        """After how many ended orders what is done."""
        kinds = list(KINDS)
        deck = [kinds[n % len(kinds)] for n in range(KILLS)]
        deck += [server for server in self._restarted for _ in range(RESTARTS)]
        self._chance.shuffle(deck)
        places = sorted(self._chance.randrange(2, ORDERS - 10) for _ in deck)
        yield from zip(places, deck, strict=True)

    def _do(self, what: str) -> None:
        assert self._fleet is not None
        if what not in self._restarted:
            self._fleet.kill(what, self._chance, aims=self._chance.random() < AIMED)
            return
        self._on_their_way.append(self._count(over=False))
        away = self._chance.uniform(0, AWAY)
        if what == "postgresql":
            self._postgres.stop()  # SIGQUIT: "immediate"
            time.sleep(away)
            self._postgres.start()
        else:
            self._broker.kill()
            time.sleep(away)
            self._broker.start()
        self._restarted[what] += 1
        self._fleet.note(f"{what} restarted after {away:.2f} s")

    def _progress(self, wanted: int) -> bool:
        """So many have ended; False: it did not come to that."""
        assert self._fleet is not None
        last, since = -1, time.monotonic()
        while (ended := self._count(over=True)) < wanted:
            if ended != last:
                last, since = ended, time.monotonic()
            if time.monotonic() - since > STANDSTILL:
                self._violations.append(f"nothing has ended for {STANDSTILL} s, after {ended}")
                return False
            self._fleet.look_after()
            time.sleep(0.1)
        say(f"{self._fleet.now()} s: {ended} ended, {sum(self._fleet.killed.values())} killed")
        return True

    def _count(self, *, over: bool) -> int:
        """Sagas that have ended or are stuck, or those that are on their way."""
        state = OURS.saga.c.state
        asked = state.in_(OVER) if over else state.not_in(OVER)
        count = sa.select(sa.func.count()).select_from(OURS.saga).where(asked)
        with self._engines["orders"].connect() as connection:
            return connection.execute(count).scalar_one()

    def _come_to_rest(self) -> None:
        """Undisturbed, until nothing is on its way in any database and at the broker."""
        from proofs.three import books

        assert self._fleet is not None
        left: Mapping[str, int] = {}
        deadline = time.monotonic() + REST
        while time.monotonic() < deadline:
            self._fleet.look_after()
            left = books.remains(self._engines)
            left = left or asyncio.run(_undelivered(self._broker))
            if not left and not self._count(over=False):
                return
            time.sleep(0.2)
        self._violations.append(f"not at rest after {REST} s: {left}")

    def _judged(self, fleet: Fleet) -> dict[str, Any]:
        from proofs.three import books

        read = books.read(self._engines)
        filled = dict.fromkeys(EMPTY, 0) | FILLED["payments"] | FILLED["inventory"]
        wrong = [*self._violations, *fleet.wrong, *books.what_is_wrong(read, ORDERS, filled)]
        wrong += [f"no {kind} was killed" for kind in KINDS if not fleet.killed[kind]]
        stuck = [str(saga.reason) for saga in read.sagas if saga.state == "stuck"]
        return {
            "seed": SEED,
            "orders": len(read.orders),
            "ends": books.ends(read),
            "stuck, with these reasons": stuck,
            "most at once": books.most_at_once(read),
            "killed": dict(fleet.killed),
            "in flight": dict(fleet.in_flight),
            "restarted": self._restarted,
            "on their way at restarts": self._on_their_way,
            "history": books.transitions(read),
            "messages": asyncio.run(_published(self._broker)),
            "violations": wrong[:200],
            "count of violations": len(wrong),
            **({"what was done": fleet.log} if wrong else {}),
        }

    def close(self) -> None:
        """Nothing is left running."""
        if self._fleet is not None:
            self._fleet.kill_all()
        for engine in (*self._engines.values(), self._server):
            engine.dispose()


def _engine(url: str) -> sa.Engine:
    return sa.create_engine(url, pool_pre_ping=True)


async def _undelivered(broker: Nats) -> dict[str, int]:
    """What consumers have still to get, or to acknowledge."""
    client = await nats.connect(broker.url)
    try:
        infos = await client.jetstream(timeout=10).consumers_info(STREAM)
    finally:
        await client.close()
    found = {info.name: (info.num_pending or 0) + (info.num_ack_pending or 0) for info in infos}
    return {name: count for name, count in found.items() if count}


async def _published(broker: Nats) -> dict[str, int]:
    from proofs.chaos.stream import messages

    ids = [headers["ce-id"] for headers, _ in await messages(broker, STREAM)]
    return {"in the stream": len(ids), "sent twice": len(ids) - len(set(ids))}
