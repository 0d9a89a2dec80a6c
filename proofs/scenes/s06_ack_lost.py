"""6: relays are killed between the broker's ack and the mark, again and again."""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sqlalchemy as sa

from outbox_saga.testing.invariants import Violation
from proofs.peril import consumer
from proofs.peril.brood import born, end, ended, until
from proofs.peril.child import Orders, relay
from proofs.peril.ear import ear
from proofs.peril.load import load
from proofs.peril.witness import Witness
from proofs.registry import Outcome, say
from proofs.scenes.world import World, told, world

FULL = 200
KILLS = int(os.environ.get("OUTBOX_SAGA_PROOF_KILLS", FULL))
SEED = os.environ.get("OUTBOX_SAGA_PROOF_SEED", "6")
AT_ONCE = 3  # relays that share the partitions, each killed in its turn
LEASE = 1.0  # seconds
PAGE = 50  # rows
IN_FLIGHT = PAGE * 4  # rows that a relay may have in memory, sent or not: its own bound
BACKLOG = 150  # messages that wait for the relays, about
ACKS, REMOVALS = 60, 4  # a relay falls before it has had more of them than that
PLACES = ("ack", "delete", "ack", "commit")  # by turns


class Fallen:
    """The relays that were killed, each by itself at its point.

    Args:
        on: Where.
        folder: For what they write down.
    """

    def __init__(self, on: World, folder: Path) -> None:
        self._on = on
        self._folder = folder
        self.places: Counter[str] = Counter()
        self.missed: list[str] = []
        self.windows: dict[str, set[str]] = {}  # sent, and in the outbox after the death

    def orders(self, name: str, where: str = "", after: int = 0) -> Orders:
        """Of one of these relays."""
        url = self._on.database.url.render_as_string(hide_password=False)
        options = {"lease": LEASE, "page_rows": PAGE}
        return Orders(name, url, self._on.broker_url, self._folder, where, after, relay=options)

    def kill(self, number: int) -> None:
        """One more."""
        chance = random.Random(f"{SEED} {number}")
        where = PLACES[number % len(PLACES)]
        after = chance.randrange(ACKS if where == "ack" else REMOVALS)
        name = f"relay{number}"
        with born(relay, self.orders(name, where, after)) as process:
            code = ended(process)
        fell = self._folder / f"{name}.fell"
        if code != -9 or not fell.exists():
            self.missed.append(f"{name}, to be killed at {where}: {code}")
            return
        self.places[fell.read_text()] += 1
        self.windows[name] = self.sent(name) & self._in_outbox()
        if number % 20 == 0:
            say(f"  {self.places.total()} kills")

    def sent(self, name: str) -> set[str]:
        """The messages that this relay was about to send, or has sent."""
        path = self._folder / f"{name}.sent"
        return set(path.read_text().split()) if path.exists() else set()

    def _in_outbox(self) -> set[str]:
        with self._on.database.engine.connect() as connection:
            return set(
                map(str, connection.scalars(sa.select(self._on.database.tables.outbox.c.id)))
            )

    def unexplained(self, repeated: dict[str, int]) -> list[Violation]:
        """Messages that came again more often than relays died with them in flight."""
        lost = Counter(id_ for window in self.windows.values() for id_ in window)
        return [
            Violation("I6", f"message {id_}", f"came {more} times more, {lost[id_]} kills lost it")
            for id_, more in repeated.items()
            if more > lost[id_]
        ]


def show() -> Outcome:
    """Several relays at once, so that others go on while one is dead."""
    with world() as on, tempfile.TemporaryDirectory() as folder:
        witness = Witness(on.database)
        witness.begin()
        fallen = Fallen(on, Path(folder))
        with consumer.consuming(on), ear(on.nats.url) as heard:
            with (
                load(on, SEED, waits=lambda count: count - len(heard.first) > BACKLOG) as writing,
                ThreadPoolExecutor(AT_ONCE) as lanes,
            ):
                list(lanes.map(fallen.kill, range(KILLS)))
            with born(relay, fallen.orders("relay-last")) as last:
                seconds = on.quiesce()
                committed = set(writing.committed)
                until(lambda: len(consumer.effects(on)) >= len(committed), "all effects")
                code, _ = end(last)
        violations, counts = on.check()
        violations += witness.stale() + consumer.check(on, committed)
        violations += fallen.unexplained(heard.repeated)
        effects = consumer.effects(on)
        windows = [len(window) for window in fallen.windows.values()]
        wrong = fallen.missed + ([] if code == 0 else [f"the last relay ended with {code}"])
        good = (
            not violations
            and not wrong
            and fallen.places.total() == KILLS >= FULL
            and set(fallen.places) == set(PLACES)
            and max(windows) <= IN_FLIGHT
        )
        return Outcome(
            good,
            {
                "seed": SEED,
                "kills that hit": fallen.places.total(),
                "of them at": dict(fallen.places),
                "wrong": wrong,
                "in-flight windows": {
                    "most": max(windows),
                    "allowed": IN_FLIGHT,
                    "sum": sum(windows),
                    "empty": windows.count(0),
                },
                "published": heard.total,
                "duplicates": sum(heard.repeated.values()),
                "effects": len(effects),
                "effects of one message, most": max(Counter(effects).values()),
                "rolled back": writing.rolled_back,
                "rows that relays changed": witness.changes,
                "seconds until at rest": seconds,
                **counts,
                "first violations": told(violations),
            },
        )
