"""10: a relay stands still (SIGSTOP) for three leases in the middle of a batch, and goes on."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from proofs.peril.brood import born, end, stands_still, until
from proofs.peril.child import Orders, relay
from proofs.peril.ear import ear
from proofs.peril.witness import Witness
from proofs.registry import Outcome, say
from proofs.scenes.world import World, told, world

TIMES = int(os.environ.get("OUTBOX_SAGA_PROOF_TIMES", "2"))  # each
LEASE = 1.0  # seconds
STILL = 3 * LEASE
MESSAGES, KEYS, PAGE = 400, 40, 100
REFUSE = 7  # every so many-th message, once, where that leads to the place
# where it stands still, and how often it has come past there before
PLACES = {"ack": 150, "delete": 1, "commit": 1, "handed over": 1, "retried": 1, "failure": 1}
SUCCESSORS = ("finishes", "has only begun")
AT_ONCE = 2
ZOMBIE, OTHER = "relay-zombie", "relay-other"


@dataclass
class Stood:
    """What came of one.

    Args:
        place: Where it stood still.
        successor: How far the other relay came meanwhile.
        unmarked: Messages that the zombie had sent and not removed.
        took_over: Seconds from the stop until the other was as far as that.
        fenced: What the zombie's own counter says, once it works again.
        repeated: Messages that came more than once.
        wrong: What must not be.
    """

    place: str
    successor: str
    unmarked: int = 0
    took_over: float = 0.0
    fenced: int = 0
    repeated: int = 0
    wrong: list[str] = field(default_factory=list)


def show() -> Outcome:
    """Each place with each successor, some times."""
    experiments = list(product(PLACES, SUCCESSORS, range(TIMES)))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        stood = list(pool.map(lambda told: _stand(told[0], told[1]), experiments))
    wrong = [one for one in stood if one.wrong]
    return Outcome(
        not wrong and len(stood) == len(experiments),
        {
            "zombies": len(stood),
            "seconds of lease, of standing still": [LEASE, STILL],
            "by place and successor": [
                f"{one.place}, {one.successor}: {one.unmarked} sent and not removed; taken over "
                f"after {one.took_over:.2f} s; fenced {one.fenced}"
                for one in stood
            ],
            "fenced": sum(one.fenced for one in stood),
            "duplicates": sum(one.repeated for one in stood),
            "wrong": [f"{one.place}, {one.successor}: {one.wrong}" for one in wrong],
        },
    )


def _stand(place: str, successor: str) -> Stood:
    stood = Stood(place, successor)
    mute = successor == "has only begun"
    with world() as on, tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        its = _Zombie(on, Path(folder), stack, place)
        witness = Witness(on.database)
        witness.begin()
        heard = stack.enter_context(ear(on.nats.url))
        with on.database.begin() as connection:
            for n in range(MESSAGES):
                on.publish(connection, b'{"n":%d}' % n, key=f"key{n % KEYS}")
        its.stands()
        stopped = time.monotonic()
        stood.unmarked = len(its.unmarked())
        other = its.other(mute=mute)
        if mute:
            until(lambda: its.sent(OTHER), "the other has taken over")
        else:
            on.quiesce()
        stood.took_over = time.monotonic() - stopped
        if stood.took_over > STILL:
            stood.wrong.append("the successor was held up")
        time.sleep(max(0.0, stopped + STILL - time.monotonic()))
        before = _rows(on)
        its.goes_on()
        until(lambda: its.detail("fenced") is not None, "the zombie speaks")
        stood.fenced = its.fenced(stood.unmarked)
        if stood.fenced < stood.unmarked:
            stood.wrong.append("it did not count what it could not remove")
        if mute:
            # nobody else changes anything: what has changed is the zombie's doing
            after = _rows(on)
            stood.wrong += [f"it changed {name}" for name in after if after[name] != before[name]]
            other.kill()
            on.quiesce()
        elif _rows(on) != before:
            stood.wrong.append("it changed rows")
        for process in (its.process, *(() if mute else (other,))):
            code, _ = end(process)
            if code != 0:
                stood.wrong.append(f"a relay ended with {code}")
        violations, _ = on.check()
        stood.wrong += told([*violations, *witness.stale()])
    stood.repeated = sum(heard.repeated.values())
    say(f"  {stood}")
    return stood


class _Zombie:
    """The relay that stands still, and the other one.

    Args:
        folder: For what they write down.
        stack: Ends them.
    """

    def __init__(self, on: World, folder: Path, stack: ExitStack, place: str) -> None:
        self._on = on
        self._folder = folder
        self._stack = stack
        self._place = place
        self._went_on = 0.0

    def _orders(self, name: str, **more: Any) -> Orders:
        url = self._on.database.url.render_as_string(hide_password=False)
        options = {"lease": LEASE, "page_rows": PAGE}
        return Orders(name, url, self._on.broker_url, self._folder, relay=options, **more)

    def stands(self) -> None:
        """It is started, and has come to its place."""
        orders = self._orders(
            ZOMBIE,
            where=self._place,
            after=PLACES[self._place],
            stop=True,
            refuse=REFUSE if self._place in ("retried", "failure") else 0,
        )
        self.process = self._stack.enter_context(born(relay, orders))
        fell = self._folder / f"{ZOMBIE}.fell"
        until(lambda: fell.exists() and stands_still(self.process), f"it stands at {self._place}")

    def other(self, *, mute: bool) -> Any:
        """The other one is started."""
        return self._stack.enter_context(born(relay, self._orders(OTHER, mute=mute)))

    def goes_on(self) -> None:
        """It is continued."""
        with self._on.database.engine.connect() as connection:
            self._at = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def sent(self, name: str) -> set[str]:
        """The messages that this relay was about to send, or has sent."""
        path = self._folder / f"{name}.sent"
        return set(path.read_text().split()) if path.exists() else set()

    def unmarked(self) -> set[str]:
        """What it had sent that is in the outbox."""
        outbox = self._on.database.tables.outbox
        with self._on.database.engine.connect() as connection:
            return self.sent(ZOMBIE) & set(map(str, connection.scalars(sa.select(outbox.c.id))))

    def detail(self, name: str) -> Any:
        """What it has said of itself since it went on; None: nothing yet."""
        table = self._on.database.tables.process
        asked = sa.select(table.c.detail).where(
            table.c.pid == self.process.pid, table.c.seen_at > self._at
        )
        with self._on.database.engine.connect() as connection:
            said = connection.execute(asked).scalar()
        return None if said is None else json.loads(said)[name]

    def fenced(self, wanted: int) -> int:
        """Its counter; it may speak before it knows all of what was another's by then."""
        deadline = time.monotonic() + 3 * LEASE
        while (count := int(self.detail("fenced") or 0)) < wanted:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        return count


def _rows(on: World) -> dict[str, list[str]]:
    """What a relay may change but for the leases."""
    tables = on.database.tables
    with on.database.engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(table))))
            for table in (tables.outbox, tables.blocked_key, tables.dead_letter, tables.delayed)
        }
