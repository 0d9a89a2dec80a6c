"""28: relays, as operators start them, get SIGTERM at random moments under load."""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from proofs.peril.brood import PATIENCE, born, end
from proofs.peril.child import command
from proofs.peril.ear import Ear, ear
from proofs.peril.load import load
from proofs.registry import Outcome, say
from proofs.scenes.world import World, told, world

FULL = 200
TIMES = int(os.environ.get("OUTBOX_SAGA_PROOF_TIMES", FULL))
SEED = os.environ.get("OUTBOX_SAGA_PROOF_SEED", "28")
GRACE = 8.0  # seconds: as `tests/relay/test_sigterm` allows on a busy machine
BACKLOG = 400  # messages that wait for the relay, about
MOMENTS = {  # how the moment is chosen, and its bound
    "seconds after its start": 0.6,
    "messages after its first": 400.0,
    "seconds after its first message": 0.3,
}
PAGES = (5, 50, 500)  # rows: of the relay's options
BEFORE_IT_HEARS = -15  # the interpreter had not come so far as to hear signals


@dataclass(frozen=True)
class Ended:
    """One relay's end.

    Args:
        moment: How its moment was chosen.
        published: What it had published by then.
        code: Its exit code; None: it had to be killed.
        took: Seconds from the signal to the exit.
        leased: Partitions that were leased afterwards, and relays that seemed alive.
    """

    number: int
    moment: str
    published: int
    code: int | None
    took: float
    leased: int

    @property
    def in_good_order(self) -> bool:
        """Within its time, with nothing left."""
        early = self.code == BEFORE_IT_HEARS and not self.published
        return (self.code == 0 or early) and self.took <= GRACE and not self.leased


def show() -> Outcome:
    """One relay after another; the last one is given time to send the rest."""
    with world() as on, tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with ear(on.nats.url) as heard:
            with load(on, SEED, waits=lambda count: count - len(heard.first) > BACKLOG) as writing:
                ends = [_one(on, heard, log, number) for number in range(TIMES)]
            with born(command, _relay(on, PAGES[-1]), log) as last:
                seconds = on.quiesce()
                end(last)
        violations, counts = on.check()
        wrong = [one for one in ends if not one.in_good_order]
        took = sorted(one.took for one in ends)
        at_work = [one for one in ends if one.published]
        good = TIMES >= FULL and len(at_work) >= TIMES / 2  # else there was no load
        return Outcome(
            good and not violations and not wrong and not heard.repeated,
            {
                "seed": SEED,
                "times": len(ends),
                "moments": dict(Counter(one.moment for one in ends)),
                "had published by then": {
                    "relays": len(at_work),
                    "messages, median": statistics.median(one.published for one in at_work),
                },
                "exit codes": dict(Counter(str(one.code) for one in ends)),
                "seconds to exit": {
                    "median": round(statistics.median(took), 3),
                    "p99": round(took[int(len(took) * 0.99) - 1], 3),
                    "most": round(took[-1], 3),
                    "grace": GRACE,
                },
                "ends with rows left leased": sum(bool(one.leased) for one in ends),
                "published": heard.total,
                "duplicates": sum(heard.repeated.values()),
                "rolled back": writing.rolled_back,
                "seconds until at rest": seconds,
                **counts,
                "wrong": [str(one) for one in wrong[:10]],
                "the relays' last words": log.read_text()[-2000:] if wrong else "",
                "first violations": told(violations),
            },
        )


def _one(on: World, heard: Ear, log: Path, number: int) -> Ended:
    chance = random.Random(f"{SEED} {number}")
    moment = list(MOMENTS)[number % len(MOMENTS)]
    bound = chance.uniform(0, MOMENTS[moment])
    before = heard.total
    with born(command, _relay(on, chance.choice(PAGES)), log) as process:
        if moment == "messages after its first":
            _until(heard, before + 1 + int(bound))
        elif moment == "seconds after its first message":
            _until(heard, before + 1)
        if moment.startswith("seconds"):
            time.sleep(bound)
        published = heard.total - before
        code, took = end(process)
    if number % 20 == 0:
        say(f"  {number + 1} times")
    return Ended(number, moment, published, code, took, _leased(on))


def _relay(on: World, page: int) -> tuple[str, ...]:
    url = on.database.url.render_as_string(hide_password=False)
    options = ("--database-url", url, "--broker", on.broker_url, "--page-rows", str(page))
    return ("relay", *options, "--log-level", "warning")


def _until(heard: Ear, total: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while heard.total < total:
        if time.monotonic() > deadline:
            raise AssertionError("the relay publishes nothing")
        time.sleep(0.001)


def _leased(on: World) -> int:
    lease, process = on.database.tables.partition_lease, on.database.tables.process
    count = sa.select(sa.func.count())
    with on.database.engine.connect() as connection:
        held = connection.execute(count.where(lease.c.owner.is_not(None))).scalar_one()
        alive = connection.execute(count.select_from(process)).scalar_one()
    return int(held + alive)
